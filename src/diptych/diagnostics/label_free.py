"""Choosing among encoders without labels, and how far to trust such a choice.

A measure without labels is useful as far as it orders encoders as accuracy does. Rank correlation
measures that, over runs on images with labels.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

COMBINED: Final = "combined"

_FEWEST: Final = 3  # of two, any two measures agree or disagree by chance
_ALL_ORDERS: Final = 7  # up to so many, every order is tried; beyond, some at random
_ORDERS: Final = 5000
_NEIGHBOURS: Final = 10
_SAME_COSINE: Final = 1e-6  # features are float32: cosines nearer to each other are equal
_LEAST_VARIANCE: Final = 1e-10  # of unit vectors: below, neighbours are those of rounding


class Agreement(NamedTuple):
    """How far the order by a measure agrees with the order by accuracy.

    Attributes:
        kendall: tau-b, 1 for the same order, -1 for the opposite one, 0 for none.
        spearman: correlation of the ranks.
        p_value: how often as large a tau, of either sign, comes by chance.
        encoders: how many were compared.
        lost: accuracy of the best encoder, less that of the one which the measure puts first.
    """

    kendall: float
    spearman: float
    p_value: float
    encoders: int
    lost: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()


def rank_agreement(
    measures: Mapping[str, Sequence[float | None]], accuracy: Sequence[float | None]
) -> dict[str, Agreement | None]:
    """Compares the order of encoders by each measure with their order by accuracy.

    Args:
        measures: by name, one value for each encoder, more is better; None or NaN where it is not
            known, and that encoder is left out.
        accuracy: of each encoder, as by kNN.

    Returns:
        For each measure, and for all of them ``combined``, the agreement; None where there are
        fewer than three encoders, or where all are alike.
    """
    asked = {**measures, COMBINED: combined_rank(measures)}
    return {name: _agreement(_numbers(one), _numbers(accuracy)) for name, one in asked.items()}


def combined_rank(measures: Mapping[str, Sequence[float | None]]) -> list[float | None]:
    """For each encoder the mean over measures of the share of the others that it is better than.

    Args:
        measures: as for ``rank_agreement``. The mean of an
            encoder leaves out measures that have no value for it.

    Returns:
        0 for the worst by all measures, 1 for the best, None where no measure has a value.

    >>> combined_rank({"rank": [5.0, 9.0, 7.0], "pretext": [0.1, 0.3, 0.9]})
    [0.0, 0.75, 0.75]
    """
    shares = [_shares(_numbers(one)) for one in measures.values()]
    columns = np.array(shares).T if shares else np.empty((0, 0))
    return [float(np.nanmean(column)) if not np.isnan(column).all() else None for column in columns]


def neighbour_agreement(
    first: Float[Tensor, "images dim"],
    second: Float[Tensor, "images other"],
    neighbours: int = _NEIGHBOURS,
) -> float:
    """Share of an image's nearest neighbours that are the same in two sets of features.

    Args:
        first: of images.
        second: of the same images, from another view or another encoder.
        neighbours: of each image, by cosine after the mean is taken off.

    Returns:
        1 where all agree; neighbours / (images - 1) by chance; 0 for features that are one point.
        Ties among equally near images are broken at random, differently in the two sets: otherwise
        features that are few points would agree by the order of the images.
    """
    count = min(neighbours, len(first) - 1)
    found = [_neighbours(one, count, seed) for seed, one in enumerate((first, second))]
    if count < 1 or found[0] is None or found[1] is None:
        return 0.0
    same = found[0][:, :, None] == found[1][:, None, :]
    return float(same.any(dim=2).double().mean())


def _neighbours(features: Tensor, count: int, seed: int) -> Tensor | None:
    unit = functional.normalize(features.double(), dim=1)
    centred = unit - unit.mean(dim=0)
    if float(centred.square().sum(dim=1).mean()) < _LEAST_VARIANCE:
        return None
    unit = functional.normalize(centred, dim=1)
    cosines = (unit @ unit.T).fill_diagonal_(-math.inf)
    # Rounded to whole steps, to which less than half a step is added by chance: this orders ties
    # only.
    tied = cosines.div_(_SAME_COSINE).round_()
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(tied.shape, generator=generator, dtype=torch.float64)
    return tied.add_(0.5 * chance).topk(count, dim=1).indices


def _agreement(measure: NDArray[np.float64], accuracy: NDArray[np.float64]) -> Agreement | None:
    from scipy import stats  # half a second, which the start of a run is spared

    known = ~(np.isnan(measure) | np.isnan(accuracy))
    measure, accuracy = measure[known], accuracy[known]
    if len(measure) < _FEWEST or np.ptp(measure) == 0 or np.ptp(accuracy) == 0:
        return None
    # Of several that it puts first the mean: which of them comes first in the list is luck.
    chosen = accuracy[measure == measure.max()].mean()
    return Agreement(
        kendall=float(stats.kendalltau(measure, accuracy).statistic),
        spearman=float(stats.spearmanr(measure, accuracy).statistic),
        p_value=_chance_of(measure, accuracy),
        encoders=len(measure),
        lost=float(accuracy.max() - chosen),
    )


def _chance_of(measure: NDArray[np.float64], accuracy: NDArray[np.float64]) -> float:
    """Share of orders with as large a tau or a larger one; random orders include the given one.

    Only the sum over pairs changes with the order: the sums are integers, so none is near another.
    """
    count = len(measure)
    signs, others = (np.sign(one[:, None] - one[None, :]) for one in (measure, accuracy))

    def agreeing_pairs(orders: NDArray[np.int64]) -> NDArray[np.float64]:
        reordered = others[orders[:, :, None], orders[:, None, :]]
        return np.abs(np.einsum("ij,nij->n", signs, reordered))

    given = agreeing_pairs(np.arange(count)[None])[0]
    if count <= _ALL_ORDERS:
        every = np.array(list(itertools.permutations(range(count))))
        return float(np.mean(agreeing_pairs(every) >= given))
    generator = np.random.Generator(np.random.Philox(0))
    drawn = np.array([generator.permutation(count) for _ in range(_ORDERS)])
    as_large = sum(int(np.sum(agreeing_pairs(some) >= given)) for some in np.array_split(drawn, 20))
    return float((1 + as_large) / (1 + _ORDERS))


def _shares(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rank from 0 to 1 among the known values, ties by their mean; NaN where it is not known."""
    from scipy import stats

    shares = np.full(len(values), np.nan)
    known = ~np.isnan(values)
    others = max(1, int(known.sum()) - 1)
    shares[known] = (stats.rankdata(values[known]) - 1) / others if known.sum() > 1 else 0.5
    return shares


def _numbers(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([math.nan if value is None else value for value in values], dtype=np.float64)
