"""Which images are a shard's, and which shards a process's."""

import re
from dataclasses import dataclass
from typing import Final

from diptych.errors import ConfigError
from diptych.launch import Launch

MOST: Final = 99_999
"""Shards of a set; names have five digits."""


@dataclass(frozen=True)
class Shard:
    """One of so many parts of a set, each of consecutive images.

    Attributes:
        index: from 0.
        count: of all shards.
    """

    index: int
    count: int

    def rows(self, images: int) -> range:
        """Which of so many images are its own; shards differ by one image at most.

        >>> [Shard(index, 3).rows(10) for index in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
        """
        return range(images * self.index // self.count, images * (self.index + 1) // self.count)

    @property
    def file_name(self) -> str:
        """Of its features.

        >>> Shard(3, 16).file_name
        'features-00003-of-00016.parquet'
        """
        return f"features-{self._place}.parquet"

    @property
    def skipped_name(self) -> str:
        """Of the list of its images that could not be read."""
        return f"skipped-{self._place}.csv"

    @property
    def _place(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def parse_shard(text: str) -> Shard:
    """Reads ``i/N``.

    Raises:
        ConfigError: it is something else, or there is no such shard.

    Example:
        >>> parse_shard("3/16")
        Shard(index=3, count=16)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not found:
        raise ConfigError(f"--shard {text!r} is not understood; wanted i/N, as 3/16.")
    return checked_shard(int(found[1]), int(found[2]))


def checked_shard(index: int, count: int) -> Shard:
    """The shard with this number of so many.

    Raises:
        ConfigError: there is no such shard.
    """
    _require_count(count)
    if not 0 <= index < count:
        raise ConfigError(
            f"there is no shard {index} of {count}: they are counted from 0 to {count - 1}."
        )
    return Shard(index, count)


def own_shards(shard: str | None, shards: int | None, here: Launch) -> list[Shard]:
    """The shards that this process is to make.

    Args:
        shard: ``i/N``, the only one, as for a task of a job array.
        shards: into how many the whole is split, of which each process takes its share; one for
            each process when not given.
        here: which of how many processes this is.

    Raises:
        ConfigError: both are given, or one shard to several processes.
    """
    if shard is None:
        count = here.count if shards is None else shards
        _require_count(count)
        return [Shard(index, count) for index in range(here.rank, count, here.count)]
    if shards is not None:
        raise ConfigError(
            f"--shard {shard} is one shard, --shards {shards} is all of them; give one of the two."
        )
    if here.count > 1:
        raise ConfigError(
            f"--shard {shard} is one shard, but the environment says that there are {here.count} "
            "processes (WORLD_SIZE), and each would make it. Leave --shard away, or give --shards."
        )
    return [parse_shard(shard)]


def _require_count(count: int) -> None:
    if not 1 <= count <= MOST:
        raise ConfigError(f"wanted 1 to {MOST:,} shards; got {count}.")
