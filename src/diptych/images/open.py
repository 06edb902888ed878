"""Where images come from: a path, or another name of images, to a collection.

``SOURCES`` is the table of all kinds of sources. A new one is a file in ``sources/`` and a line in
the table.
"""

import os
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.channels import Pixels
from diptych.images.collection import Collection, ImageSet, on_classes
from diptych.images.inventory import Skipped, Tally
from diptych.images.label_tables import with_given_labels
from diptych.images.listing import Listing, Progress, ignore_progress
from diptych.images.pictures import each_picture, without_excluded
from diptych.images.sources.arrays import (
    find_idx,
    find_idx_folder,
    find_npy,
    find_npz,
    image_set,
    is_idx,
    is_idx_folder,
)
from diptych.images.sources.arrow import find_saved, is_saved
from diptych.images.sources.handed_over import find_handed_over, is_handed_over
from diptych.images.sources.image_files import find_in_folder
from diptych.images.sources.known_sets import (
    PHOTOGRAPHS_NAME,
    absolute_name,
    find_cifar,
    find_photographs,
    find_torchvision,
    is_cifar,
    is_photographs,
    is_torchvision,
)
from diptych.images.sources.lists import find_list
from diptych.images.sources.parquet import find_in_parquet, find_in_tables, is_parquet_pattern
from diptych.images.sources.remote import (
    addresses,
    fetch,
    find_in_remote_folder,
    is_remote_file,
    names_of,
)
from diptych.images.sources.tar_shards import find_in_tar, find_shards, is_shard_pattern
from diptych.images.splits import LocatedImages, hold_out, open_located, role_of
from diptych.images.tree import walk
from diptych.runs.folder import is_url

_BESIDE: Final = "an image, shard or table beside a data set of a known form"


class Source(NamedTuple):
    """A kind of source of images.

    Attributes:
        what: a path of this kind names, as errors list it.
        fits: whether a path is of this kind; opens no image.
        find: what lies there, before an image is decoded. Raises ImagesError.
        absolute: for names that are no paths: the same name, so that it means the same from any
            folder.
    """

    what: str
    fits: Callable[[str], bool]
    find: Callable[[str, ImagesConfig], LocatedImages]
    absolute: Callable[[str], str] | None = None


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
    located = locate_images(config)
    held = hold_out(located)
    chosen = replace(located, held_out=() if held.images is None else (held.images,))
    train, test = open_located(chosen, config, executor, on_progress)
    opened = Collection(
        train,
        test,
        located.description or _describe(config.path, train, test, held.part),
        train_part=located.train_part,
        test_part=held.part,
        left_out=(*located.left_out, *held.unused),
        remarks=(*located.remarks, *on_classes(train, test, held.part)),
    )
    sentences = [opened.description, *train.remarks, *opened.inventory.sentences()]
    return replace(opened, description=" ".join(sentences))


def locate_images(config: ImagesConfig) -> LocatedImages:
    """What ``config.path`` names, before an image is decoded.

    Raises:
        ImagesError: nothing usable is there.
    """
    located = _selected(_source_of(config.path).find(config.path, config), config)
    train, *held_out = with_given_labels((located.train, *located.held_out), config)
    return replace(located, train=train, held_out=tuple(held_out))


def _selected(located: LocatedImages, config: ImagesConfig) -> LocatedImages:
    if not config.selection:
        return located
    excluded = Tally()

    def picked(part: Listing | ImageSet) -> Listing | ImageSet:
        if isinstance(part, ImageSet):
            return part
        return each_picture(without_excluded(part, config, excluded), config)

    train, held_out = picked(located.train), tuple(map(picked, located.held_out))
    left_out = (*located.left_out, *excluded.rows())
    return replace(located, train=train, held_out=held_out, left_out=left_out)


def require_there(config: ImagesConfig) -> None:
    """Refuses a path that is not there; nothing is opened, nothing is fetched.

    Raises:
        ImagesError: as ``locate_images`` does.
    """
    if not (config.path and os.path.exists(config.path)):
        _source_of(config.path)


def from_any_folder(name: str) -> str | None:
    """A name that is no path, so that it means the same from any folder; None for a path.

    >>> from_any_folder("s3://bucket/images"), from_any_folder("images")
    ('s3://bucket/images', None)
    """
    named = (source for source in SOURCES if source.absolute is not None and source.fits(name))
    source = next(named, None)
    return None if source is None or source.absolute is None else source.absolute(name)


def from_array(array: Pixels, labels: NDArray[np.int64] | None, config: ImagesConfig) -> ImageSet:
    """Wraps an array in memory, (images, height, width[, channels]), as an image set."""
    return image_set(array, labels, config, "the array")


