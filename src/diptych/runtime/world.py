"""Rank and number of processes, read from the environment that torchrun sets. Imports no torch."""

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from diptych.errors import ConfigError

STORE_PER_RESTART: Final = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Set to 1 for torchrun itself, each restart gets a new store. Without it gloo reads the addresses
of the ended processes in the old store, and often fails to connect."""

LAUNCHER_PRINTS_ERRORS: Final = "DIPTYCH_LAUNCHER_TELLS"
"""Set to 1 for processes whose launcher prints their errors, once for all of them."""

_ERROR_FILE: Final = "TORCHELASTIC_ERROR_FILE"  # torchrun's, one for each process it starts
_SIGNAL_WHEN_PARENT_ENDS: Final = 1  # Linux: PR_SET_PDEATHSIG


@dataclass(frozen=True)
class World:
    """Rank of this process and number of processes of a run.

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
    def is_first(self) -> bool:
        """Whether this is process 0, which alone prints and writes files."""
        return self.rank == 0


def read_world(environment: Mapping[str, str] = os.environ) -> World:
    """Reads RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE, which torchrun sets.

    Raises:
        ConfigError: one of them is no number, or there are several processes and no rank.

    Example:
        >>> read_world({"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
        World(rank=3, count=8, local_rank=1, local_count=2)
        >>> read_world({})
        World(rank=0, count=1, local_rank=0, local_count=1)
    """
    count = _number(environment, "WORLD_SIZE", 1)
    if count == 1:
        return World()
    if "RANK" not in environment:
        raise ConfigError(
            f"WORLD_SIZE = {count} says that there are {count} processes, but RANK does not say "
            "which of them this is. Start them by torchrun, or unset WORLD_SIZE."
        )
    found = World(
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


def restarts_allowed(environment: Mapping[str, str] = os.environ) -> int:
    """How often torchrun may start the processes again; 0 without it."""
    return _number(environment, "TORCHELASTIC_MAX_RESTARTS", 0)


def advice_on_restarts(*, resume: bool, environment: Mapping[str, str] = os.environ) -> str | None:
    """A sentence on what would make restarts by torchrun fail, if anything.

    Args:
        resume: whether the command has ``--resume``.
        environment: of this process; torchrun hands on its own.

    Example:
        >>> advice_on_restarts(resume=True, environment={"TORCHELASTIC_MAX_RESTARTS": "0"})
    """
    missing = []
    if environment.get(STORE_PER_RESTART) != "1":
        missing.append(f"{STORE_PER_RESTART}=1 is not set in torchrun's environment")
    if not resume:
        missing.append("the command has no --resume")
    if not missing or not restarts_allowed(environment):
        return None
    return (
        f"A restart by torchrun may fail, as {' and '.join(missing)}; `diptych launch`, which "
        "takes torchrun's options, sees to both."
    )


def tell_launcher(sentence: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Writes what the user must change into the file that torchrun reads when a process fails.

    Returns:
        Whether the launcher prints it: `diptych launch` does, torchrun alone shows it in a frame.
    """
    if not environment.get(_ERROR_FILE):
        return False
    more = {"py_callstack": sentence, "timestamp": str(int(time.time()))}
    report = {"message": {"message": sentence, "extraInfo": more}}
    try:
        with open(environment[_ERROR_FILE], "w") as file:
            json.dump(report, file)
    except OSError:
        return False
    return environment.get(LAUNCHER_PRINTS_ERRORS) == "1"


def stop_with_launcher(environment: Mapping[str, str] = os.environ) -> None:
    """Lets SIGTERM come to this process when torchrun, which started it, is killed.

    Otherwise it would go on training while the processes of the next start train too. Linux only.
    """
    if "TORCHELASTIC_RUN_ID" in environment and sys.platform == "linux":
        ctypes.CDLL(None).prctl(_SIGNAL_WHEN_PARENT_ENDS, int(signal.SIGTERM), 0, 0, 0)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip() or str(default)
    # int() alone would take signs and underscores as well.
    if not text.isdecimal() or (name == "WORLD_SIZE" and int(text) < 1):
        raise ConfigError(
            f"the environment says {name} = {text!r}; wanted a whole number, as torchrun sets it."
        )
    return int(text)
