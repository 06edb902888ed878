"""L-BFGS for linear classifiers: the curvature that all share is known before the first step.

The Hessian of a linear classifier's mean loss is near c X'X / n + l2, where c is what the loss
bends by at most at the start. L-BFGS begins from the inverse of that instead of from a multiple of
the identity (Nocedal and Wright, *Numerical Optimization*, 2nd edition, algorithms 7.4 and 3.1),
and then needs tens of passes over the features instead of hundreds.
"""

from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

_PAIRS: Final = 12  # steps remembered
_SUFFICIENT: Final = 1e-4  # of the decrease that the slope promises (Armijo's condition)
_FLATTER: Final = 0.9  # than before, along the step
_ROUNDING: Final = 8  # units in the last place by which two losses may differ and be the same
_SHORTEST: Final = 1e-6  # step; a shorter one is beyond the precision of the loss


class Found(NamedTuple):
    """Where the search ended.

    Attributes:
        point: (rows, columns).
        passes: evaluations of the objective.
        steepness: largest slope of any weight.
    """

    point: Float[Tensor, "rows columns"]
    passes: int
    steepness: float


def minimise(
    objective: Callable[[Tensor], tuple[float, Tensor]],
    start: Float[Tensor, "rows columns"],
    inverse_curvature: Float[Tensor, "columns columns"],
    *,
    tolerance: float,
    most_passes: int,
) -> Found:
    """Minimises a smooth convex function of a matrix.

    Args:
        objective: gives value and gradient at a point.
        start: where to begin.
        inverse_curvature: of a row; symmetric and positive definite.
        tolerance: ends where no slope is steeper.
        most_passes: ends after so many evaluations.
    """
    point, passes = start, 1
    value, slope = objective(point)
    noise = _ROUNDING * torch.finfo(start.dtype).eps
    pairs: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_PAIRS)
    while passes < most_passes and float(slope.abs().max()) > tolerance:
        direction = _downhill(slope, pairs, inverse_curvature)
        promised = float((direction * slope).sum())
        length = 1.0
        while length > _SHORTEST:
            moved = point + length * direction
            reached, new_slope = objective(moved)
            passes += 1
            if reached <= value + _SUFFICIENT * length * promised:
                break
            # So near the end that the loss is all rounding, the slope still tells (Hager and Zhang
            # 2005, section 2).
            left = abs(float((direction * new_slope).sum()))
            if reached <= value + noise * abs(value) and left <= _FLATTER * -promised:
                break
            length = _shorter(length, value, reached, promised)
        else:
            break  # what is left to gain drowns in rounding
        step, bend = moved - point, new_slope - slope
        along = float((step * bend).sum())
        if along > 0:
            pairs.append((step, bend, along))
        point, value, slope = moved, reached, new_slope
    return Found(point, passes, float(slope.abs().max()))


def _shorter(length: float, value: float, reached: float, promised: float) -> float:
    """Where a parabola through what is known is lowest, between a tenth and a half of the step."""
    bend = 2.0 * (reached - value - length * promised)
    lowest = -promised * length * length / bend if bend > 0 else 0.5 * length
    return min(max(lowest, 0.1 * length), 0.5 * length)


def _downhill(
    slope: Tensor, pairs: deque[tuple[Tensor, Tensor, float]], inverse_curvature: Tensor
) -> Tensor:
    """Minus the approximate inverse Hessian times the slope, in two loops (algorithm 7.4)."""
    left, shares = slope, []
    for step, bend, along in reversed(pairs):
        share = float((step * left).sum()) / along
        shares.append(share)
        left = left - share * bend
    found = left @ inverse_curvature
    if pairs:
        step, bend, along = pairs[-1]
        found = found * (along / float((bend * (bend @ inverse_curvature)).sum()))
    for (step, bend, along), share in zip(pairs, reversed(shares), strict=True):
        found = found + (share - float((bend * found).sum()) / along) * step
    return -found
