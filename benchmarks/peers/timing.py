"""Seconds of an epoch, from whole commands: no library's own clock is believed."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from peers.contenders import Run
from peers.settings import Settings, do

CLEAR: Final = 0.1
"""The longer of two runs takes by this share more than the shorter one, or nothing can be said:
starts alone differ by some hundredths from time to time."""
EPOCHS_QUICK: Final = (1, 31)
"""Of a toy size, where an epoch takes a fraction of a second."""


class Times(NamedTuple):
    """Seconds of an epoch, and of what comes before and after the epochs."""

    epoch: float
    around: float


def warm_up(settings: Settings, name: str, run: Run) -> None:
    """An epoch that is not counted: it lists and compiles, and fills the caches of files."""
    do(settings, name, replace(run, epochs=1))


def times_of(settings: Settings, name: str, run: Run, epochs: tuple[int, int]) -> Times:
    """What a run takes, from two of them; none of them should be the first.

    Args:
        settings: of the harness.
        name: of the library.
        run: the same but for its length.
        epochs: of the shorter and of the longer run.

    Raises:
        RuntimeError: the longer run does not take clearly longer.
    """
    seconds = [do(settings, name, replace(run, epochs=count)).seconds for count in epochs]
    return difference(name, epochs, seconds)


def difference(name: str, epochs: tuple[int, int], seconds: Sequence[float]) -> Times:
    """The times by what a shorter and a longer run took.

    Raises:
        RuntimeError: the longer run does not take clearly longer.
    """
    short, long = seconds
    if long < (1 + CLEAR) * short:
        raise RuntimeError(
            f"{name}: {epochs[0]} epochs took {short:.1f} s and {epochs[1]} epochs {long:.1f} s. "
            "That tells nothing of an epoch: run on an idle machine, or on more images (--data)."
        )
    epoch = (long - short) / (epochs[1] - epochs[0])
    return Times(epoch, short - epochs[0] * epoch)
