"""Encoded images copied once out of a file without random access, into one that has it.

A spool file is the images end to end, then an index, then a note in JSON, then the length of the
note and eight bytes that mark the end: so it is written in one pass, and one that was cut short is
recognised. It is written aside, synced and renamed; whoever reads the one that it replaces goes on
reading that. Few bytes are held in memory instead.
"""

import fcntl
import json
import os
import shutil
import weakref
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

import numpy as np

from diptych.errors import ImagesError, UnreadableImage
from diptych.run_folder import sync_folder

HELD_BYTES: Final = 256 * 2**20
"""Encoded images of fewer bytes than this are held in memory, not spooled."""

_VERSION: Final = 1
_MARK: Final = b"diptych\x01"
_LARGEST_NOTE: Final = 64 * 2**20
_ROOM_LEFT: Final = 2**28  # bytes of the disk that a spool leaves free
_CHECK_EVERY: Final = 2**26  # bytes written between two looks at the free room


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
            "encoded images; choose another place by --images.cache-folder."
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
    with _locked(place.file.with_suffix(".lock")):
        earlier = _SpoolFile.find(place.file, source)  # another process may have been faster
        if earlier is not None:
            return earlier
        aside = place.file.with_suffix(".aside")
        try:
            with open(aside, "wb") as file:
                _write(file, place, source, images)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, place.file)
        finally:
            aside.unlink(missing_ok=True)
        sync_folder(place.file.parent)
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
    file.write(index + encoded + len(encoded).to_bytes(8, "little") + _MARK)


def _require_room(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < _ROOM_LEFT + _CHECK_EVERY + size:
        raise ImagesError(
            f"the disk of {folder} is nearly full ({free // 2**20} MB free), and a copy of the "
            "encoded images does not fit. Free some, or choose another place by "
            "--images.cache-folder."
        )


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the lock goes when its holder ends, however it ends."""
    with open(path, "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


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
