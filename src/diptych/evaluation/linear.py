"""A linear classifier on frozen features: multinomial logistic regression by L-BFGS.

SimCLR, appendix B.8: no augmentation, the l2 strength chosen on a held-out part of the training
images. Features are standardised first, so that one range of strengths fits every encoder.
"""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from diptych.evaluation.knn import accuracy

L2_STRENGTHS: Final = tuple(10.0**power for power in range(0, -7, -1))
"""Tried from strong to weak, each starting from the last one's weights."""

_HELD_OUT: Final = 5  # one image in this many chooses the strength
_MOST_ITERATIONS: Final = 100
_PATIENCE: Final = 2  # weaker strengths that do no better, after which none weaker is tried


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

    def predict(self, features: Float[Tensor, "images dim"]) -> Int[Tensor, " images"]:
        """The most likely class of each image."""
        standard = (features - self.mean) * self.scale
        return functional.linear(standard, self.weight, self.bias).argmax(dim=1)


def fit_linear(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    *,
    seed: int = 0,
) -> LinearClassifier:
    """Chooses the l2 strength on a held-out fifth, then fits on all images."""
    classes = int(labels.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(features), generator=generator)
    held_out, rest = order[: len(order) // _HELD_OUT], order[len(order) // _HELD_OUT :]
    best, best_accuracy, worse = L2_STRENGTHS[0], -1.0, 0
    start: LinearClassifier | None = None
    for l2 in L2_STRENGTHS if len(held_out) else ():
        start = fit_with_strength(features[rest], labels[rest], classes, l2, start)
        reached = accuracy(start.predict(features[held_out]), labels[held_out])
        worse = 0 if reached > best_accuracy else worse + 1
        if worse == 0:
            best, best_accuracy = l2, reached
        elif worse == _PATIENCE:
            break
    return fit_with_strength(features, labels, classes, best, None)


def fit_with_strength(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    classes: int,
    l2: float,
    start: LinearClassifier | None,
) -> LinearClassifier:
    """Minimises mean cross-entropy + l2 / 2 x |weight|^2; the bias is free."""
    mean = features.mean(dim=0)
    spread = features.std(dim=0, correction=0)
    scale = torch.where(spread > 1e-6 * spread.max(), 1.0 / spread, torch.zeros_like(spread))
    standard = (features - mean) * scale
    if start is None:
        weight = torch.zeros(classes, features.shape[1], dtype=features.dtype)
        bias = torch.zeros(classes, dtype=features.dtype)
    else:
        weight, bias = start.weight.clone(), start.bias.clone()
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_MOST_ITERATIONS,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        logits = functional.linear(standard, weight, bias)
        loss = functional.cross_entropy(logits, labels) + 0.5 * l2 * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(objective)  # type: ignore[no-untyped-call]
    return LinearClassifier(weight.detach(), bias.detach(), mean, scale, l2)
