"""What is known of the files of a set apart from their pixels: made once on a machine, and kept.

Every file is read and decoded once, to know its size, its checksum, and whether it can be used at
all. That is kept in a file of its own beside the decoded images, a row for each name. A row
holds as long as the size and the time of change of its file are the same, and only if that time
lay clearly before the row was made: a file that changes within the tick of a clock is looked at
again. The file is thrown away when anything in it is in doubt. Nothing in it is ever unpickled.
"""

import hashlib
import json
import os
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.escaping import openable
from diptych.images.codecs.decode import decode_bytes, pages
from diptych.images.collection import CompactNames
from diptych.images.pixels import cache_folder
from diptych.runs.atomic import atomic_write

_VERSION: Final = "3"
_CHUNK: Final = 256  # images looked at between two calls of `on_progress`
_DOUBT_NANOSECONDS: Final = 2_000_000_000  # the coarsest clock of a file system ticks that slowly
_NEVER: Final = 2**63 - 1  # a time of change that is never old enough to trust


@dataclass(frozen=True)
class Index:
    """Rows of files.

    Attributes:
        heights: int64 (files,), in full; 0 of one that cannot be used.
        widths: int64 (files,).
        channels: int64 (files,), as decoded; with the colour mode "raw" those of the file.
        checksums: uint64 (files, 2), of the encoded bytes; 0 of one of which nothing is known.
        pages: int64 (files,), pictures in the file, of which the first is used.
        reasons: why the files that cannot be used cannot, by row.
    """

    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    channels: NDArray[np.int64]
    checksums: NDArray[np.uint64]
    pages: NDArray[np.int64]
    reasons: dict[int, str]

    @classmethod
    def empty(cls, count: int) -> "Index":
        """Of files that have not been looked at yet."""
        heights, widths, channels, pages = np.zeros((4, count), dtype=np.int64)
        return cls(heights, widths, channels, np.zeros((count, 2), np.uint64), pages, {})

    def select(self, rows: NDArray[np.int64]) -> "Index":
        """Some of the rows in the order asked for; one of -1 is empty."""
        found = Index.empty(len(rows))
        there = np.flatnonzero(rows >= 0)
        for name in _COLUMNS:
            getattr(found, name)[there] = getattr(self, name)[rows[there]]
        if self.reasons:
            places = ((place, int(rows[place])) for place in there.tolist())
            known = self.reasons
            found.reasons.update({new: known[old] for new, old in places if old in known})
        return found


_COLUMNS: Final = ("heights", "widths", "channels", "checksums", "pages")


@dataclass(frozen=True)
class _StoredIndex:
    """An index as it lies on disk, with what decides whether its rows still hold.

    Attributes:
        index: the rows.
        names: of the files.
        stamps: int64 (files, 2), size and time of change when they were looked at.
        begun: time in nanoseconds before the first of them was looked at.
    """

    index: Index
    names: CompactNames
    stamps: NDArray[np.int64]
    begun: int

    def rows_of(self, names: CompactNames, stamps: NDArray[np.int64]) -> NDArray[np.int64]:
        """(names,): for each the row that still holds, -1 for none."""
        if not len(self.names):
            return np.full(len(names), -1, dtype=np.int64)
        if names.same_as(self.names):
            rows = np.arange(len(names), dtype=np.int64)
        else:
            place = {name: row for row, name in enumerate(self.names)}
            rows = np.array([place.get(name, -1) for name in names], dtype=np.int64)
        # A row of -1 reads the last one here, and the second condition throws it out.
        good = (self.stamps[rows] == stamps).all(axis=1) & (rows >= 0)
        good &= stamps[:, 1] < self.begun - _DOUBT_NANOSECONDS
        good &= self.index.checksums[rows].any(axis=1)  # a file that could not be read may be well
        return np.where(good, rows, -1)


