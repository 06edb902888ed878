"""How sure a figure is: the bootstrap over test images, and the t-interval over seeds.

The bootstrap estimates how the figure varies with the images drawn for testing (Efron and
Tibshirani, *An Introduction to the Bootstrap*, 1993, sections 13.3 and 15). How it varies with the
seed of training needs runs with several seeds.

All figures on the same images have the same resamples, so the interval of a difference is paired:
an image that is hard for both encoders does not widen it.

Frames of a video, crops of a photograph and copies are no independent images: mostly all of them
are right, or none. Where units of such images are given, units are drawn whole (the cluster
bootstrap: Field and Welsh 2007, "Bootstrapping clustered data").

Where all test images agree, so do all resamples: three images that are right would give an accuracy
of 100 to 100%. But a share of up to 1 - 0.025^(1/n) of all units may be of a kind that is not
among n tested ones. So an interval reaches at least to the figure with that share as bad, or as
good, as possible. Where all n agree, that is the exact interval of a share (Clopper and Pearson
1934); of a difference it gives the same answer as the sign test.

No statistic holds a matrix of images by classes: sums by class are taken of sorted images, and
areas under curves class by class.
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
        units: how many are drawn: images, or what belongs together of them.
        least, most: what the figure can be.
    """

    value: float
    draws: NDArray[np.float64]
    units: int
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
        # The share of which n units miss all with a chance of `tail`: (1 - share)^n = tail.
        undrawn = 1 - tail ** (1 / self.units)
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
            self.units,
            self.least - other.most,
            self.most - other.least,
        )


