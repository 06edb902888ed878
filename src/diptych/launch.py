"""Which of how many processes this is, as torchrun says it in the environment. Imports no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from diptych.errors import ConfigError


@dataclass(frozen=True)
class Launch:
    """The place of this process among those of a run.

    Attributes:
        rank: its number, from 0.
        count: of all processes.
        local_rank: its number among those of this machine.
        local_count: of the processes of this machine.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    local_count: int = 1

    @property
    def speaks(self) -> bool:
        """Whether people are told by this process how the run goes."""
        return self.rank == 0


def launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, which torchrun sets.

    Raises:
        ConfigError: one of them is no number, or there are several processes and no rank.

    Example:
        >>> launch({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
        Launch(rank=3, count=8, local_rank=1, local_count=2)
        >>> launch({})
        Launch(rank=0, count=1, local_rank=0, local_count=1)
    """
    count = _number(environment, "WORLD_SIZE", 1)
    if count == 1:
        return Launch()
    if "RANK" not in environment:
        raise ConfigError(
            f"WORLD_SIZE = {count} says that there are {count} processes, but RANK does not say "
            "which of them this is. Start them by torchrun, or unset WORLD_SIZE."
        )
    found = Launch(
        rank=_number(environment, "RANK", 0),
        count=count,
        local_rank=_number(environment, "LOCAL_RANK", 0),
        local_count=max(1, _number(environment, "LOCAL_WORLD_SIZE", 1)),
    )
    if found.rank >= count:
        raise ConfigError(
            f"RANK = {found.rank} is not one of {count} processes (WORLD_SIZE), counted from 0. "
            "Start them by torchrun, which sets both."
        )
    return found


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip() or str(default)
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        raise ConfigError(
            f"the environment says {name} = {text!r}; wanted a whole number, as torchrun sets it."
        )
    return int(text)
