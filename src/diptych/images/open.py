"""Where images come from: a path, or the name of the built-in set, to a collection."""

import os
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.sections import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.form import Pixels
from diptych.images.collection import (
    Collection,
    ImageSet,
    Skipped,
    held_out_config,
    on_classes,
)
from diptych.images.listing import Progress, ignore_progress
from diptych.images.sources.arrays import find_in_npz, image_set, is_idx, open_idx, open_npy
from diptych.images.sources.arrow import find_saved, is_saved
from diptych.images.sources.folder import find_in_folder, list_text
from diptych.images.sources.hugging_face import find_elsewhere, from_any_folder
from diptych.images.sources.parquet import find_in_parquet, is_parquet_pattern
from diptych.images.sources.photographs import PHOTOGRAPHS_NAME, open_photographs
from diptych.images.sources.tar_shards import find_in_tar, find_shards, is_shard_pattern
from diptych.images.sources.torchvision_sets import is_cifar, open_cifar
from diptych.images.splits import LocatedImages, hold_out, open_found, role_of
from diptych.images.tree import walk

_WANTED: Final = (
    "a folder of images, a .txt list of their paths, .tar shards (a file, a folder of them, or a "
    "pattern as 'shards/{000..012}.tar'), .parquet files with a column of images, a folder that "
    "save_to_disk wrote, the binary version of CIFAR, a .npz, .npy or IDX file, a URL of one of "
    "these, torchvision:NAME"
)

_BESIDE: Final = "an image, shard or table beside a data set of a known form"


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
    opened = (
        open_photographs(config) if _is_built_in(config) else _open(config, executor, on_progress)
    )
    sentences = [opened.description, *opened.train.remarks, *opened.inventory.sentences()]
    return replace(opened, description=" ".join(sentences))


def _open(config: ImagesConfig, executor: Executor, on_progress: Progress) -> Collection:
    found = locate_images(config)
    held = hold_out(found)
    chosen = replace(found, held_out=() if held.images is None else (held.images,))
    train, test = open_found(chosen, config, executor, on_progress)
    return Collection(
        train,
        test,
        describe(config.path, train, test, held.part),
        train_part=found.train_part,
        test_part=held.part,
        left_out=(*found.left_out, *held.unused),
        remarks=(*found.remarks, *on_classes(train, test, held.part)),
    )


def locate_images(config: ImagesConfig) -> LocatedImages:
    """What ``config.path`` names, before an image is decoded.

    Raises:
        ImagesError: nothing usable is there.
    """
    if _is_built_in(config):
        built_in = open_photographs(config)
        return LocatedImages(built_in.train, [] if built_in.test is None else [built_in.test])
    path = Path(config.path)
    if config.path != "" and path.exists():
        return _find_in_folder(path, config) if path.is_dir() else _find_in_file(path, config)
    if is_shard_pattern(config.path):
        return find_in_tar(find_shards(config.path), config.path)
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


def describe(path: str, train: ImageSet, test: ImageSet | None, part: str) -> str:
    """One sentence on what is used."""
    sentence = f"{len(train):,} images in {path}, median side {train.median_side_pixels} pixels"
    if test is not None:
        sentence += f", {len(test):,} more held out for testing" + (f" ({part})" if part else "")
    return sentence + (f"; {len(train.classes)} classes." if train.classes else ".")


def _is_built_in(config: ImagesConfig) -> bool:
    return config.path == PHOTOGRAPHS_NAME and not Path(config.path).exists()


def _find_in_file(path: Path, config: ImagesConfig) -> LocatedImages:
    suffixes = [one.lower() for one in path.suffixes]
    end = suffixes[-1] if suffixes else ""
    if end == ".npz":
        return find_in_npz(path, config)
    if end == ".npy":
        return LocatedImages(open_npy(path, config))
    if end == ".parquet":
        return find_in_parquet(str(path), config)
    if end == ".txt":
        return LocatedImages(list_text(path))
    if ".tar" in suffixes or end == ".tgz":
        return find_in_tar([path], str(path))
    if is_idx(path):
        return LocatedImages(open_idx(path, config))
    raise ImagesError(
        f"{path} is a file of another kind. Wanted {_WANTED}. For image files, give the folder."
    )


def _find_in_folder(path: Path, config: ImagesConfig) -> LocatedImages:
    """A folder: of one known form, or of images or shards, in parts or not."""
    tree = walk(path)
    known = _find_known(path, config)
    if known is not None:
        others = [*tree.names_in(), *tree.containers]
        beside = [Skipped(others[0], _BESIDE, count=len(others))] if others else []
        return replace(known, left_out=(*known.left_out, *beside))
    tables = [name for name in tree.containers if name.lower().endswith(".parquet")]
    others = [name for name in tree.containers if name not in tables]
    others += tree.names_in() if tables else []
    if tables and others and any(_is_usual(name) for name in tables):
        raise ImagesError(
            f"{path} holds {len(tables):,} Parquet files, as {tables[0]}, and {len(others):,} "
            f"images or shards, as {others[0]}. Wanted one kind; {path}/{tables[0]} takes that "
            "file only; to take the others, put the .parquet files elsewhere."
        )
    if tables and not others:
        found = find_in_parquet(str(path), config)
        return replace(found, left_out=(*found.left_out, *tree.others.rows(), *tree.odd))
    return find_in_folder(path, tree)


def _is_usual(table: str) -> bool:
    """Whether a Parquet file lies where those of a data set do."""
    folder = os.path.dirname(table)
    return folder in ("", "data") or role_of(folder) is not None


def _find_known(path: Path, config: ImagesConfig) -> LocatedImages | None:
    """CIFAR, what ``save_to_disk`` wrote, or IDX files."""
    if is_cifar(path):
        return _arrays(*open_cifar(path, config))
    if is_saved(path):
        return find_saved(path, config)
    idx = _idx_parts(path)
    if idx is None:
        return None
    train_file, test_file = idx
    learned = open_idx(train_file, config)
    everything = held_out_config(config, learned)
    return _arrays(learned, None if test_file is None else open_idx(test_file, everything))


def _arrays(train: ImageSet, test: ImageSet | None) -> LocatedImages:
    return LocatedImages(
        train, [] if test is None else [test], train_part="" if test is None else "train"
    )


def _idx_parts(path: Path) -> tuple[Path, Path | None] | None:
    files = sorted(file for file in path.iterdir() if "idx3" in file.name and is_idx(file))
    train = [file for file in files if file.name.startswith("train")]
    test = [file for file in files if file.name.startswith(("t10k", "test"))]
    return (train[0], test[0] if test else None) if train else None
