"""How sure a figure is: the bootstrap over test images, and the t-interval over seeds.

The bootstrap estimates how the figure varies with the images drawn for testing (Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993, sections 13.3 and 15). How it varies with the
seed of training needs runs with several seeds.

All figures on the same images have the same resamples, so the interval of a difference is paired:
an image that is hard for both encoders does not widen it.

Where all test images agree, so do all resamples: three images that are right would give an accuracy
of 100 to 100%. But a share of up to 1 - 0.025^(1/n) of all images may be of a kind that is not
among n test images. So an interval reaches at least to the figure with that share as bad, or as
good, as possible. Where all n agree, that is the exact interval of a share (Clopper and Pearson
1934); of a difference it gives the same answer as the sign test.
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
        """For JSON, which has no NaN: None instead."""
        return {name: None if math.isnan(one) else one for name, one in self._asdict().items()}


class BootstrapEstimate(NamedTuple):
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
        """The percentile interval, widened for images of kinds that are not among the test images.

        The draws in which the figure is not defined are left out.
        """
        tail = (1 - level) / 2
        if math.isnan(self.value) or np.isnan(self.draws).all():
            return Interval(self.value, math.nan, math.nan)
        low, high = np.nanquantile(self.draws, [tail, 1 - tail])
        # The share of which n images miss all with a chance of `tail`: (1 - share)^n = tail.
        undrawn = 1 - tail ** (1 / self.images)
        lowest = self.value - undrawn * (self.value - self.least)
        highest = self.value + undrawn * (self.most - self.value)
        return Interval(self.value, min(float(low), lowest), max(float(high), highest))

    def minus(self, other: "BootstrapEstimate") -> "BootstrapEstimate":
        """The difference from another figure on the same images, in pairs."""
        # Draw by draw: from the ends of two intervals, an image that is hard for both would make
        # the difference look less sure than it is.
        return BootstrapEstimate(
            self.value - other.value,
            self.draws - other.draws,
            self.images,
            self.least - other.most,
            self.most - other.least,
        )


def estimate(
    statistic: Statistic, images: int, *, draws: int = DRAWS, seed: int = 0
) -> BootstrapEstimate:
    """A figure from 0 to 1 on all images, and on resamples that follow from count and seed alone.

    Args:
        statistic: see ``diptych.evaluation.confidence``.
        images: how many there are.
        draws: resamples.
        seed: of the resamples.
    """
    value = float(statistic(np.ones((1, images)))[0])
    parts = [statistic(counts) for counts in resamples(images, draws=draws, seed=seed)]
    return BootstrapEstimate(value, np.concatenate(parts), images)


def resamples(images: int, *, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is taken in each resample, a few resamples at a time."""
    generator = np.random.Generator(np.random.Philox(seed))
    at_once = max(1, _CELLS // images)
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        taken = generator.integers(0, images, (count, images))
        taken += images * np.arange(count)[:, None]  # so that one bincount counts all resamples
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
    # Student's t, as the spread itself is estimated from a few seeds: 1.96 would be too narrow.
    reach = error * float(stats.t.ppf((1 + level) / 2, len(values) - 1))
    return Interval(mean, mean - reach, mean + reach)


Counts = NDArray[np.float64]
Flags = NDArray[np.bool_]


def accuracy_of(right: Flags) -> Statistic:
    """Share of the images that are right; (images,)."""
    values = right.astype(np.float64)
    return lambda counts: counts @ values / counts.sum(axis=1)


def mean_per_class(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> Statistic:
    """Mean over classes of the share of a class that is right; classes without images left out."""
    return mean_share_per_class((predicted == truth).astype(np.float64), truth)


def mean_share_per_class(right: NDArray[np.float64], truth: NDArray[np.int64]) -> Statistic:
    """The same of images that are right in a share of several views; both (images,)."""
    members = (truth[:, None] == np.unique(truth)).astype(np.float64)
    hits = members * right[:, None]

    # A rare class is missing in some resamples, which then have no share of it.
    def figure(counts: Counts) -> NDArray[np.float64]:
        return _mean_where_defined(counts @ hits, counts @ members)

    return figure


def macro_f1(predicted: Flags, truth: Flags) -> Statistic:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    Args:
        predicted: (images, classes), answers; several of a row may be true.
        truth: (images, classes). A class that is in neither is left out.
    """
    both = (predicted & truth).astype(float)
    # Predicted plus true is 2 TP + FP + FN.
    either = predicted.astype(float) + truth

    def figure(counts: Counts) -> NDArray[np.float64]:
        return _mean_where_defined(2.0 * (counts @ both), counts @ either)

    return figure


def macro_auc(scores: NDArray[np.float64], truth: Flags) -> Statistic:
    """Mean over classes of the area under the ROC curve: one class against the rest.

    The share of pairs, one image of the class and one of the rest, that the scores put in the right
    order; ties count half (Hanley and McNeil 1982).

    Args:
        scores: (images, classes).
        truth: (images, classes). Classes that none or all have are left out.
    """
    mixed = truth.any(axis=0) & ~truth.all(axis=0)
    columns = [_auc(scores[:, c], truth[:, c]) for c in np.flatnonzero(mixed)]
    if not columns:
        return lambda counts: np.full(len(counts), np.nan)

    def figure(counts: Counts) -> NDArray[np.float64]:
        areas = np.stack([column(counts) for column in columns])
        defined = ~np.isnan(areas)
        known = np.maximum(defined.sum(axis=0), 1)
        mean = np.where(defined, areas, 0).sum(axis=0) / known
        return np.where(defined.any(axis=0), mean, np.nan)

    return figure


def share_of_answers(predicted: Flags, truth: Flags) -> Statistic:
    """Share of yes-or-no answers, one for each label of each image, that are right."""
    right = (predicted == truth).mean(axis=1)
    return lambda counts: counts @ right / counts.sum(axis=1)


def _auc(scores: NDArray[np.float64], truth: Flags) -> Statistic:
    """Of one class: negatives below each positive, ties half, over all pairs."""
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    # Where each run of equal scores begins; all of a run share what lies below.
    starts = np.flatnonzero(np.diff(ranked, prepend=-np.inf) > 0) if len(ranked) else order[:0]
    starts = np.union1d(starts, [0]).astype(np.int64)

    def figure(counts: Counts) -> NDArray[np.float64]:
        sorted_counts = counts[:, order]
        ups = np.add.reduceat(sorted_counts * positive, starts, axis=1)
        downs = np.add.reduceat(sorted_counts * ~positive, starts, axis=1)
        # All negatives up to this run of ties, less half of those within it.
        below = np.cumsum(downs, axis=1) - 0.5 * downs
        pairs = ups.sum(axis=1) * downs.sum(axis=1)
        ordered = (ups * below).sum(axis=1)
        return np.divide(ordered, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)

    return figure


def _mean_where_defined(
    above: NDArray[np.float64], below: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over columns of a ratio, over those whose denominator is not 0."""
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    known = (below > 0).sum(axis=1)
    mean: NDArray[np.float64] = ratio.sum(axis=1) / np.maximum(known, 1)
    return np.where(known > 0, mean, np.nan)
