"""How sure a figure is: the bootstrap over test images, and the t-interval over seeds.

The bootstrap asks how the figure would differ had other images been drawn for testing (Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993, sections 13.3 and 15). It says nothing of
another seed in training; that needs runs with several seeds.

All figures on the same images are drawn with the same resamples, so the interval of a difference is
that of pairs: an image that is hard for both encoders does not widen it.

Resamples hold no image that was not drawn for testing: where all images agree, so do all resamples,
and three images that are right would make an accuracy of 100 to 100%. Of the images that there are,
a share of 1 - 0.025^(1/n) may be of a kind that n images show none of. So an interval reaches at
least to where the figure would be if that share were as bad, or as good, as can be. Where all n
agree, that is the exact interval of a share (Clopper and Pearson 1934); of a difference it says the
same as the sign test.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

DRAWS: Final = 2000
LEVEL: Final = 0.95
_CELLS: Final = 4_000_000  # counts held at once

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From how often each image is taken, (draws, images), to a figure for each draw, (draws,)."""


class Interval(NamedTuple):
    """A figure with the range that holds the true one in 95 of 100 cases."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """For JSON, which has no NaN: what is not known is None."""
        return {name: None if math.isnan(one) else one for name, one in self._asdict().items()}


class Estimate(NamedTuple):
    """A figure, and what it would be with other test images.

    Attributes:
        value: on the images as they are.
        draws: (draws,), on resamples of them.
        images: how many there are.
        least, most: what the figure can be.
    """

    value: float
    draws: NDArray[np.float64]
    images: int
    least: float = 0.0
    most: float = 1.0

    def interval(self, level: float = LEVEL) -> Interval:
        """The percentile interval, or what images of a kind that was not drawn would make of it.

        The draws in which the figure is not defined are left out.
        """
        tail = (1 - level) / 2
        if math.isnan(self.value) or np.isnan(self.draws).all():
            return Interval(self.value, math.nan, math.nan)
        low, high = np.nanquantile(self.draws, [tail, 1 - tail])
        undrawn = 1 - tail ** (1 / self.images)
        lowest = self.value - undrawn * (self.value - self.least)
        highest = self.value + undrawn * (self.most - self.value)
        return Interval(self.value, min(float(low), lowest), max(float(high), highest))

    def minus(self, other: "Estimate") -> "Estimate":
        """The difference from another figure on the same images, in pairs."""
        return Estimate(
            self.value - other.value,
            self.draws - other.draws,
            self.images,
            self.least - other.most,
            self.most - other.least,
        )


def estimate(statistic: Statistic, images: int, *, draws: int = DRAWS, seed: int = 0) -> Estimate:
    """A figure from 0 to 1 on all images, and on resamples that follow from count and seed alone.

    Args:
        statistic: see ``diptych.evaluation.scores``.
        images: how many there are.
        draws: resamples.
        seed: of the resamples.
    """
    value = float(statistic(np.ones((1, images)))[0])
    parts = [statistic(counts) for counts in resamples(images, draws=draws, seed=seed)]
    return Estimate(value, np.concatenate(parts), images)


def resamples(images: int, *, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is taken in each resample, a few resamples at a time."""
    generator = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, _CELLS // images)
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        taken = generator.integers(0, images, (count, images))
        taken += images * np.arange(count)[:, None]
        counts = np.bincount(taken.reshape(-1), minlength=count * images)
        yield counts.reshape(count, images).astype(np.float64)


def over_seeds(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean over seeds with Student's t-interval; of one seed the interval is not known (NaN).

    >>> over_seeds([1.0, 2.0, 3.0])
    Interval(value=2.0, low=-0.484..., high=4.484...)
    """
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean, math.nan, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    reach = error * float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    return Interval(mean, mean - reach, mean + reach)
