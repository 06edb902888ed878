"""A linear classifier on frozen features: logistic regression by L-BFGS.

SimCLR, appendix B.8: no augmentation, the l2 strength chosen on a held-out part of the training
images. Features are standardised first, so that one range of strengths fits every encoder.
"""

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diptych.evaluation.knn import accuracy
from diptych.images.groups import stratified_group_split

L2_STRENGTHS: Final = tuple(10.0**power for power in range(0, -7, -1))
"""Tried from strong to weak, each starting from the last one's weights."""

SIMCLR_STRENGTHS: Final = tuple(10.0 ** (5 - 0.25 * place) for place in range(45))
"""SimCLR's, 45 values from 1e5 down to 1e-6 (appendix B.8)."""

L2_SWEEPS: Final = {"seven": L2_STRENGTHS, "simclr": SIMCLR_STRENGTHS}
"""By the names that ``--l2-sweep`` takes."""

FEW: Final = 2500
"""Images, below which one held-out fifth is too few to choose by.

Five take three times as long, which for some thousand images of as many features is a minute.
"""

_FIFTHS: Final = 5  # that choose together where there are few images
_MOST_PASSES: Final = 300
_TOLERANCE: Final = 1e-5  # largest slope of any weight, of the mean loss
_ROUGH_TOLERANCE: Final = 1e-4  # enough to compare strengths
_ROWS: Final = 8192  # images that are scored at once
_FLOOR: Final = 1e-6  # of the largest curvature: directions that the features do not have
_LEAST_SPREAD: Final = 0.01  # of the root mean square over dimensions: none is divided by less

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From scores (rows, classes) and targets: the sum of losses, and its gradient by the scores."""


class LinearClassifier(NamedTuple):
    """Weights over standardised features.

    Attributes:
        weight: (classes, dim).
        bias: (classes,).
        mean: (dim,), taken off the features.
        scale: (dim,), multiplied onto them.
        l2: strength it was trained with.
    """

    weight: Float[Tensor, "classes dim"]
    bias: Float[Tensor, " classes"]
    mean: Float[Tensor, " dim"]
    scale: Float[Tensor, " dim"]
    l2: float

    def scores(self, features: Float[Tensor, "images dim"]) -> Float[Tensor, "images classes"]:
        """Logits of each image."""
        standard = (features - self.mean) * self.scale
        return functional.linear(standard, self.weight, self.bias)

    def predict(self, features: Float[Tensor, "images dim"]) -> Int[Tensor, " images"]:
        """The most likely class of each image."""
        return self.scores(features).argmax(dim=1)


def fit_linear(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    *,
    seed: int = 0,
    strengths: Sequence[float] = L2_STRENGTHS,
    groups: NDArray[np.int64] | None = None,
) -> LinearClassifier:
    """Chooses the l2 strength on held-out images, then fits on all images.

    Of ``FEW`` images and more on a fifth of them, by accuracy. Of fewer on five such fifths, one
    after the other, by the Brier score: the accuracy of a hundred images is off by some points, and
    chose strengths that cost as many; and the mean loss is that of the worst image, where a feature
    that hardly varies in the rest is far off.

    Args:
        features: of the training images.
        labels: their classes.
        seed: decides which fifths.
        strengths: tried in this order, which should be from strong to weak.
        groups: (images,), numbers: no group has images in the fifth and in the rest.
    """
    return _fit(features, labels, strengths, softmax_loss, int(labels.max()) + 1, seed, groups)


def fit_multilabel(
    features: Float[Tensor, "images dim"],
    targets: Float[Tensor, "images labels"],
    *,
    seed: int = 0,
    strengths: Sequence[float] = L2_STRENGTHS,
    groups: NDArray[np.int64] | None = None,
) -> LinearClassifier:
    """One logistic regression for each of several labels that an image may have together.

    Args:
        features: of the training images.
        targets: 1 where an image has a label, else 0.
        seed: decides which fifth of the images chooses the strength, or which five of them, by
            the Brier score. By the share of right answers, a classifier that always says no would
            win where labels are rare.
        strengths: one for all labels, tried in this order.
        groups: as for ``fit_linear``.
    """
    return _fit(features, targets, strengths, sigmoid_loss, targets.shape[1], seed, groups)


def fit_with_strength(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    classes: int,
    l2: float,
    start: LinearClassifier | None,
) -> LinearClassifier:
    """Minimises mean cross-entropy + l2 / 2 x |weight|^2; the bias is free."""
    return _Problem.of(features, labels, softmax_loss, classes).fit(l2, start)


def softmax_loss(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of cross-entropies, and its gradient, which takes the place of the scores."""
    rows = torch.arange(len(scores))
    normaliser = scores.logsumexp(dim=1, keepdim=True)
    # Before the gradient: it overwrites the scores, as another tensor of their size costs time.
    loss = (normaliser[:, 0] - scores[rows, labels]).double().sum()
    gradient = scores.sub_(normaliser).exp_()
    gradient[rows, labels] -= 1.0
    return loss, gradient