def _describe(path: str, train: ImageSet, test: ImageSet | None, part: str) -> str:
    """One sentence on what is used."""
    sentence = f"{len(train):,} images in {path}, median side {train.median_side_pixels} pixels"
    if test is not None:
        sentence += f", {len(test):,} more held out for testing" + (f" ({part})" if part else "")
    return sentence + (f"; {len(train.classes)} classes." if train.classes else ".")


def _source_of(path: str) -> Source:
    found = next((source for source in SOURCES if source.fits(path)), None)
    if found is not None:
        return found
    wanted = ", ".join(dict.fromkeys(source.what for source in SOURCES))
    if path and Path(path).exists():
        raise ImagesError(
            f"{path} is a file of another kind. Wanted {wanted}. For image files, give the folder."
        )
    raise ImagesError(f"{path!r} does not exist. Wanted {wanted}.")


def _named(*ends: str) -> Callable[[str], bool]:
    """Whether a path is a file with one of these ends."""
    return lambda path: _is_file(path) and path.lower().endswith(ends)


def _is_file(path: str) -> bool:
    return os.path.exists(path) and not os.path.isdir(path)


def _is_tar(path: str) -> bool:
    suffixes = [one.lower() for one in Path(path).suffixes]
    return _is_file(path) and (".tar" in suffixes or suffixes[-1:] == [".tgz"])


def _find_shards(pattern: str, config: ImagesConfig) -> LocatedImages:
    return find_in_tar(find_shards(pattern), pattern, config.column)


def _find_remote_file(url: str, config: ImagesConfig) -> LocatedImages:
    """What is in the local copy of a file, or of several shards or tables."""
    urls = addresses(url)
    copies = fetch(urls, config)
    kinds = {copy.suffix for copy in copies}
    # By the names there: a copy lies in a folder of its own.
    if kinds == {".tar"}:
        return find_in_tar(copies, url, config.column, names_of(urls))
    if len(copies) == 1:
        return locate_images(replace(config, path=str(copies[0])))
    if kinds == {".parquet"}:
        return find_in_tables([str(copy) for copy in copies], names_of(urls), url, config)
    raise ImagesError(
        f"{url} stands for {len(copies)} files. Only .tar and .parquet files may be several; give "
        "the URL of one."
    )


def _with_beside(
    find: Callable[[str, ImagesConfig], LocatedImages],
) -> Callable[[str, ImagesConfig], LocatedImages]:
    """For folders of a known form: lists images and shards that lie beside as left out."""

    def found(path: str, config: ImagesConfig) -> LocatedImages:
        tree = walk(Path(path), config)
        known, others = find(path, config), [*tree.names_in(), *tree.containers]
        beside = [Skipped(others[0], _BESIDE, count=len(others))] if others else []
        return replace(known, left_out=(*known.left_out, *beside))

    return found


def _find_in_folder(path: str, config: ImagesConfig) -> LocatedImages:
    """Images, shards or Parquet files, in parts or not."""
    tree = walk(Path(path), config)
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
        found = find_in_parquet(path, config)
        return replace(found, left_out=(*found.left_out, *tree.others.rows(), *tree.odd))
    return find_in_folder(Path(path), tree, config.column)


def _is_usual(table: str) -> bool:
    """Whether a Parquet file lies where those of a data set do."""
    folder = os.path.dirname(table)
    return folder in ("", "data") or role_of(folder) is not None


SOURCES: Final = [
    Source(f"{PHOTOGRAPHS_NAME!r}, which are built in", is_photographs, find_photographs, str),
    Source("the binary version of CIFAR", is_cifar, _with_beside(find_cifar)),
    Source("a folder that save_to_disk wrote", is_saved, _with_beside(find_saved)),
    Source("a folder of IDX files", is_idx_folder, _with_beside(find_idx_folder)),
    Source("a folder of images, .tar shards or .parquet files", os.path.isdir, _find_in_folder),
    Source("a .npz file", _named(".npz"), find_npz),
    Source("a .npy file", _named(".npy"), find_npy),
    Source("a .parquet file with a column of images", _named(".parquet"), find_in_parquet),
    Source("a .txt list of paths", _named(".txt"), find_list),
    Source(
        "a .tar shard", _is_tar, lambda path, config: find_in_tar([Path(path)], path, config.column)
    ),
    Source("an IDX file", lambda path: _is_file(path) and is_idx(path), find_idx),
    Source("a pattern of shards as 'shards/{000..012}.tar'", is_shard_pattern, _find_shards),
    Source("a data set handed over in Python", is_handed_over, find_handed_over, str),
    Source("torchvision:NAME", is_torchvision, find_torchvision, absolute_name),
    Source("a URL of one of these", is_remote_file, _find_remote_file, str),
    Source("a URL of one of these", is_url, lambda url, _: find_in_remote_folder(url), str),
    Source("a pattern of .parquet files", is_parquet_pattern, find_in_parquet),
]
"""The first that fits a path opens it: what is there on this disk comes before other names."""
