"""Where images come from: a path, or the name of the built-in set, to a collection."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.arrays import image_set, is_idx, open_idx, open_npy, open_npz
from diptych.images.collection import Collection, ImageSet
from diptych.images.folder import open_folder
from diptych.images.listing import Progress, ignore_progress
from diptych.images.photographs import PHOTOGRAPHS_NAME, open_photographs

_TRAIN_NAMES: Final = ("train", "training")
_TEST_NAMES: Final = ("test", "val", "valid", "validation")


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
    if config.path == PHOTOGRAPHS_NAME and not Path(config.path).exists():
        return open_photographs(config)
    path = Path(config.path)
    if not config.path or not path.exists():
        raise ImagesError(
            f"{config.path!r} does not exist. Wanted a folder of images, a .npz, .npy or IDX "
            f"file, or the name {PHOTOGRAPHS_NAME!r}."
        )
    train, test = (
        _open_parts(path, config, executor, on_progress)
        if path.is_dir()
        else _open_file(path, config)
    )
    return Collection(train, test, describe(path, train, test))


def from_array(
    array: NDArray[np.uint8], labels: NDArray[np.int64] | None, config: ImagesConfig
) -> ImageSet:
    """Wraps an array in memory, (images, height, width[, channels]) uint8, as an image set."""
    return image_set(array, labels, config, "the array")


def describe(path: Path, train: ImageSet, test: ImageSet | None) -> str:
    """One sentence on what was found."""
    sentence = f"{len(train):,} images in {path}, median side {train.median_side_pixels} pixels"
    if train.skipped:
        sentence += f", {len(train.skipped)} unreadable ones skipped"
    if test is not None:
        sentence += f", {len(test):,} more held out for testing"
    if train.classes:
        sentence += f"; {len(train.classes)} classes"
    return " ".join([sentence + ".", *train.remarks])


def _open_file(path: Path, config: ImagesConfig) -> tuple[ImageSet, ImageSet | None]:
    if path.suffix == ".npz":
        return open_npz(path, config)
    if path.suffix == ".npy":
        return open_npy(path, config), None
    if is_idx(path):
        return open_idx(path, config), None
    raise ImagesError(
        f"{path} is a file, but not a .npz, .npy or IDX file. For image files, give the folder."
    )


def _open_parts(
    path: Path, config: ImagesConfig, executor: Executor, on_progress: Progress
) -> tuple[ImageSet, ImageSet | None]:
    """A folder: IDX files, or train and test subfolders, or just images."""
    idx = _idx_parts(path)
    if idx is not None:
        train_file, test_file = idx
        everything = replace(config, limit=None)
        test_set = None if test_file is None else open_idx(test_file, everything)
        return open_idx(train_file, config), test_set
    train, test = _subfolder(path, _TRAIN_NAMES), _subfolder(path, _TEST_NAMES)
    if train is None:
        return open_folder(path, config, executor, on_progress), None
    learned = open_folder(train, config, executor, on_progress)
    if test is None:
        return learned, None
    # A limit is on the images to learn from; held-out images are all used.
    held_out = open_folder(test, replace(config, limit=None), executor, on_progress)
    return learned, held_out


def _subfolder(path: Path, names: tuple[str, ...]) -> Path | None:
    return next((path / name for name in names if (path / name).is_dir()), None)


def _idx_parts(path: Path) -> tuple[Path, Path | None] | None:
    files = sorted(file for file in path.iterdir() if "idx3" in file.name and is_idx(file))
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith(("t10k", "test"))]
    return (train[0], test[0] if test else None) if train else None