def estimate(
    statistic: Statistic,
    images: int,
    *,
    units: NDArray[np.int64] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> BootstrapEstimate:
    """A figure from 0 to 1 on all images, and on resamples that follow from units and seed alone.

    Args:
        statistic: see ``diptych.evaluation.confidence``.
        images: how many there are.
        units: (images,), the same number for images that belong together, which are drawn whole;
            each image by itself when not given.
        draws: resamples.
        seed: of the resamples.
    """
    value = float(statistic(np.ones((1, images)))[0])
    drawn = resamples(images, units=units, draws=draws, seed=seed)
    parts = [statistic(counts) for counts in drawn]
    return BootstrapEstimate(value, np.concatenate(parts), count_units(images, units))


def resamples(
    images: int, *, draws: int, seed: int, units: NDArray[np.int64] | None = None
) -> Iterator[NDArray[np.float64]]:
    """How often each image is taken in each resample, a few resamples at a time.

    As many units are drawn as there are, so that resamples of unequal ones differ in their images.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    total, at_once = count_units(images, units), max(1, _CELLS // images)
    places = None if units is None or total == images else number_units(units)
    for begin in range(0, draws, at_once):
        count = min(at_once, draws - begin)
        taken = generator.integers(0, total, (count, total))
        taken += total * np.arange(count)[:, None]  # so that one bincount counts all resamples
        counts = np.bincount(taken.reshape(-1), minlength=count * total)
        drawn = counts.reshape(count, total).astype(np.float64)
        yield drawn if places is None else np.take(drawn, places, axis=1)


def count_units(images: int, units: NDArray[np.int64] | None) -> int:
    """How many units so many images are."""
    return images if units is None else len(np.unique(units))


def number_units(units: NDArray[np.int64]) -> NDArray[np.int64]:
    """Units, numbered from 0 as they appear: where each image is one, by its place.

    >>> number_units(np.array([7, 2, 7, 5])).tolist()
    [0, 1, 0, 2]
    """
    _, first, numbers = np.unique(units, return_index=True, return_inverse=True)
    found: NDArray[np.int64] = np.argsort(np.argsort(first))[numbers.reshape(-1)]
    return found


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
    sums = _sums_by_class(truth, np.unique(truth))
    # A rare class is missing in some resamples, which then have no share of it.
    return lambda counts: _mean_where_defined(sums(counts * right), sums(counts))


def macro_f1(predicted: Flags, truth: Flags) -> Statistic:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    Args:
        predicted: (images, classes), answers; several of a row may be true.
        truth: (images, classes). A class that is in neither is left out.
    """
    width = max(1, _CELLS // len(truth))

    def figure(counts: Counts) -> NDArray[np.float64]:
        both, either = np.empty((2, len(counts), truth.shape[1]))
        for begin in range(0, truth.shape[1], width):
            some = slice(begin, begin + width)
            both[:, some] = counts @ (predicted[:, some] & truth[:, some]).astype(float)
            # Predicted plus true is 2 TP + FP + FN.
            either[:, some] = counts @ (predicted[:, some].astype(float) + truth[:, some])
        return _mean_where_defined(2.0 * both, either)

    return figure


def macro_f1_of_classes(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> Statistic:
    """The same of one answer for each image, which is of one class; both (images,)."""
    classes = np.union1d(predicted, truth)
    by_truth, by_answer = (_sums_by_class(one, classes) for one in (truth, predicted))
    right = predicted == truth
    return lambda counts: _mean_where_defined(
        2.0 * by_truth(counts * right), by_truth(counts) + by_answer(counts)
    )


def macro_auc(scores: NDArray[np.floating], truth: Flags) -> Statistic:
    """Mean over classes of the area under the ROC curve: one class against the rest.

    The share of pairs, one image of the class and one of the rest, that the scores put in the right
    order; ties count half (Hanley and McNeil 1982).

    Args:
        scores: (images, classes).
        truth: (images, classes). Classes that none or all have are left out.
    """
    mixed = np.flatnonzero(truth.any(axis=0) & ~truth.all(axis=0))
    return _mean_area(mixed, lambda one: (scores[:, one], truth[:, one]))


def macro_auc_of_classes(
    scores: Callable[[int], NDArray[np.floating]], truth: NDArray[np.int64], classes: int
) -> Statistic:
    """The same where each image is of one class.

    Args:
        scores: (images,), of a class.
        truth: (images,). Classes that none or all are of are left out.
        classes: that have scores.
    """
    present = np.unique(truth)
    mixed = present[present < classes] if len(present) > 1 else present[:0]
    return _mean_area(mixed, lambda one: (scores(one), truth == one))


def share_of_answers(predicted: Flags, truth: Flags) -> Statistic:
    """Share of yes-or-no answers, one for each label of each image, that are right."""
    right = (predicted == truth).mean(axis=1)
    return lambda counts: counts @ right / counts.sum(axis=1)


def _sums_by_class(
    members: NDArray[np.int64], classes: NDArray[np.int64]
) -> Callable[[Counts], Counts]:
    """From a number for each image, (draws, images), to their sums, (draws, classes).

    Args:
        members: (images,), the class of each, one of ``classes``.
        classes: ascending.
    """
    order = np.argsort(members, kind="stable")
    present, starts = np.unique(members[order], return_index=True)
    columns = np.searchsorted(classes, present)

    def sums(values: Counts) -> Counts:
        found = np.zeros((len(values), len(classes)))
        found[:, columns] = np.add.reduceat(np.take(values, order, axis=1), starts, axis=1)
        return found

    return sums


def _mean_area(
    classes: NDArray[np.int64], ranking: Callable[[int], tuple[NDArray[np.floating], Flags]]
) -> Statistic:
    """Mean over classes of the area under the ROC curve.

    Args:
        classes: to take the mean over.
        ranking: of a class, the scores of all images and whether they are of it.
    """

    def figure(counts: Counts) -> NDArray[np.float64]:
        # Sorted for these resamples alone: to keep the orders takes images times classes.
        areas = [_area(*ranking(one), counts) for one in classes.tolist()]
        if not areas:
            return np.full(len(counts), np.nan)
        defined = ~np.isnan(areas)
        mean = np.where(defined, areas, 0).sum(axis=0) / np.maximum(defined.sum(axis=0), 1)
        return np.where(defined.any(axis=0), mean, np.nan)

    return figure


def _area(scores: NDArray[np.floating], truth: Flags, counts: Counts) -> NDArray[np.float64]:
    """Of one class: negatives below each positive, ties half, over all pairs."""
    order = np.argsort(scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    # Where each run of equal scores begins; all of a run share what lies below.
    starts = np.flatnonzero(np.append(True, ranked[1:] > ranked[:-1]))
    drawn = np.take(counts, order, axis=1)
    ups = np.add.reduceat(drawn * positive, starts, axis=1)
    downs = np.add.reduceat(drawn * ~positive, starts, axis=1)
    # All negatives up to this run of ties, less half of those within it.
    below = np.cumsum(downs, axis=1) - 0.5 * downs
    pairs = ups.sum(axis=1) * downs.sum(axis=1)
    ordered = (ups * below).sum(axis=1)
    return np.divide(ordered, pairs, out=np.full(len(counts), np.nan), where=pairs > 0)


def _mean_where_defined(
    above: NDArray[np.float64], below: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean over columns of a ratio, over those whose denominator is not 0."""
    ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
    known = (below > 0).sum(axis=1)
    mean: NDArray[np.float64] = ratio.sum(axis=1) / np.maximum(known, 1)
    return np.where(known > 0, mean, np.nan)
