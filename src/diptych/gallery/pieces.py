"""What a gallery computes beside its server: neighbours, maps, scores, each made once."""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Made = TypeVar("Made")
Progress = Callable[[float], None]


class NotReady(Exception):
    """A piece is still being made.

    Attributes:
        progress: the share that is done.
    """

    def __init__(self, progress: float) -> None:
        super().__init__(f"still being made: {progress:.0%} done")
        self.progress = progress


class Failed(Exception):
    """A piece could not be made; the message says why."""


class Piece(Generic[Made]):
    """Something that one thread makes and others look at.

    Args:
        make: gives it; is called once, with a function to report the share that is done.
    """

    def __init__(self, make: Callable[[Progress], Made]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: list[Made] = []
        self.why = ""
        """Why it cannot be made; empty where it can."""
        self.progress = 0.0
        """The share that is done."""

    @property
    def ready(self) -> bool:
        """Whether it is there."""
        return bool(self._made)

    def make(self) -> Made:
        """Makes it, unless it is there; waits for another thread that does.

        Raises:
            Failed: that did not work, now or before.
        """
        with self._lock:
            if self.why:
                raise Failed(self.why)
            if not self._made:
                try:
                    made = self._make(self._report)
                # Whatever it was: the server goes on without this piece, and says why.
                except Exception as error:
                    self.why = f"{error}" or type(error).__name__
                    raise Failed(self.why) from error
                self.progress = 1.0
                self._made.append(made)
            return self._made[0]

    def get(self) -> Made:
        """What was made.

        Raises:
            NotReady: it is not there yet.
            Failed: it will not be there.
        """
        if self._made:
            return self._made[0]
        if self.why:
            raise Failed(self.why)
        raise NotReady(self.progress)

    def _report(self, share: float) -> None:
        self.progress = min(max(float(share), 0.0), 1.0)


def make_in_threads(*orders: Sequence[Callable[[], object]]) -> list[threading.Thread]:
    """Starts a thread for each sequence of tasks, which goes through them in order.

    A task that fails has said so in its piece; the next ones follow all the same.
    """

    def go_through(tasks: Sequence[Callable[[], object]]) -> None:
        for task in tasks:
            try:
                task()
            except Failed:
                continue

    threads = [threading.Thread(target=go_through, args=[one], daemon=True) for one in orders]
    for thread in threads:
        thread.start()
    return threads
