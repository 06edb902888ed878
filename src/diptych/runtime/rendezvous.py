"""How the processes of a run meet, wait for the first of them, learn who is missing, and part.

They meet at a store, a table of small texts that torchrun or the first process keeps. It answers
also when collective calls do not, so that it can be asked which process is gone.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count as count_from
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from diptych.errors import ConfigError, FirstStopped, LostProcess, exit_code_of
from diptych.runtime.distributed import largest_over_processes, process_count, process_rank, talking
from diptych.runtime.stopwatch import watch
from diptych.runtime.world import World, read_world

PATIENCE_SECONDS: Final = 6 * 3600.0  # for what the first process does alone
CALL_SECONDS: Final = 10.0  # in which the living answer when one is missing
POLL_SECONDS: Final = 0.01
LONGEST_POLL_SECONDS: Final = 0.5


@dataclass
class _Meeting:
    """Where the processes of this run meet.

    Attributes:
        store: a table of texts, the same for all.
        timeout: how long a process may keep the others waiting.
        turns: numbers for what the first process does alone, the same everywhere.
    """

    store: Any
    timeout: timedelta
    turns: Iterator[int] = field(default_factory=count_from)


_meetings: list[_Meeting] = []
_numbers = count_from()  # a program may run one run after another, and the store stays the same


@contextmanager
def joined(*, device: str, timeout_seconds: float) -> Iterator[World]:
    """Joins the processes that torchrun started, for as long as the context lasts.

    Talks over gloo for tensors on the CPU and over NCCL for those on CUDA devices. Does nothing
    where there is one process, or where the program around us has joined them already.

    Args:
        device: ``training.device``.
        timeout_seconds: how long a process may keep the others waiting.

    Raises:
        LostProcess: the others did not come.
        ConfigError: the environment is not what torchrun sets, or there is no such device.
    """
    found = read_world()
    if found.count == 1:
        yield found
        return
    timeout = timedelta(seconds=timeout_seconds)
    ours = not dist.is_initialized()
    if ours:
        table = _meet(_backend(device, found), found, timeout)
        # One that goes on and fails at once would look lost to those that still connect.
        largest_over_processes(0)
    else:
        table = dist.distributed_c10d._get_default_store()
    _meetings.append(_Meeting(PrefixStore(f"diptych/{next(_numbers)}", table), timeout))
    try:
        yield found
    finally:
        _meetings.pop()
        if ours:
            with suppress(RuntimeError):  # a broken group has said so already
                dist.destroy_process_group()


def from_first(make: Callable[[], str]) -> str:
    """What the first process makes while the others wait; every process gets it.

    Args:
        make: called by the first process only. It calls nothing that is collective.

    Raises:
        FirstStopped: in the other processes, when ``make`` fails in the first.
        LostProcess: in the other processes, when the first is gone or never ends.
    """
    if process_count() == 1:
        return make()
    meeting = _meetings[-1]
    name = f"first/{next(meeting.turns)}"
    if process_rank() > 0:
        with watch("communication"):
            return _wait_for(meeting, name)
    try:
        made = make()
    except BaseException as error:
        with suppress(RuntimeError):
            meeting.store.set(name, f"!{exit_code_of(error)} {type(error).__name__}")
            time.sleep(2 * LONGEST_POLL_SECONDS)  # the store may go with this process
        raise
    with talking():
        meeting.store.set(name, f"={made}")
    return made


def leave_together() -> None:
    """Lets no process leave before the others have come this far; the first keeps the store."""
    if process_count() > 1:
        largest_over_processes(0)


def who_is_missing(error: LostProcess, step: int) -> LostProcess:
    """The error with the processes named that do not answer a call at the store.

    Args:
        error: what a collective call raised.
        step: that this process was in, counted from 1.
    """
    if not _meetings or process_count() == 1:
        return error
    missing = _missing(_meetings[-1], step)
    if missing == []:
        return LostProcess(
            f"at step {step} {error}. All processes still answer: suspect the network."
        )
    which = "process 0, where all meet," if missing is None else _listed(missing)
    seconds = _meetings[-1].timeout.total_seconds()
    return LostProcess(
        f"{which} of {process_count()} did not take part in step {step}: gone, or silent for the "
        f"{seconds:g} seconds of training.peer_timeout_seconds. Process {process_rank()} stops. "
        "Start all processes again with --resume, as torchrun --max-restarts does by itself; the "
        f"last checkpoint is intact. ({error})"
    )


def introduction(device: str, threads: int, images: int) -> str:
    """The line by which a process presents itself when a run starts."""
    of_threads = f"{threads} thread{'s' if threads > 1 else ''}"
    return (
        f"Process {process_rank()} of {process_count()}: {socket.gethostname()}, {device}, "
        f"{of_threads}, {images:,} images"
    )


def _backend(device: str, found: World) -> str:
    if device == "mps":
        raise ConfigError(
            "training.device = 'mps' has one process only: several cannot talk to each other "
            "there. Use training.device = 'cpu', or start one process."
        )
    if device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    if found.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"process {found.rank} is number {found.local_rank} on {socket.gethostname()}, which "
            f"has {torch.cuda.device_count()} CUDA devices. Start at most one process for each "
            "(torchrun --nproc-per-node)."
        )
    torch.cuda.set_device(found.local_rank)
    return "cpu:gloo,cuda:nccl"


def _meet(backend: str, found: World, timeout: timedelta) -> Any:
    try:
        store, rank, count = next(iter(rendezvous("env://", timeout=timeout)))
        group = PrefixStore("diptych/group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise LostProcess(
            f"process {found.rank} of {found.count} on {socket.gethostname()} did not meet the "
            f"others at {where} within {timeout.total_seconds():g} seconds "
            "(training.peer_timeout_seconds). See that all were started, that this address can be "
            "reached from here, and that GLOO_SOCKET_IFNAME, if set, names the network between "
            f"them. ({str(error).strip().splitlines()[0]})"
        ) from error
    return store


def _wait_for(meeting: _Meeting, name: str) -> str:
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, POLL_SECONDS
    while time.monotonic() < deadline:
        with talking():
            if meeting.store.check([name]):
                text: str = meeting.store.get(name).decode()
                if text.startswith("!"):
                    _let_first_speak()
                    code, _, kind = text[1:].partition(" ")
                    raise FirstStopped(f"process 0 stopped with {kind}; it says why", int(code))
                return text[1:]
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
    raise LostProcess(f"process 0 kept the others waiting for {PATIENCE_SECONDS:g} seconds")


def _let_first_speak() -> None:
    """Waits for the first to end first: a launcher that sees one of us end stops all others."""
    time.sleep(4 * LONGEST_POLL_SECONDS)


def _missing(meeting: _Meeting, step: int) -> list[int] | None:
    """The processes that do not answer; None when the store does not."""
    names = {rank: f"alive/{step}/{rank}" for rank in range(process_count())}
    missing = list(names)
    try:
        meeting.store.set(names[process_rank()], "")
        deadline = time.monotonic() + CALL_SECONDS
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not meeting.store.check([names[rank]])]
            time.sleep(POLL_SECONDS)
    except RuntimeError:
        return None
    return missing


def _listed(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
