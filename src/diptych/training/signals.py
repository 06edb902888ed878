"""SIGINT, SIGTERM and SIGHUP ask a run to save itself before it stops.

SIGHUP comes when the terminal goes away. What is ignored already, as nohup does, stays ignored.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

_ASKING_TO_STOP: Final = tuple(
    int(getattr(signal, name)) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
)


@contextmanager
def collected_signals(*, patient: bool = False) -> Iterator[list[int]]:
    """Collects what asks to stop instead of dying of it; a second one does end the process.

    Args:
        patient: a second one does not, either. A launcher passes on to its processes what the
            terminal has sent them already.
    """
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        # Noted only: a handler may run in the middle of a step, whose state nobody could save.
        received.append(number)
        if not patient:
            signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    try:
        for number in _ASKING_TO_STOP:
            if signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread, where a program that imports diptych handles signals
        pass
    try:
        yield received
    finally:
        for restored, handler in previous.items():
            signal.signal(restored, handler)
