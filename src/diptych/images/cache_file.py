"""Decoded images in one file: written aside and renamed, checked whole before it is believed.

The layout: a page with a header in JSON; the pixels, end to end; then, as int64, the places of the
images in their listing, their heights and widths; then in JSON the images that were left out and a
checksum for each stretch of pixels. Nothing in it is ever unpickled.
"""

import hashlib
import json
import os
import tempfile
import time
import zlib
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.images.collection import Skipped
from diptych.images.form import Pixels

_VERSION: Final = 1
_PAGE: Final = 4096  # bytes before the pixels
_STRETCH: Final = 16 * 2**20  # bytes of pixels under one checksum, or a little more
_ABANDONED_SECONDS: Final = 24 * 3600.0  # a writer touches its file far more often


@dataclass(frozen=True)
class Decoded:
    """What opening a set finds, apart from the pixels.

    Attributes:
        places: int64 (images,), of the images that can be used, in the listing; ascending.
        heights: int64 (images,).
        widths: int64 (images,).
        skipped: the images left out.
    """

    places: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    skipped: tuple[Skipped, ...]


class CacheWriter:
    """Writes a cache file; it appears under its name only once it is whole.

    Two processes may write the same one at once: each writes its own, and the last rename stays.

    Raises:
        OSError: from any method, when the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(path)
        handle, name = tempfile.mkstemp(".part", f"{path.name}.", path.parent)
        self._file: IO[bytes] = open(handle, "wb")  # noqa: SIM115 - closed by finish or abandon
        self._path, self._aside = path, Path(name)
        self._sums: list[tuple[int, int]] = []
        self._sum = self._begun = self.pixel_bytes = 0
        self._file.write(bytes(_PAGE))

    def add(self, pixels: bytearray | memoryview) -> None:
        """Appends the bytes of the pixels of an image, or of several."""
        self._file.write(pixels)
        self._sum = zlib.crc32(pixels, self._sum)
        self.pixel_bytes += len(pixels)
        if self.pixel_bytes - self._begun >= _STRETCH:
            self._end_stretch()

    def finish(self, decoded: Decoded, key: str) -> None:
        """Writes what belongs to the pixels, and renames the file."""
        self._end_stretch()
        columns = (decoded.places, decoded.heights, decoded.widths)
        skipped = [(one.name, one.reason) for one in decoded.skipped]
        table = b"".join(column.tobytes() for column in columns)
        table += json.dumps({"skipped": skipped, "sums": self._sums}).encode()
        header = {
            "version": _VERSION,
            "key": key,
            "images": len(decoded.places),
            "pixel_bytes": self.pixel_bytes,
            "table_bytes": len(table),
            "table_sum": hashlib.sha256(table).hexdigest(),
        }
        self._file.write(table)
        self._file.seek(0)
        self._file.write(json.dumps(header).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._aside, self._path)

    def abandon(self) -> None:
        """Removes what was written."""
        with suppress(OSError):
            self._file.close()
        self._aside.unlink(missing_ok=True)

    def _end_stretch(self) -> None:
        if self.pixel_bytes > self._begun:
            self._sums.append((self.pixel_bytes, self._sum))
        self._sum, self._begun = 0, self.pixel_bytes


def read_cache(
    path: Path,
    key: str,
    dtype: type[np.uint8] | type[np.uint16],
    channels: int,
    executor: Executor,
) -> tuple[Decoded, Pixels] | None:
    """The contents of a cache file, its pixels mapped; None if it is missing, other or damaged.

    All of it is read once for its checksums, which takes a small part of the time of decoding.
    """
    try:
        with open(path, "rb") as file:
            header = json.loads(file.read(_PAGE).rstrip(b"\0"))
            if (header["version"], header["key"]) != (_VERSION, key):
                return None
            file.seek(_PAGE + header["pixel_bytes"])
            table = file.read()
            if hashlib.sha256(table).hexdigest() != header["table_sum"]:
                return None
            decoded, sums = _parse(table, header["images"])
            if not _agrees(decoded, header["pixel_bytes"], np.dtype(dtype).itemsize * channels):
                return None
            if not _sums_hold(file, sums, header["pixel_bytes"], executor):
                return None
            # A private mapping: it may be written to, which compiled loops take for granted.
            shape = header["pixel_bytes"] // np.dtype(dtype).itemsize
            pixels = np.memmap(file, dtype=dtype, mode="c", offset=_PAGE, shape=shape)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        return None
    return decoded, np.asarray(pixels)


def _parse(table: bytes, count: int) -> tuple[Decoded, list[Any]]:
    columns = np.frombuffer(table, dtype=np.int64, count=3 * count).reshape(3, count)
    rest = json.loads(table[columns.nbytes :])
    skipped = tuple(Skipped(name, reason) for name, reason in rest["skipped"])
    places, heights, widths = columns.copy()
    return Decoded(places, heights, widths, skipped), rest["sums"]


def _agrees(decoded: Decoded, pixel_bytes: int, bytes_each: int) -> bool:
    """Whether the images fill the pixels exactly, counted without overflow."""
    sides = np.stack([decoded.heights, decoded.widths])
    if not sides.size or sides.min() < 1 or sides.max() >= 2**31:
        return False
    areas = decoded.heights * decoded.widths
    fits = areas.max() <= pixel_bytes // bytes_each and len(areas) <= pixel_bytes
    return fits and bytes_each * sum(areas.tolist()) == pixel_bytes


def _sums_hold(file: IO[bytes], sums: list[Any], pixel_bytes: int, executor: Executor) -> bool:
    ends = [0, *(end for end, _ in sums)]
    if ends[-1] != pixel_bytes:
        return False

    def holds(number: int) -> bool:
        begin, (end, wanted) = ends[number], sums[number]
        return zlib.crc32(os.pread(file.fileno(), end - begin, _PAGE + begin)) == wanted

    return all(executor.map(holds, range(len(sums))))


def _remove_abandoned(path: Path) -> None:
    """What a process that was killed left of this file."""
    for aside in path.parent.glob(f"{path.name}.*.part"):
        with suppress(OSError):
            if time.time() - aside.stat().st_mtime > _ABANDONED_SECONDS:
                aside.unlink()
