"""The process group of a run: how processes join it, wait for the first one, and leave.

Beside the group there is a store, a table of small texts that torchrun or the first process keeps.
It answers when collective calls do not, so it can be asked which process is missing.
"""

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count as count_from
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from diptych.errors import ConfigError, FirstStopped, LostProcess, exit_code_of
from diptych.runtime.distributed import (
    communicating,
    largest_over_processes,
    process_count,
    process_rank,
)
from diptych.runtime.stopwatch import watch
from diptych.runtime.world import World, read_world

PATIENCE_SECONDS: Final = 6 * 3600.0  # for what processes do by themselves
CALL_SECONDS: Final = 10.0  # in which processes that still run answer when one is missing
POLL_SECONDS: Final = 0.01
LONGEST_POLL_SECONDS: Final = 0.5


@dataclass
class _Group:
    """The store of a process group, and how long its processes wait.

    Attributes:
        store: a table of texts, the same for all.
        timeout: how long a process may keep the others waiting.
        turns: numbers for what processes do by themselves, the same everywhere.
    """

    store: Any
    timeout: timedelta
    turns: Iterator[int] = field(default_factory=count_from)


_Made = TypeVar("_Made")
_groups: list[_Group] = []
_numbers = count_from()  # a program may run one run after another, and the store stays the same


