"""Parquet files with a column of encoded images, as Hugging Face's hub and others hold them.

A row of a Parquet file cannot be read without its row group, so the encoded images are copied once,
in row order, to a spool: a file in the cache folder from which any of them can be read.
"""

import glob
import hashlib
import json
import os
import shutil
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Final, Protocol

import numpy as np
from filelock import FileLock

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.index import file_stamp
from diptych.images.inventory import Skipped
from diptych.images.listing import Listing
from diptych.images.pixels import cache_folder
from diptych.images.sources.arrow import (
    Columns,
    encoded_images,
    find_columns,
    labels_of,
    name_rows,
    paths_of,
    reading,
)
from diptych.images.splits import LocatedImages, by_split, choose_splits
from diptych.images.tree import walk
from diptych.runs.atomic import atomic_path

HELD_BYTES: Final = 256 * 2**20
"""Encoded images of fewer bytes than this are held in memory, not spooled."""


_VERSION: Final = 1
_MARK: Final = b"diptych\x01"
_LARGEST_NOTE: Final = 64 * 2**20
_ROOM_LEFT: Final = 2**28  # bytes of the disk that a spool leaves free
_CHECK_EVERY: Final = 2**26  # bytes written between two looks at the free room
_BATCH: Final = 64  # rows in memory at once
_SPOOLS: Final = 4  # of some of the files, each of which may be held in memory


def find_parquet(path: str, config: ImagesConfig) -> list[str]:
    """The Parquet files that a path names: a file, those in a folder, or those of a pattern."""
    if os.path.isdir(path):
        found = [os.path.join(path, name) for name in walk(Path(path), config).containers]
    else:
        found = [path] if os.path.exists(path) else glob.glob(path, recursive=True)
    tables = (name for name in found if name.lower().endswith(".parquet"))
    return sorted(name for name in tables if os.path.isfile(name))


def is_parquet_pattern(path: str) -> bool:
    """Whether it stands for several files: wildcards, and .parquet at the end."""
    return path.endswith(".parquet") and glob.has_magic(path)


def find_in_parquet(path: str, config: ImagesConfig) -> LocatedImages:
    """The images to learn from and, where files are named as held-out ones, those.

    Args:
        path: a file, a folder or a pattern.
        config: the column, and where the copy goes.

    Raises:
        ImagesError: no such files, no column of images, or a damaged file.
    """
    files = find_parquet(path, config)
    if not files:
        raise ImagesError(f"{path}: no .parquet files there.")
    root = path if os.path.isdir(path) else os.path.commonpath([os.path.dirname(f) for f in files])
    return find_in_tables(
        files, [os.path.relpath(file, root or ".") for file in files], path, config
    )


def find_in_tables(
    files: Sequence[str], names: Sequence[str], origin: str, config: ImagesConfig
) -> LocatedImages:
    """The rows of some files, in parts by the names of these.

    Args:
        files: their paths.
        names: of each, with the folders that may say of which part it is.
        origin: what the user gave, named in errors.
        config: as for ``find_in_parquet``.
    """
    place, parts = dict(zip(names, files, strict=True)), by_split(names)
    chosen = choose_splits(parts, origin)

    def rows(part: str) -> Listing:
        return list_parquet([place[name] for name in parts[part]], config, part)

    return LocatedImages(
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
            beside = columns.beside  # read by one thread, as vectors are in shard_files
            tables.append(parquet.read(beside, use_threads=False) if beside else None)
    paths = [
        paths_of(table, columns) if columns.has_path else [None] * count
        for table, count in zip(tables, rows, strict=True)
    ]
    labels, classes = labels_of(tables, columns, origin)
    names = name_rows(paths, _stems(files))
    stamps = [file_stamp(file) for file in files]
    starts = np.cumsum([0, *rows])

    def file_of(index: int) -> int:
        return int(np.searchsorted(starts, index, side="right")) - 1

    # Not anew for each part: images are also asked for one by one, as for their pictures.
    @lru_cache(_SPOOLS)
    def spool_of(first: int, end: int) -> _LateSpool:
        spool = partial(_spool, files[first:end], columns, stamps[first:end], config)
        return _LateSpool(spool, sum(rows[first:end]), origin)

    def read_part(some: range) -> Callable[[int], bytes]:
        first, end = (file_of(some.start), file_of(some.stop - 1) + 1) if some else (0, 0)
        read, start = spool_of(first, end).read, int(starts[first])
        return lambda index: read(index - start)

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


def _stems(files: Sequence[str]) -> list[str]:
    """Names of files without their ends; with their folders where two are called alike."""
    stems = [Path(file).stem for file in files]
    if len(set(stems)) == len(stems):
        return stems
    root = os.path.commonpath([os.path.dirname(file) for file in files])
    return [str(Path(os.path.relpath(file, root or ".")).with_suffix("")) for file in files]


class _LateSpool:
    """Spooled when the first image is read: not at all where the decoded ones are kept."""

    def __init__(self, spool: Callable[[], "Encoded"], count: int, origin: str) -> None:
        self._spool, self._count, self._origin = spool, count, origin
        self._lock, self._images = Lock(), list["Encoded"]()

    def read(self, index: int) -> bytes:
        # Held while the rows are copied: other threads wait for the copy and do not begin a second.
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
) -> "Encoded":
    places = [os.path.abspath(file) for file in files]
    # Without the stamps, which are in `source`: changed files replace their own spool.
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
    arrow = import_module("pyarrow.parquet")
    # Arrow itself opens no name that is not UTF-8.
    with (
        reading(file),
        open(file, "rb") as opened,
        arrow.ParquetFile(opened, pre_buffer=False) as parquet,
    ):
        yield parquet