def find_index(
    names: CompactNames,
    read: Callable[[int], bytes],
    stamp: Callable[[int], tuple[int, int]] | None,
    place: Path,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Callable[[int, int], None],
) -> tuple[Index, str | None]:
    """The index of some files: rows that are kept and still hold, and the rest read and decoded.

    Args:
        names: of the files.
        read: gives the encoded bytes of one by its place; raises UnreadableImage.
        stamp: gives size and time of change of one, without reading it. Where there is none, all
            are looked at; where it raises OSError, that one is.
        place: where the index is kept.
        config: limits and form; which files can be used depends on them.
        executor: its threads read and decode.
        on_progress: called with how many of the files to look at are done, and their number.

    Returns:
        The index, and a sentence where it could not be kept.
    """
    look = _FileReader(names, read, replace(config, raw_channels=None, decoded_side=None))
    if stamp is None:
        everything = np.full(len(names), -1, dtype=np.int64)
        return look.complete(Index.empty(0), everything, executor, on_progress), None
    stored, stamps = _load(place), _stamps(stamp, len(names))
    rows = stored.rows_of(names, stamps)
    # First without the lock: where all is known, as mostly, nobody waits.
    if len(rows) and rows.min() >= 0:
        return stored.index.select(rows), None
    # One process of many looks; the others wait, and find what it kept.
    with _locked(place):
        begun = time.time_ns()  # before the stamps: files that change from now on are doubted
        stored, stamps = _load(place), _stamps(stamp, len(names))
        rows = stored.rows_of(names, stamps)
        index = look.complete(stored.index, rows, executor, on_progress)
        try:
            _save(place, _StoredIndex(index, names, stamps, begun))
        except OSError as error:
            return index, (
                f"What is known of the images could not be kept in {place.parent} "
                f"({error.strerror or error}): every image is decoded anew whenever the set is "
                "opened. images.cache_folder names another place."
            )
    return index, None


@dataclass(frozen=True)
class _FileReader:
    """Reads and decodes files.

    Attributes:
        names: of the files.
        read: gives the encoded bytes of one by its place.
        config: how to decode; the channels of "raw" are the file's own.
    """

    names: Sequence[str]
    read: Callable[[int], bytes]
    config: ImagesConfig

    def complete(
        self,
        known: Index,
        rows: NDArray[np.int64],
        executor: Executor,
        on_progress: Callable[[int, int], None],
    ) -> Index:
        """The rows of an index that are known, and the rest looked at."""
        index, missing = known.select(rows), np.flatnonzero(rows < 0)
        for start in range(0, len(missing), _CHUNK):  # bounds what waits in memory
            some = missing[start : start + _CHUNK].tolist()
            for place, found in zip(some, executor.map(self._one, some), strict=True):
                _put(index, place, found)
            on_progress(min(start + _CHUNK, len(missing)), len(missing))
        return index

    def _one(self, place: int) -> "_FileFacts":
        data = b""
        try:
            data = self.read(place)
            height, width, channels = decode_bytes(data, self.config).shape
        except UnreadableImage as error:
            # What the machine lacked at the time says nothing of the file.
            told = data and not isinstance(error.__cause__, MemoryError)
            return _FileFacts((0, 0, 0), checksum(data) if told else (0, 0), reason=str(error))
        shape = (height, width, channels)
        return _FileFacts(shape, checksum(data), pages(data))


class _FileFacts(NamedTuple):
    shape: tuple[int, int, int]
    checksum: tuple[int, int]
    pages: int = 0
    reason: str | None = None


