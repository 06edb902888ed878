"""Where images come from: a path, or the name of the built-in set, to a collection."""

from concurrent.futures import Executor
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.arrays import image_set, is_idx, open_idx, open_npy, open_npz
from diptych.images.cifar import is_cifar, open_cifar
from diptych.images.collection import Collection, ImageSet, held_out_config
from diptych.images.decode import EXTENSIONS
from diptych.images.elsewhere import find_elsewhere, from_any_folder
from diptych.images.folder import list_folder
from diptych.images.form import Pixels
from diptych.images.listing import Listing, Progress, ignore_progress
from diptych.images.photographs import PHOTOGRAPHS_NAME, open_photographs
from diptych.images.shards.files import find_shards, is_shard_pattern
from diptych.images.shards.tar import list_tar
from diptych.images.splits import TEST_NAMES, TRAIN_NAMES, Found, open_found
from diptych.images.tables.arrow_folder import find_saved, is_saved
from diptych.images.tables.parquet import find_in_parquet, holds_parquet, is_parquet_pattern
from diptych.images.text_list import list_text

_WANTED: Final = (
    "a folder of images, a .txt list of their paths, .tar shards (a file, a folder of them, or a "
    "pattern as 'shards/{000..012}.tar'), .parquet files with a column of images, a folder that "
    "save_to_disk wrote, the binary version of CIFAR, a .npz, .npy or IDX file, a URL of one of "
    "these, torchvision:NAME"
)


def open_images(
    config: ImagesConfig, executor: Executor, on_progress: Progress = ignore_progress
) -> Collection:
    """Opens what ``config.path`` names.

    Args:
        config: the path, limits and colour mode.
        executor: its threads decode.
        on_progress: called with (files checked, files in all) while a folder is read.

    Raises:
        ImagesError: nothing usable is there.
    """
    if _is_built_in(config):
        return open_photographs(config)
    train, test = open_found(locate_images(config), config, executor, on_progress)
    return Collection(train, test, describe(config.path, train, test))


def locate_images(config: ImagesConfig) -> Found:
    """What ``config.path`` names, before an image is decoded.

    Raises:
        ImagesError: nothing usable is there.
    """
    if _is_built_in(config):
        built_in = open_photographs(config)
        return Found(built_in.train, [] if built_in.test is None else [built_in.test])
    path = Path(config.path)
    if config.path != "" and path.exists():
        return _find_in_folder(path, config) if path.is_dir() else _find_in_file(path, config)
    if is_shard_pattern(config.path):
        return Found(list_tar(find_shards(config.path), config.path))
    found = find_elsewhere(config, lambda file: _find_in_file(file, config))
    if found is None:
        raise ImagesError(
            f"{config.path!r} does not exist. Wanted {_WANTED}, or the name {PHOTOGRAPHS_NAME!r}."
        )
    return found


def require_there(config: ImagesConfig) -> None:
    """Refuses a path on this disk that is not there; nothing is opened, nothing is fetched.

    Raises:
        ImagesError: as ``locate_images`` does.
    """
    known = _is_built_in(config) or is_shard_pattern(config.path) or is_parquet_pattern(config.path)
    if not known and from_any_folder(config.path) is None and not Path(config.path).exists():
        locate_images(config)


def from_array(array: Pixels, labels: NDArray[np.int64] | None, config: ImagesConfig) -> ImageSet:
    """Wraps an array in memory, (images, height, width[, channels]), as an image set."""
    return image_set(array, labels, config, "the array")


def describe(path: str, train: ImageSet, test: ImageSet | None) -> str:
    """One sentence on what was found."""
    sentence = f"{len(train):,} images in {path}, median side {train.median_side_pixels} pixels"
    if train.skipped:
        sentence += f", {len(train.skipped)} unreadable ones skipped"
    if test is not None:
        sentence += f", {len(test):,} more held out for testing"
    if train.classes:
        sentence += f"; {len(train.classes)} classes"
    return " ".join([sentence + ".", *train.remarks])


def _is_built_in(config: ImagesConfig) -> bool:
    return config.path == PHOTOGRAPHS_NAME and not Path(config.path).exists()


def _find_in_file(path: Path, config: ImagesConfig) -> Found:
    if path.suffix == ".npz":
        return _arrays(*open_npz(path, config))
    if path.suffix == ".npy":
        return Found(open_npy(path, config))
    if path.suffix == ".parquet":
        return find_in_parquet(str(path), config)
    if path.suffix == ".txt":
        return Found(list_text(path))
    if ".tar" in path.suffixes or path.suffix == ".tgz":
        return Found(list_tar([path], str(path)))
    if is_idx(path):
        return Found(open_idx(path, config))
    raise ImagesError(
        f"{path} is a file of another kind. Wanted {_WANTED}. For image files, give the folder."
    )


def _find_in_folder(path: Path, config: ImagesConfig) -> Found:
    """A folder: of one known form, or train and test subfolders, or just images or shards."""
    if is_cifar(path):
        return _arrays(*open_cifar(path, config))
    if is_saved(path):
        return find_saved(path, config)
    if holds_parquet(path):
        return find_in_parquet(str(path), config)
    idx = _idx_parts(path)
    if idx is not None:
        train_file, test_file = idx
        learned = open_idx(train_file, config)
        everything = held_out_config(config, learned)
        return _arrays(learned, None if test_file is None else open_idx(test_file, everything))
    train, test = _subfolder(path, TRAIN_NAMES), _subfolder(path, TEST_NAMES)
    if train is None or test is None:
        return Found(_listed(train or path))
    return Found(_listed(train), map(_listed, [test]))


def _arrays(train: ImageSet, test: ImageSet | None) -> Found:
    return Found(train, [] if test is None else [test])


def _listed(folder: Path) -> Listing:
    """The shards right in a folder if it has any, else the image files in and below it."""
    shards = find_shards(str(folder))
    if not shards:
        return list_folder(folder)
    loose = [one.name for one in folder.iterdir() if one.suffix.lower() in EXTENSIONS]
    if loose:
        raise ImagesError(
            f"{folder} holds shards as {shards[0].name} and images as {min(loose)}. Wanted one "
            f"kind; {folder}/*.tar takes the shards only."
        )
    return list_tar(shards, str(folder))


def _subfolder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _idx_parts(path: Path) -> tuple[Path, Path | None] | None:
    files = sorted(file for file in path.iterdir() if "idx3" in file.name and is_idx(file))
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith(("t10k", "test"))]
    return (train[0], test[0] if test else None) if train else None
