"""Hugging Face data sets that are handed over as Python objects.

A run's config names its images by a text. Such an object is named by its fingerprint, and looked up
by it for as long as the caller keeps it.
"""

import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from weakref import WeakValueDictionary

from diptych.config.sections import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.decode import read_bytes
from diptych.images.collection import Skipped
from diptych.images.listing import Listing
from diptych.images.sources import torchvision_sets
from diptych.images.sources.arrow import (
    find_columns,
    labels_of,
    name_rows,
    paths_of,
    row_image,
)
from diptych.images.sources.parquet import find_in_parquet, is_parquet_pattern, list_parquet
from diptych.images.sources.remote import fetch, is_remote_file, is_url
from diptych.images.sources.remote_folder import find_in_remote_folder
from diptych.images.sources.tar_shards import find_in_tar
from diptych.images.splits import LocatedImages, choose_splits

PREFIX: Final = "datasets:"
"""Begins the name of an object that was handed over."""

_ROWS: Final = 1000  # looked at together when names are collected

# Not the objects themselves: a finished run should not keep a data set alive.
_handed_over: WeakValueDictionary[str, Any] = WeakValueDictionary()


def is_dataset(images: object) -> bool:
    """Whether it is one of the classes of ``datasets``; does not import them."""
    module = sys.modules.get("datasets")
    names = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    return module is not None and isinstance(images, tuple(getattr(module, n) for n in names))


def path_of(images: Any) -> str:
    """What stands in a config for images: a path as it is, a data set by its fingerprint."""
    if not is_dataset(images):
        return str(images)
    if "Iterable" in type(images).__name__:
        raise ImagesError(
            f"a {type(images).__name__} is read in one order only, and images are drawn in random "
            "order. Load the data set without streaming=True."
        )
    name = PREFIX + _fingerprint(images)
    _handed_over[name] = images
    return name


def find_handed_over(name: str, config: ImagesConfig) -> LocatedImages:
    """The data set that ``path_of`` gave this name.

    Raises:
        ImagesError: there is no such object any more, or it has no column of images.
    """
    images = _handed_over.get(name)
    if images is None:
        raise ImagesError(
            f"{name} is a Hugging Face data set that was handed over in Python and is not at hand "
            "now. Load the same one and hand it over again: diptych.pretrain(dataset, out=..., "
            "resume=True), or diptych.evaluate(run, train=dataset)."
        )
    parts = (
        {str(key): part for key, part in images.items()}
        if isinstance(images, dict)
        else {"": images}
    )
    chosen = choose_splits(parts, "the data set")
    return LocatedImages(
        list_dataset(parts[chosen.train], config, chosen.train),
        (list_dataset(parts[name], config, name) for name in chosen.held_out),
        train_part=chosen.train,
        left_out=tuple(
            Skipped("", "rows of a part of no known name", name, len(parts[name]))
            for name in chosen.unused
        ),
        remarks=chosen.remarks,
    )


def list_dataset(dataset: Any, config: ImagesConfig, part: str = "") -> Listing:
    """The rows of a ``datasets.Dataset``, in its order."""
    origin = f"the data set {_fingerprint(dataset)}"
    columns = find_columns(dataset.features.arrow_schema, config.column, origin)
    # As Arrow tables nothing is decoded, whatever format or transform the caller has set.
    images = dataset.select_columns([columns.image]).with_format("arrow")
    paths = list[str | None]()
    if columns.has_path:
        for table in images.iter(_ROWS):
            paths += paths_of(table, columns)
    tables = (
        [dataset.select_columns([columns.label]).with_format("arrow")[:]] if columns.label else []
    )
    labels, classes = labels_of(tables, columns, origin)
    names = name_rows([paths or [None] * len(dataset)], ["row"])

    def read(index: int) -> bytes:
        return row_image(images[index].column(0).chunk(0), columns, read_bytes)

    return Listing(origin, names, read, labels, classes, part)


def _fingerprint(images: Any) -> str:
    if not isinstance(images, dict):
        return str(images._fingerprint)
    digest = hashlib.sha256()
    for name, part in sorted(images.items()):
        digest.update(f"{name}={part._fingerprint}\n".encode())
    return digest.hexdigest()[:16]


def from_any_folder(name: str) -> str | None:
    """A name of these kinds, so that it means the same from any folder; None for a path.

    >>> from_any_folder("s3://bucket/images"), from_any_folder("images")
    ('s3://bucket/images', None)
    """
    if name.startswith(torchvision_sets.PREFIX):
        kind, root = torchvision_sets.split_name(name)
        place = f":{root.expanduser().absolute()}" if root is not None else ""
        return f"{torchvision_sets.PREFIX}{kind}{place}"
    return name if name.startswith(PREFIX) or is_url(name) else None


def find_elsewhere(
    config: ImagesConfig, find_in_file: Callable[[Path], LocatedImages]
) -> LocatedImages | None:
    """What ``config.path`` names; None where it is none of these names.

    Args:
        config: the name, and how it is read.
        find_in_file: for a file on this disk, once one has been fetched.
    """
    name = config.path
    if name.startswith(PREFIX):
        return find_handed_over(name, config)
    if name.startswith(torchvision_sets.PREFIX):
        return torchvision_sets.find_torchvision(name, config)
    if is_url(name) and is_remote_file(name):
        return _find_in_fetched(config, find_in_file)
    if is_url(name):
        return find_in_remote_folder(name)
    if is_parquet_pattern(name):
        return find_in_parquet(name, config)
    return None


def _find_in_fetched(
    config: ImagesConfig, find_in_file: Callable[[Path], LocatedImages]
) -> LocatedImages:
    copies = fetch(config.path, config)
    kinds = {copy.suffix for copy in copies}
    if kinds == {".tar"}:
        return find_in_tar(copies, config.path)
    if len(copies) == 1:
        return find_in_file(copies[0])
    if kinds == {".parquet"}:
        return LocatedImages(list_parquet([str(copy) for copy in copies], config))
    raise ImagesError(
        f"{config.path} stands for {len(copies)} files. Only .tar and .parquet files may be "
        "several; give the URL of one."
    )