@contextmanager
def process_group(*, device: str, timeout_seconds: float) -> Iterator[World]:
    """Joins the processes that torchrun started, for as long as the context lasts.

    Tensors on the CPU go over gloo, those on CUDA devices over NCCL. Does nothing
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
        table = _join(_backend(device, found), found, timeout)
        # Wait for all: a process that fails while others still connect would look lost to them.
        largest_over_processes(0)
    else:
        table = dist.distributed_c10d._get_default_store()
    _groups.append(_Group(PrefixStore(f"diptych/{next(_numbers)}", table), timeout))
    try:
        yield found
    finally:
        _groups.pop()
        if ours:
            with suppress(RuntimeError):  # that the group is broken was raised before
                dist.destroy_process_group()


def run_on_first(make: Callable[[], str]) -> str:
    """Runs a function on process 0 while the others wait, and returns its result on all.

    Args:
        make: called by the first process only. It calls nothing that is collective.

    Raises:
        FirstStopped: in the other processes, when ``make`` fails in the first.
        LostProcess: in the other processes, when the first is gone or never ends.
    """
    if process_count() == 1:
        return make()
    group = _groups[-1]
    # Counted on each process by itself: all must come here equally often, in the same order.
    name = f"first/{next(group.turns)}"
    if process_rank() > 0:
        with watch("communication"):
            return _wait_for(group, name, rank=0)
    return _made_and_told(group, name, make, str)


def run_on_all(make: Callable[[], _Made]) -> _Made:
    """Runs a function on every process, and returns once it has ended on all.

    They meet at the store: one machine may take hours for what another has kept, and a collective
    call would wait for ``training.process_timeout_seconds`` only.

    Args:
        make: calls nothing that is collective.

    Returns:
        This process's own result.

    Raises:
        FirstStopped: ``make`` failed in another process.
        LostProcess: another process is gone or never ends.
    """
    if process_count() == 1:
        return make()
    group = _groups[-1]
    turn = next(group.turns)
    made = _made_and_told(group, f"all/{turn}/{process_rank()}", make, lambda _: "")
    with watch("communication"):
        for rank in range(process_count()):
            _wait_for(group, f"all/{turn}/{rank}", rank)
    return made


def wait_for_all() -> None:
    """Waits until every process is here: process 0 may keep the store, and must leave last."""
    if process_count() > 1:
        largest_over_processes(0)


def name_missing(error: LostProcess, step: int) -> LostProcess:
    """The error with the names of the processes that do not answer at the store.

    Args:
        error: what a collective call raised.
        step: that this process was in, counted from 1.
    """
    if not _groups or process_count() == 1:
        return error
    missing = _missing(_groups[-1], step)
    if missing == []:
        return LostProcess(
            f"at step {step} {error}. All processes still answer: suspect the network."
        )
    which = "process 0, which keeps the store," if missing is None else _listed(missing)
    seconds = _groups[-1].timeout.total_seconds()
    return LostProcess(
        f"{which} of {process_count()} did not take part in step {step}: gone, or silent for the "
        f"{seconds:g} seconds of training.process_timeout_seconds. Process {process_rank()} stops. "
        "Start all processes again with --resume, as torchrun --max-restarts does by itself; the "
        f"last checkpoint is intact. ({error})"
    )


def describe_process(device: str, threads: int, images: int) -> str:
    """The line that each process prints when a run starts."""
    of_threads = f"{threads} thread{'s' if threads > 1 else ''}"
    return (
        f"Process {process_rank()} of {process_count()}: {socket.gethostname()}, {device}, "
        f"{of_threads}, {images:,} images"
    )


def _backend(device: str, found: World) -> str:
    if device == "mps":
        raise ConfigError(
            "training.device = 'mps' has one process only: several cannot exchange tensors "
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
    # Events and generators are of the current device, which else is the first everywhere.
    torch.cuda.set_device(found.local_rank)
    return "cpu:gloo,cuda:nccl"


def _join(backend: str, found: World, timeout: timedelta) -> Any:
    try:
        store, rank, count = next(iter(rendezvous("env://", timeout=timeout)))
        group = PrefixStore("diptych/group", store)
        dist.init_process_group(backend, store=group, rank=rank, world_size=count, timeout=timeout)
    except (RuntimeError, ValueError) as error:
        where = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        raise LostProcess(
            f"process {found.rank} of {found.count} on {socket.gethostname()} did not meet the "
            f"others at {where} within {timeout.total_seconds():g} seconds "
            "(training.process_timeout_seconds). See that all were started, that this address can "
            "be reached from here, and that GLOO_SOCKET_IFNAME, if set, names the network between "
            f"them. ({str(error).strip().splitlines()[0]})"
        ) from error
    return store


def _made_and_told(
    group: _Group, name: str, make: Callable[[], _Made], words: Callable[[_Made], str]
) -> _Made:
    """Runs a function and tells the others, under a name in the store, what it made or why not."""
    try:
        made = make()
    # Also of KeyboardInterrupt and SystemExit: nobody else tells the others to stop waiting.
    except BaseException as error:
        with suppress(RuntimeError):
            group.store.set(name, f"!{exit_code_of(error)} {type(error).__name__}")
            # The store may end with this process: give the others time to read why.
            time.sleep(2 * LONGEST_POLL_SECONDS)
        raise
    with communicating():
        # Marked, as what was made may begin with "!" itself.
        group.store.set(name, f"={words(made)}")
    return made


def _wait_for(group: _Group, name: str, rank: int) -> str:
    deadline, pause = time.monotonic() + PATIENCE_SECONDS, POLL_SECONDS
    while time.monotonic() < deadline:
        with communicating():
            # `get` alone would block until the timeout of the store, which may be shorter.
            if group.store.check([name]):
                text: str = group.store.get(name).decode()
                if text.startswith("!"):
                    # Let it print why: a launcher stops all as soon as one of us ends.
                    time.sleep(4 * LONGEST_POLL_SECONDS)
                    code, _, kind = text[1:].partition(" ")
                    said = f"process {rank} stopped with {kind}; it says why"
                    raise FirstStopped(said, int(code))
                return text[1:]
        time.sleep(pause)
        pause = min(1.5 * pause, LONGEST_POLL_SECONDS)
    raise LostProcess(f"process {rank} kept the others waiting for {PATIENCE_SECONDS:g} seconds")


def _missing(group: _Group, step: int) -> list[int] | None:
    """The processes that do not answer; None when the store does not."""
    names = {rank: f"alive/{step}/{rank}" for rank in range(process_count())}
    missing = list(names)
    try:
        group.store.set(names[process_rank()], "")
        deadline = time.monotonic() + CALL_SECONDS
        while missing and time.monotonic() < deadline:
            missing = [rank for rank in missing if not group.store.check([names[rank]])]
            time.sleep(POLL_SECONDS)
    except RuntimeError:
        return None
    return missing


def _listed(ranks: list[int]) -> str:
    return f"process{'es' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
