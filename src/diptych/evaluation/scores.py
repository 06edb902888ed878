"""Figures of a classifier as functions of how often each test image counts, for the bootstrap.

Each takes what a classifier said of the images and returns a function from counts, (draws, images),
to figures, (draws,). With counts of one it is the plain figure.
"""

import numpy as np
from numpy.typing import NDArray

from diptych.evaluation.confidence import Statistic

Counts = NDArray[np.float64]
Flags = NDArray[np.bool_]


def accuracy_of(right: Flags) -> Statistic:
    """Share of the images that are right; (images,)."""
    values = right.astype(np.float64)
    return lambda counts: counts @ values / counts.sum(axis=1)


def mean_per_class(predicted: NDArray[np.int64], truth: NDArray[np.int64]) -> Statistic:
    """Mean over classes of the share of a class that is right; classes without images left out."""
    members = truth[:, None] == np.unique(truth)
    right = members & (predicted == truth)[:, None]

    def figure(counts: Counts) -> NDArray[np.float64]:
        return _mean_where_defined(counts @ right.astype(float), counts @ members.astype(float))

    return figure


def macro_f1(predicted: Flags, truth: Flags) -> Statistic:
    """Mean over classes of F1 = 2 TP / (2 TP + FP + FN).

    Args:
        predicted: (images, classes), what was said; several of a row may be true.
        truth: (images, classes), what is. A class that neither has is left out.
    """
    both = (predicted & truth).astype(float)
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
    columns = [_auc(scores[:, c], truth[:, c]) for c in np.flatnonzero(_mixed(truth))]
    if not columns:
        return lambda counts: np.full(len(counts), np.nan)

    def figure(counts: Counts) -> NDArray[np.float64]:
        areas = np.stack([column(counts) for column in columns])
        defined = ~np.isnan(areas)
        known = np.maximum(defined.sum(axis=0), 1)
        return np.where(
            defined.any(axis=0), np.where(defined, areas, 0).sum(axis=0) / known, np.nan
        )

    return figure


def share_of_answers(predicted: Flags, truth: Flags) -> Statistic:
    """Share of all yes-or-no answers, of every label for every image, that are right."""
    right = (predicted == truth).mean(axis=1)
    return lambda counts: counts @ right / counts.sum(axis=1)


def _mixed(truth: Flags) -> Flags:
    return np.asarray(truth.any(axis=0) & ~truth.all(axis=0), dtype=np.bool_)


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