class Encoded(Protocol):
    """Encoded images of which any may be read."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """The bytes of one image; raises UnreadableImage where there are none."""
        ...


@dataclass(frozen=True)
class SpoolPlace:
    """Where a spool goes and how much it may take.

    Attributes:
        file: of the spool.
        most_bytes: it may have.
        held_bytes: up to so many are held in memory instead.
    """

    file: Path
    most_bytes: int
    held_bytes: int = HELD_BYTES


def open_spool(
    place: SpoolPlace, source: Any, images: Callable[[], Iterable[bytes | None]]
) -> Encoded:
    """The images from an earlier spool, or read once more from where they come from.

    Args:
        place: of the spool.
        source: says which bytes these are, as JSON can; a spool of another source is replaced.
        images: gives the encoded images in order; None or nothing for one that is missing.

    Raises:
        ImagesError: they do not fit, or cannot be written.
    """
    earlier = _SpoolFile.find(place.file, source)
    if earlier is not None:
        return earlier
    waiting, held = iter(images()), list[bytes]()
    size = 0
    for image in waiting:
        held.append(image or b"")
        size += len(held[-1])
        if size > place.held_bytes:
            break
    else:
        return _HeldImages(held)
    try:
        return _write_locked(place, source, _chain(held, waiting))
    except OSError as error:
        raise ImagesError(
            f"{place.file} cannot be written: {error.strerror or error}. It holds a copy of the "
            "encoded images; choose another place by images.cache_folder, or by "
            "XDG_CACHE_HOME."
        ) from error


@dataclass(frozen=True)
class _HeldImages:
    images: list[bytes]

    def __len__(self) -> int:
        return len(self.images)

    def read(self, index: int) -> bytes:
        return _present(self.images[index])


class _SpoolFile:
    """A spool that was written completely; its index is in memory, its images are not."""

    def __init__(self, path: Path, source: Any) -> None:
        self._path, self._descriptor = path, os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self._descriptor)
        size = os.fstat(self._descriptor).st_size
        tail = os.pread(self._descriptor, 16, max(0, size - 16))
        length = int.from_bytes(tail[:8], "little")
        if tail[8:] != _MARK or length > min(size - 16, _LARGEST_NOTE):
            raise ValueError("cut short")
        note = json.loads(os.pread(self._descriptor, length, size - 16 - length))
        if note["version"] != _VERSION or note["source"] != source:
            raise ValueError("of another source")
        count, index_start = int(note["images"]), int(note["bytes"])
        index = os.pread(self._descriptor, 12 * count + 8, index_start)
        if index_start + 12 * count + 8 + length + 16 != size or zlib.crc32(index) != note["sum"]:
            raise ValueError("damaged")
        self._offsets = np.frombuffer(index, dtype="<i8", count=count + 1)
        self._sums = np.frombuffer(index, dtype="<u4", offset=8 * (count + 1))

    @classmethod
    def find(cls, path: Path, source: Any) -> "_SpoolFile | None":
        """The spool at a path; None where there is none, or another's, or a damaged one."""
        try:
            return cls(path, source)
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            return None

    def __len__(self) -> int:
        return len(self._sums)

    def read(self, index: int) -> bytes:
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        data = os.pread(self._descriptor, end - start, start)
        if len(data) != end - start or zlib.crc32(data) != self._sums[index]:
            self._path.unlink(missing_ok=True)
            raise ImagesError(
                f"{self._path}, a copy of the encoded images, was damaged and has been removed. "
                "Begin again, or go on with --resume: it is made anew."
            )
        return _present(data)


def _write_locked(place: SpoolPlace, source: Any, images: Iterator[bytes]) -> _SpoolFile:
    place.file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(place.file.with_suffix(".lock")):
        earlier = _SpoolFile.find(place.file, source)  # another process may have been faster
        if earlier is not None:
            return earlier
        with atomic_path(place.file) as temporary, open(temporary, "wb") as file:
            _write(file, place, source, images)
        return _SpoolFile(place.file, source)


def _write(file: BinaryIO, place: SpoolPlace, source: Any, images: Iterator[bytes]) -> None:
    offsets, sums, looked_at = array("q", [0]), array("I"), -_CHECK_EVERY
    for image in images:
        end = offsets[-1] + len(image)
        if end > place.most_bytes:
            raise ImagesError(
                f"the encoded images take more than images.cache_file_megabytes = "
                f"{place.most_bytes // 2**20} in {place.file.parent}. Raise it, or use fewer files."
            )
        if end - looked_at >= _CHECK_EVERY:
            _require_room(place.file.parent, len(image))
            looked_at = end
        file.write(image)
        offsets.append(end)
        sums.append(zlib.crc32(image))
    index = np.array(offsets, dtype="<i8").tobytes() + np.array(sums, dtype="<u4").tobytes()
    note = {
        "version": _VERSION,
        "source": source,
        "images": len(sums),
        "bytes": offsets[-1],
        "sum": zlib.crc32(index),
    }
    encoded = json.dumps(note).encode()
    # The mark comes last, so that a spool that was cut short has none.
    file.write(index + encoded + len(encoded).to_bytes(8, "little") + _MARK)


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < _ROOM_LEFT + _CHECK_EVERY + size:
        raise ImagesError(
            f"the disk of {folder} is nearly full ({free // 2**20} MB free), and a copy of the "
            "encoded images does not fit. Free some, or choose another place by "
            "images.cache_folder, or by XDG_CACHE_HOME."
        )


def _chain(held: list[bytes], waiting: Iterator[bytes | None]) -> Iterator[bytes]:
    held.reverse()
    while held:  # frees each as it is written
        yield held.pop()
    for image in waiting:
        yield image or b""


def _present(data: bytes) -> bytes:
    if not data:
        raise UnreadableImage("no bytes: the row names a file only, or holds nothing")
    return data
