"""Hugging Face data sets that are handed over as Python objects: their rows to a listing."""

import hashlib
import sys
from typing import Any, Final

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.decode import read_bytes
from diptych.images.inventory import Skipped
from diptych.images.listing import Listing
from diptych.images.sources.arrow import (
    find_columns,
    labels_of,
    name_rows,
    paths_of,
    row_image,
)
from diptych.images.splits import LocatedImages, choose_splits

_ROWS: Final = 1000  # looked at together when names are collected


def is_dataset(images: object) -> bool:
    """Whether it is one of the classes of ``datasets``; does not import them."""
    module = sys.modules.get("datasets")
    names = ("Dataset", "DatasetDict", "IterableDataset", "IterableDatasetDict")
    return module is not None and isinstance(images, tuple(getattr(module, n) for n in names))


def fingerprint(images: Any) -> str:
    """That of the library: of the data and of all that was done to it.

    Raises:
        ImagesError: its rows have one order only.
    """
    if "Iterable" in type(images).__name__:
        raise ImagesError(
            f"a {type(images).__name__} is read in one order only, and images are drawn in random "
            "order. Load the data set without streaming=True."
        )
    if not isinstance(images, dict):
        return str(images._fingerprint)
    digest = hashlib.sha256()
    for name, part in sorted(images.items()):
        digest.update(f"{name}={part._fingerprint}\n".encode())
    return digest.hexdigest()[:16]


def find_dataset(images: Any, name: str, config: ImagesConfig) -> LocatedImages:
    """The images of a data set, or of the parts of several under one name.

    Raises:
        ImagesError: it has no column of images, or it is not clear which part to learn from.
    """
    del name
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
    origin = f"the data set {dataset._fingerprint}"
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
