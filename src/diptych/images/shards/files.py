"""Shards by file, folder or pattern; reading pieces of them from several threads."""

import glob
import itertools
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.index import file_stamp

_MOST_OPEN: Final = 64  # shards
_MOST_NAMES: Final = 100_000  # that braces may stand for
_BRACES: Final = re.compile(r"\{([^{}]*)\}")
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")


def is_shard_pattern(path: str) -> bool:
    """Whether it stands for several shards: braces or wildcards, and .tar at the end."""
    return path.endswith(".tar") and any(mark in path for mark in "{*?[")


def find_shards(path: str) -> list[Path]:
    """The shards that a pattern stands for, sorted.

    Raises:
        ImagesError: there are none, or one that braces name is missing.
    """
    found = set[str]()
    for name in expand_braces(path):
        matches = glob.glob(name) if glob.has_magic(name) else [name]
        missing = [match for match in matches if not os.path.isfile(match)]
        if missing or not matches:
            raise ImagesError(f"{path}: there is no shard {(missing or [name])[0]}.")
        found.update(matches)
    return [Path(name) for name in sorted(found)]


def expand_braces(pattern: str) -> list[str]:
    """The names that braces stand for: ``{000..012}`` counts, ``{a,b}`` lists.

    >>> expand_braces("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    """
    parts = [[text] for text in _BRACES.split(pattern)]
    parts[1::2] = [_choices(text, pattern) for (text,) in parts[1::2]]
    count = 1
    for part in parts:
        count *= len(part)
    if count > _MOST_NAMES:
        raise ImagesError(f"{pattern} stands for {count:,} names; wanted {_MOST_NAMES:,} at most.")
    return ["".join(choice) for choice in itertools.product(*parts)]


def _choices(text: str, pattern: str) -> list[str]:
    counted = _RANGE.fullmatch(text)
    if counted is None:
        return text.split(",")
    first, last = int(counted[1]), int(counted[2])
    if not 0 <= last - first < _MOST_NAMES:
        raise ImagesError(
            f"{pattern}: {{{text}}} must count upwards over at most {_MOST_NAMES:,} names."
        )
    return [str(number).zfill(len(counted[1])) for number in range(first, last + 1)]


class Shards:
    """Files kept open, a bounded number of them, read at any place by any thread."""

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.stamps = [_stamp(os.stat(path)) for path in paths]
        self.changed = [file_stamp(path)[1] for path in paths]
        self._lock = threading.Lock()
        self._open: OrderedDict[int, int] = OrderedDict()  # shard: descriptor, last used last
        self._users: dict[int, int] = {}

    def read(self, shard: int, offset: int, size: int) -> bytes:
        """The bytes at a place of a shard.

        Raises:
            UnreadableImage: the shard is gone, has changed, or ends before.
        """
        try:
            with self._descriptor(shard) as descriptor:
                data = os.pread(descriptor, size, offset)
        except OSError as error:
            raise UnreadableImage(f"{self.paths[shard]}: {error.strerror or error}") from error
        if len(data) != size:
            raise UnreadableImage(f"{self.paths[shard]} is cut off")
        return data

    @contextmanager
    def _descriptor(self, shard: int) -> Iterator[int]:
        with self._lock:
            descriptor = self._open.pop(shard, None)
            if descriptor is None:
                descriptor = self._opened(shard)
            self._open[shard] = descriptor
            self._users[shard] = self._users.get(shard, 0) + 1
            self._close_some()
        try:
            yield descriptor
        finally:
            with self._lock:
                self._users[shard] -= 1

    def _opened(self, shard: int) -> int:
        descriptor = os.open(self.paths[shard], os.O_RDONLY)
        if _stamp(os.fstat(descriptor)) != self.stamps[shard]:
            os.close(descriptor)
            raise UnreadableImage(f"{self.paths[shard]} has changed since it was listed")
        return descriptor

    def _close_some(self) -> None:
        for shard in list(self._open):
            if len(self._open) <= _MOST_OPEN:
                return
            if not self._users.get(shard):
                os.close(self._open.pop(shard))

    def __del__(self) -> None:
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns
