"""The distance below which two images count as copies, from the distances of nearest neighbours.

Around an ordinary image the others lie as points in a space of m dimensions. Of K neighbours, the
volume that reaches the nearest is then the smallest of K - 1 uniform numbers, as a share of the
volume that reaches the last, so that

    P(nearest <= t | last) = 1 - (1 - (t / last)^m)^(K - 1)

and the sum over images is the number that is expected to have a neighbour within t without being
copies. A few copies are neighbours that are too near, and leave the distances to those behind them
nearly as they were: m is fitted to neighbours 8 to 16 (after Levina and Bickel 2004, eq. 8). The
threshold is the largest distance at which the expected number is a small part of what is found, as
with the false discovery rate of an empirical null, and no more than half of it close to the
threshold, as with the local rate (Efron 2004, sections 2 and 4).
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

SAME: Final = 1e-6
"""Cosine distance that is no more than rounding in float32."""
NEIGHBOURS: Final = 16
"""K, the neighbours of each image whose distances are looked at."""
WRONG_SHARE: Final = 0.05
"""Of the images with a neighbour within the threshold, those that are expected to be no copies."""
_CLOSE: Final = 0.8  # times the threshold: what is between the two is close to it
_WRONG_CLOSE: Final = 0.5  # of the images found there, those that are expected to be no copies
_FROM: Final = 8  # the first neighbour that is taken for an ordinary one: groups are smaller
_FEWEST: Final = 50  # images of whose distances anything can be said
_TRIED: Final = 2000  # distances that may become the threshold
# Where many copies of one image lie together, all of K are copies. Such an image is expected to
# have neighbours as near as one in a place that is dense, but not more.
_DENSEST: Final = 0.25  # times the median distance to the last neighbour


@dataclass(frozen=True)
class CopyThreshold:
    """What counts as a copy, and why.

    Attributes:
        distance: the largest cosine distance (1 - cosine) of copies.
        images: whose nearest neighbour was looked for.
        same: of them, those whose nearest neighbour has the same vector.
        nearer: of them, those with a neighbour no farther than ``distance``.
        median: of the distances to the nearest neighbour.
        dimension: m; None where the threshold was given, or there are too few images.
        expected: images with a neighbour within ``distance`` that are no copies.
    """

    distance: float
    images: int
    same: int
    nearer: int
    median: float
    dimension: float | None = None
    expected: float = 0.0

    def sentences(self) -> list[str]:
        """The threshold in words."""
        found = (
            f"Distances are 1 - cosine; to the nearest neighbour it is {self.median:.4f} in the "
            f"median. {self.nearer:,} of {self.images:,} images have a neighbour within "
            f"{self.distance:.4f}, {self.same:,} of them one with the same vector."
        )
        return [found, self._reason()]

    def _reason(self) -> str:
        if self.dimension is None:
            return (
                "The threshold was given."
                if self.distance > SAME
                else f"A threshold can be chosen from {_FEWEST} images on; of fewer, copies are "
                "those with the same vector. Give --threshold to find others."
            )
        how = (
            f"Neighbours {_FROM} to {NEIGHBOURS} of each image lie as in {self.dimension:.1f} "
            "dimensions, which says how near the first one comes by chance"
        )
        if self.distance <= SAME:
            return (
                f"{how}. No image has a nearer one than that in noticeable number, so copies are "
                "those with the same vector. Give --threshold to find others."
            )
        return (
            f"{how}: within {self.distance:.4f} for {self.expected:.1f} images. The threshold is "
            f"the largest distance at which these are at most {WRONG_SHARE:.0%} of those found, "
            "and at most half of those found close to it. Look at the pairs on both sides of it, "
            "and give --threshold to move it."
        )


def given_threshold(nearest: NDArray[np.floating], distance: float) -> CopyThreshold:
    """A threshold that somebody chose.

    Args:
        nearest: (images,), cosine distance of each image to its nearest neighbour.
        distance: the threshold.
    """
    return CopyThreshold(
        distance,
        len(nearest),
        int((nearest <= SAME).sum()),
        int((nearest <= distance).sum()),
        float(np.median(nearest)),
    )


def fit_threshold(distances: NDArray[np.floating]) -> CopyThreshold:
    """The threshold that the distances suggest.

    Args:
        distances: (images, K), cosine distances of each image to its nearest neighbours, rising.
    """
    nearest = distances[:, 0]
    if len(distances) < _FEWEST or distances.shape[1] < NEIGHBOURS:
        return given_threshold(nearest, SAME)
    known = np.maximum(distances[:, :NEIGHBOURS].astype(np.float64), SAME)
    dimension = _dimension(known)
    last = np.maximum(known[:, -1], _DENSEST * np.median(known[:, -1]))
    tried = np.unique(known[:, 0])
    tried = tried[np.unique(np.linspace(0, len(tried) - 1, _TRIED).astype(np.int64))]
    expected, found = _counts(tried, known[:, 0], last, dimension)
    expected_before, found_before = _counts(_CLOSE * tried, known[:, 0], last, dimension)
    close = expected - expected_before <= _WRONG_CLOSE * (found - found_before)
    good = np.flatnonzero((expected <= WRONG_SHARE * found) & close & (tried > SAME))
    chosen = given_threshold(nearest, float(tried[good[-1]]) if len(good) else SAME)
    return CopyThreshold(
        chosen.distance,
        chosen.images,
        chosen.same,
        chosen.nearer,
        chosen.median,
        dimension,
        float(expected[good[-1]]) if len(good) else 0.0,
    )


def _dimension(distances: NDArray[np.float64]) -> float:
    """The number of dimensions, from ratios of the last distance to those before it.

    It times the logarithm of last / j-th is the logarithm of a ratio of volumes, of which the mean
    is digamma(K) - digamma(j).
    """
    ratios = np.log(distances[:, -1:] / distances[:, _FROM - 1 : -1]).sum(axis=1)
    ratios = ratios[distances[:, _FROM - 1] > SAME]
    mean = float(ratios.mean()) if len(ratios) else 0.0
    wanted = float((digamma(NEIGHBOURS) - digamma(np.arange(_FROM, NEIGHBOURS))).sum())
    return wanted / max(mean, SAME)


def _counts(
    tried: NDArray[np.float64],
    nearest: NDArray[np.float64],
    last: NDArray[np.float64],
    dimension: float,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """For each distance, images expected to have so near a neighbour by chance, and those found."""
    expected = np.empty(len(tried))
    for place, distance in enumerate(tried):
        share = np.minimum(distance / last, 1.0) ** dimension
        expected[place] = (1 - (1 - share) ** (NEIGHBOURS - 1)).sum()
    return expected, np.searchsorted(np.sort(nearest), tried, side="right")
