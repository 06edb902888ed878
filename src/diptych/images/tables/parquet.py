"""Parquet files with a column of encoded images, as Hugging Face's hub and others hold them.

A row of a Parquet file cannot be read without its row group, so the encoded images are copied once,
in row order, to where any of them can be read (see ``spool``).
"""

import glob
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, Final

import numpy as np

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.cache import cache_folder
from diptych.images.collection import Skipped
from diptych.images.index import file_stamp
from diptych.images.listing import Listing
from diptych.images.splits import Found, by_split, choose_splits
from diptych.images.tables.arrow import (
    Columns,
    encoded_images,
    find_columns,
    import_arrow,
    labels_of,
    name_rows,
    paths_of,
    reading,
)
from diptych.images.tables.spool import Encoded, SpoolPlace, open_spool
from diptych.images.tree import walk

_BATCH: Final = 64  # rows in memory at once


def find_parquet(path: str) -> list[str]:
    """The Parquet files that a path names: a file, those in a folder, or those of a pattern."""
    if os.path.isdir(path):
        found = [os.path.join(path, name) for name in walk(Path(path)).containers]
    else:
        found = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    tables = (name for name in found if name.lower().endswith(".parquet"))
    return sorted(name for name in tables if os.path.isfile(name))


def is_parquet_pattern(path: str) -> bool:
    """Whether it stands for several files: wildcards, and .parquet at the end."""
    return path.endswith(".parquet") and glob.has_magic(path)


def find_in_parquet(path: str, config: ImagesConfig) -> Found:
    """The images to learn from and, where files are named as held-out ones, those.

    Args:
        path: a file, a folder or a pattern.
        config: the column, and where the copy goes.

    Raises:
        ImagesError: no such files, no column of images, or a damaged file.
    """
    files = find_parquet(path)
    if not files:
        raise ImagesError(f"{path}: no .parquet files there.")
    root = path if os.path.isdir(path) else os.path.commonpath([os.path.dirname(f) for f in files])
    parts = by_split(os.path.relpath(file, root or ".") for file in files)
    chosen = choose_splits(parts, path)

    def rows(part: str) -> Listing:
        return list_parquet([os.path.join(root, name) for name in parts[part]], config, part)

    return Found(
        rows(chosen.train),
        map(rows, chosen.held_out),
        train_part=chosen.train,
        left_out=tuple(
            Skipped(parts[name][0], "a file of rows of no part", "", len(parts[name]))
            for name in chosen.unused
        ),
        remarks=chosen.remarks,
    )


def list_parquet(files: Sequence[str], config: ImagesConfig, part: str = "") -> Listing:
    """The rows of some files of the same columns, in order."""
    origin = files[0] if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    with _opened(files[0]) as parquet:
        columns = find_columns(parquet.schema_arrow, config.column, files[0])
    tables, rows = list[Any](), list[int]()
    for file in files:
        with _opened(file) as parquet:
            if find_columns(parquet.schema_arrow, columns.image, file) != columns:
                raise ImagesError(
                    f"{file} has other columns or classes than {files[0]}; give one alone."
                )
            rows.append(parquet.metadata.num_rows)
            tables.append(parquet.read(columns=columns.beside) if columns.beside else None)
    paths = [
        paths_of(table, columns) if columns.has_path else [None] * count
        for table, count in zip(tables, rows, strict=True)
    ]
    labels, classes = labels_of(tables, columns, origin)
    names = name_rows(paths, [Path(file).stem for file in files])
    stamps = [file_stamp(file) for file in files]
    starts = np.cumsum([0, *rows])

    def file_of(index: int) -> int:
        return int(np.searchsorted(starts, index, side="right")) - 1

    def read_part(some: range) -> Callable[[int], bytes]:
        own = slice(file_of(some.start), file_of(some.stop - 1) + 1) if some else slice(0)
        spool = partial(_spool, files[own], columns, stamps[own], config)
        read = _LateSpool(spool, sum(rows[own]), origin).read
        return lambda index: read(index - int(starts[own.start or 0]))

    return Listing(
        origin,
        names,
        read_part(range(sum(rows))),
        labels,
        classes,
        part,
        stamp=lambda index: stamps[file_of(index)],
        read_part=read_part,
    )


class _LateSpool:
    """Spooled when the first image is read: not at all where the decoded ones are kept."""

    def __init__(self, spool: Callable[[], Encoded], count: int, origin: str) -> None:
        self._spool, self._count, self._origin = spool, count, origin
        self._lock, self._images = Lock(), list[Encoded]()

    def read(self, index: int) -> bytes:
        with self._lock:
            if not self._images:
                images = self._spool()
                if len(images) != self._count:
                    raise ImagesError(
                        f"{self._origin} has {len(images)} images in {self._count} rows; it is "
                        "damaged, or changed while it was read."
                    )
                self._images.append(images)
        return self._images[0].read(index)


def _spool(
    files: Sequence[str], columns: Columns, stamps: list[tuple[int, int]], config: ImagesConfig
) -> Encoded:
    places = [os.path.abspath(file) for file in files]
    key = hashlib.sha256("\0".join([columns.image, *places]).encode(errors="surrogateescape"))
    place = SpoolPlace(
        cache_folder(config) / f"parquet-{key.hexdigest()[:32]}.spool",
        most_bytes=config.cache_file_megabytes * 2**20,
    )
    source = [columns.encoded, places, [list(stamp) for stamp in stamps]]
    return open_spool(place, source, lambda: _images(files, columns))


def _images(files: Sequence[str], columns: Columns) -> Iterator[bytes | None]:
    for file in files:
        with _opened(file) as parquet:
            # One after the other: read ahead by threads, a whole row group would be in memory.
            for batch in parquet.iter_batches(_BATCH, columns=[columns.encoded], use_threads=False):
                for image in encoded_images(batch.column(0)):
                    yield image.as_py()


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    arrow = import_arrow("pyarrow.parquet")
    # Arrow itself opens no name that is not UTF-8.
    with (
        reading(file),
        open(file, "rb") as opened,
        arrow.ParquetFile(opened, pre_buffer=False) as parquet,
    ):
        yield parquet