def checksum(data: bytes | memoryview) -> tuple[int, int]:
    """128 bits of an image's encoded bytes: equal for equal bytes, whatever the name."""
    digest = hashlib.blake2b(data, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def file_stamp(path: str | Path) -> tuple[int, int]:
    """Size of a file and its last change, of its bytes or of its entry (as a copy moved there).

    Raises:
        OSError: it is not there.
    """
    status = os.stat(path)
    # `cp -p` and archives set mtime back to what it was; ctime cannot be set.
    return status.st_size, max(status.st_mtime_ns, status.st_ctime_ns)


@lru_cache
def decoders() -> str:
    """Versions of the packages that decode: rows and pixels depend on them too."""
    packages = ["diptych", "imagecodecs", "pillow", "simplejpeg", "tifffile"]
    # A file that could not be read without one of these is looked at again when it is there.
    extras = (("pillow_heif", "pillow-heif"), ("pydicom", "pydicom"), ("av", "av"))
    packages += [name for module, name in extras if find_spec(module) is not None]
    return " ".join([_VERSION, *map(_with_version, packages)])


def _with_version(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:  # not installed, or in the path without its metadata
        return f"{package} none"


def index_path(origin: str, part: str, config: ImagesConfig) -> Path:
    """Where the index of a set lies: a changed set replaces its own."""
    return cache_folder(config) / f"{set_name(origin, part, config)}.index"


def set_name(origin: str, part: str, config: ImagesConfig, *more: object) -> str:
    """A name for files about one part of a set as it is decoded."""
    # The limits too, as they decide which images there are and which of them can be used.
    form = (config.color, config.bits, config.max_megapixels, config.limit, *config.selection)
    if config.column is not None:  # of tables; sets without keep the names of before
        form = (*form, config.column)
    asked = "\0".join(map(str, [os.path.abspath(origin), part, *form, *more]))
    return hashlib.sha256(asked.encode(errors="surrogateescape")).hexdigest()[:32]


def _put(index: Index, place: int, found: _FileFacts) -> None:
    index.heights[place], index.widths[place], index.channels[place] = found.shape
    index.checksums[place], index.pages[place] = found.checksum, found.pages
    if found.reason is not None:
        index.reasons[place] = found.reason


def _stamps(stamp: Callable[[int], tuple[int, int]], count: int) -> NDArray[np.int64]:
    found = array("q")
    for place in range(count):
        try:
            found.extend(stamp(place))
        except OSError:  # missing: it will be listed as unreadable
            found.extend((-1, _NEVER))
    return np.array(found, dtype=np.int64).reshape(count, 2)


@contextmanager
def _locked(place: Path) -> Iterator[None]:
    """Alone with the file of an index; not so where nothing can be written, as nothing is kept."""
    lock = FileLock(f"{place}.lock")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError:
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _save(place: Path, stored: _StoredIndex) -> None:
    text, ends = stored.names.packed()
    tensors = {name: getattr(stored.index, name) for name in _COLUMNS}
    tensors |= {"names": np.frombuffer(text, np.uint8), "ends": ends, "stamps": stored.stamps}
    reasons = json.dumps(list(stored.index.reasons.items())).encode()
    tensors["reasons"] = np.frombuffer(reasons, np.uint8)
    # safetensors has no checksum of its own.
    marks = {"version": decoders(), "begun": str(stored.begun), "sum": _sum(tensors)}
    atomic_write(place, save(tensors, marks))


def _load(place: Path) -> _StoredIndex:
    """What is kept; nothing where it is missing, of another version, or damaged."""
    try:
        with openable(place) as name, safe_open(name, framework="np") as file:
            marks = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if (marks["version"], marks["sum"]) != (decoders(), _sum(tensors)):
            return _NOTHING
        reasons = dict(json.loads(tensors["reasons"].tobytes()))
        ends = tensors["ends"]
        names = CompactNames(tensors["names"].tobytes(), np.concatenate([[0], ends[:-1]]), ends)
        index = Index(**{name: tensors[name] for name in _COLUMNS}, reasons=reasons)
        return _StoredIndex(index, names, tensors["stamps"], int(marks["begun"]))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError):
        return _NOTHING


def _sum(tensors: Mapping[str, NDArray[Any]]) -> str:
    digest = hashlib.blake2b()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


_NOTHING: Final = _StoredIndex(Index.empty(0), CompactNames.of([]), np.zeros((0, 2), np.int64), 0)
