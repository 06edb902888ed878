"""Where time goes: named parts of a training step, which add up to the whole of it.

A part within another is subtracted from it: communication in the middle of the backward pass counts
as communication and not as backward. ``watch`` costs about a microsecond while a stopwatch runs and
next to nothing while none does, so it may be used anywhere.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import torch

PARTS: Final = (
    "data_wait",
    "views",
    "forward",
    "backward",
    "communication",
    "optimizer",
    "momentum_encoder",
    "dictionary",
    "measuring",
    "checkpoint",
    "other",
)
"""All parts of a training step, in the order in which people read them."""

_MOST_OPEN: Final = 10_000  # turns that wait to be added up; with events each holds a handle

_running: "list[Stopwatch]" = []


class Stopwatch:
    """Adds up the seconds of each part while it runs.

    On the CPU it reads the clock. On CUDA the host only queues work; there each change from one
    part to another is an event in the device's queue, which is read later, together with results,
    so that nothing waits. A part is then the time in which the device did its work or waited for
    it, and work of the host that runs while the device is busy takes no time.

    Attributes:
        traced: mark the parts in the trace of torch's profiler as well.
    """

    def __init__(self, device: torch.device | None = None) -> None:
        """Starts in ``other``.

        Args:
            device: that does the work; the CPU when not given.
        """
        self._on_host = device is None or device.type != "cuda"
        self._moment: Callable[[], Any] = time.perf_counter if self._on_host else _event
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._part = "other"
        self._turns: list[tuple[str, Any]] = []  # what ended, and when
        self._begun: Any = self._moment()
        self.traced = False

    def turn_to(self, part: str) -> str:
        """Ends the part that runs, begins another, and returns the one that ended."""
        ended, self._part = self._part, part
        self._turns.append((ended, self._moment()))
        if len(self._turns) >= _MOST_OPEN:
            self._add_up()
        return ended

    def give(self, part: str, share: float, *, of: str) -> None:
        """Gives another part a share of the time since the last turn, if ``of`` is what runs.

        For work that threads do in turns with other work, which this thread cannot time.
        """
        if self._part != of or not self._on_host:
            return
        since: float = self._turns[-1][1] if self._turns else self._begun
        now: float = self._moment()
        self._turns += [(part, since + share * (now - since)), (of, now)]

    def read(self) -> dict[str, float]:
        """Seconds of each part since the last reading, zeros included; begins anew."""
        self.turn_to(self._part)
        self._add_up()
        found, self._seconds = self._seconds, dict.fromkeys(PARTS, 0.0)
        return found

    @contextmanager
    def running(self) -> Iterator["Stopwatch"]:
        """Makes ``watch`` report to this stopwatch."""
        _running.append(self)
        try:
            yield self
        finally:
            _running.pop()

    def _add_up(self) -> None:
        for part, moment in self._turns:
            begun = self._begun
            seconds = moment - begun if self._on_host else _between_events(begun, moment)
            self._seconds[part] += seconds
            self._begun = moment
        self._turns.clear()


class _Watched:
    """A part of the time of a stopwatch; a class, as a generator would take twice as long."""

    __slots__ = ("_before", "_part", "_stopwatch")

    def __init__(self, stopwatch: Stopwatch, part: str) -> None:
        self._stopwatch, self._part = stopwatch, part

    def __enter__(self) -> None:
        self._before = self._stopwatch.turn_to(self._part)

    def __exit__(self, *_: object) -> None:
        self._stopwatch.turn_to(self._before)


_NOTHING: Final = nullcontext()


def watch(part: str) -> AbstractContextManager[None]:
    """Counts what happens within as this part, if a stopwatch runs.

    Args:
        part: one of ``PARTS``.

    Example:
        >>> with Stopwatch().running() as stopwatch, watch("forward"):
        ...     sum(range(1000))
        499500
        >>> stopwatch.read()["forward"] > 0
        True
    """
    if not _running:
        return _NOTHING
    stopwatch = _running[-1]
    return _traced(stopwatch, part) if stopwatch.traced else _Watched(stopwatch, part)


def give(part: str, share: float, *, of: str) -> None:
    """See ``Stopwatch.give``; does nothing while no stopwatch runs."""
    if _running:
        _running[-1].give(part, share, of=of)


@contextmanager
def _traced(stopwatch: Stopwatch, part: str) -> Iterator[None]:
    with _Watched(stopwatch, part), torch.autograd.profiler.record_function(part):
        yield


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between_events(begun: torch.cuda.Event, ended: torch.cuda.Event) -> float:
    ended.synchronize()
    return begun.elapsed_time(ended) / 1000.0