def sigmoid_loss(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over labels of binary cross-entropies, and its gradient."""
    wanted = targets.to(scores.dtype)
    loss = functional.binary_cross_entropy_with_logits(scores, wanted, reduction="none")
    return loss.double().sum(), scores.sigmoid_().sub_(wanted)


class _Problem(NamedTuple):
    """Standardised features with their targets.

    With fewer images than dimensions the best weights lie in the span of the images, as any other
    part of them raises the penalty and changes no score: the search is in that span.
    """

    standard: Tensor  # (images, dim), or (images, images) in the basis
    basis: Tensor | None  # (dim, images), orthonormal
    targets: Tensor
    loss: Loss
    classes: int
    mean: Tensor
    scale: Tensor
    eigenvalues: Tensor  # of standard' standard / images
    eigenvectors: Tensor

    @classmethod
    def of(cls, features: Tensor, targets: Tensor, loss: Loss, classes: int) -> "_Problem":
        mean = features.mean(dim=0)
        spread = features.std(dim=0, correction=0)
        # A dimension that varies by rounding alone is left out: divided by its spread, it would
        # weigh as much as a feature. One that hardly varies here may do so in another image, which
        # would then be a thousand spreads away.
        least = _LEAST_SPREAD * spread.square().mean().sqrt()
        varies = spread > 1e-6 * spread.max()
        scale = torch.where(varies, 1.0 / spread.clamp(min=least), torch.zeros_like(spread))
        standard, basis = (features - mean).mul_(scale), None
        if len(standard) < standard.shape[1]:
            *_, rows = torch.linalg.svd(standard, full_matrices=False)
            basis = rows.T.contiguous()
            standard = standard @ basis
        values, vectors = torch.linalg.eigh((standard.T @ standard).double() / len(standard))
        return cls(standard, basis, targets, loss, classes, mean, scale, values, vectors)

    def fit(
        self, l2: float, start: LinearClassifier | None, tolerance: float = _TOLERANCE
    ) -> LinearClassifier:
        """The bias is the last column of what is searched."""
        kind, dim = self.standard.dtype, self.standard.shape[1]
        begin = self.standard.new_zeros(self.classes, dim + 1)
        if start is not None:
            begin[:, :-1] = start.weight if self.basis is None else start.weight @ self.basis
            begin[:, -1] = start.bias
        bend = self._bend()
        curved = (bend * self.eigenvalues).clamp(min=_FLOOR * bend) + l2
        inverse = torch.zeros(dim + 1, dim + 1, dtype=torch.float64)
        inverse[:dim, :dim] = (self.eigenvectors / curved) @ self.eigenvectors.T
        # Features have mean 0, so the bias bends apart from the weights; it has no penalty.
        inverse[dim, dim] = 1.0 / bend
        found = minimise(
            partial(self._objective, l2=l2),
            begin,
            inverse.to(kind),
            tolerance=tolerance,
            most_passes=_MOST_PASSES,
        ).point
        weight = found[:, :-1].contiguous()
        weight = weight if self.basis is None else weight @ self.basis.T
        return LinearClassifier(weight, found[:, -1].clone(), self.mean, self.scale, l2)

    def _bend(self) -> float:
        """Second derivative of the loss by a score where all scores are 0."""
        return 0.25 if self.loss is sigmoid_loss else 1.0 / self.classes

    def _objective(self, point: Tensor, *, l2: float) -> tuple[float, Tensor]:
        """Mean loss with its penalty, and the gradient; sums over images are in float64."""
        weight, bias = point[:, :-1].contiguous(), point[:, -1]
        gradient = torch.zeros_like(point, dtype=torch.float64)
        total = 0.0
        for begin in range(0, len(self.standard), _ROWS):
            some = self.standard[begin : begin + _ROWS]
            scores = functional.linear(some, weight, bias)
            loss, slope = self.loss(scores, self.targets[begin : begin + _ROWS])
            total += float(loss)
            gradient[:, :-1] += slope.T @ some
            gradient[:, -1] += slope.sum(dim=0)
        gradient /= len(self.standard)
        gradient[:, :-1] += l2 * weight
        penalty = 0.5 * l2 * float(weight.double().square().sum())
        return total / len(self.standard) + penalty, gradient.to(point.dtype)


def _fit(
    features: Tensor,
    targets: Tensor,
    strengths: Sequence[float],
    loss: Loss,
    classes: int,
    seed: int,
    groups: NDArray[np.int64] | None,
) -> LinearClassifier:
    few = len(targets) < FEW
    score = accuracy_of if targets.ndim == 1 and not few else minus_brier
    scores = np.zeros(len(strengths))
    for draw in range(0 if len(strengths) < 2 else _FIFTHS if few else 1):
        rest, held_out, _ = map(
            torch.from_numpy,
            stratified_group_split(targets.cpu().numpy(), groups, seed=seed + draw),
        )
        if not len(held_out):
            continue
        problem = _Problem.of(features[rest], targets[rest], loss, classes)
        start: LinearClassifier | None = None
        # All of them: accuracy has more than one peak, so no stop before the last is safe.
        for place, l2 in enumerate(strengths):
            start = problem.fit(l2, start, _ROUGH_TOLERANCE)
            scores[place] += score(start, features[held_out], targets[held_out])
        del problem
    # Of equals the first, which is the strongest: strengths fall.
    best = strengths[int(np.nan_to_num(scores, nan=-np.inf).argmax())]
    # From 0 and not from `start`, whose weights are for features standardised otherwise.
    return _Problem.of(features, targets, loss, classes).fit(best, None)


def accuracy_of(classifier: LinearClassifier, features: Tensor, targets: Tensor) -> float:
    """The share of right answers."""
    return accuracy(classifier.predict(features), targets)


def minus_brier(classifier: LinearClassifier, features: Tensor, targets: Tensor) -> float:
    """Minus the Brier score (1950): the squared distance of probabilities and truth, 0 to 2.

    Least for the true probabilities, as the mean loss is, and bounded: no image decides alone.

    Args:
        classifier: of the features.
        features: (images, dim).
        targets: (images,) classes, or (images, labels) of 0 and 1, of which it is the mean.
    """
    scores = classifier.scores(features).double()
    if targets.ndim == 1:
        wanted = functional.one_hot(targets, scores.shape[1])
        return -float((scores.softmax(dim=1) - wanted).square().sum(dim=1).mean())
    return -float((scores.sigmoid() - targets).square().mean())


_PAIRS: Final = 12  # steps kept
_SUFFICIENT: Final = 1e-4  # of the decrease that the slope promises (Armijo's condition)
_FLATTER: Final = 0.9  # than before, along the step
_ROUNDING: Final = 8  # units in the last place by which two losses may differ and be the same
_SHORTEST: Final = 1e-6  # step; a shorter one is beyond the precision of the loss


class Minimum(NamedTuple):
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
) -> Minimum:
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
        # Other pairs would make the approximate inverse Hessian indefinite.
        if along > 0:
            pairs.append((step, bend, along))
        point, value, slope = moved, reached, new_slope
    return Minimum(point, passes, float(slope.abs().max()))


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
        # Scaled by the newest step (Nocedal and Wright, *Numerical Optimization*, eq. 7.20), with
        # the given curvature in place of the identity.
        found = found * (along / float((bend * (bend @ inverse_curvature)).sum()))
    for (step, bend, along), share in zip(pairs, reversed(shares), strict=True):
        found = found + (share - float((bend * found).sum()) / along) * step
    return -found
