"""Weighted k-nearest-neighbour classification of features (InstDisc, section 3.4)."""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.evaluation.nearest import nearest

NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07


def knn_predict(
    train: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    test: Float[Tensor, "queries dim"],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Int[Tensor, " queries"]:
    """Each query's class by a vote of its k nearest images, weighted by exp(cosine / T).

    The weights are taken relative to the nearest image's, which changes no vote and cannot
    overflow.
    """
    return _vote(*nearest(test, train, k), labels, temperature)


def leave_one_out(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
) -> Int[Tensor, " images"]:
    """Each image's class by a vote of its k nearest others: for one set without a test part."""
    similarities, rows = nearest(features, features, k + 1)
    # An image is its own nearest, but for copies of it, which tie: then the last one goes.
    itself = rows == torch.arange(len(features), device=rows.device)[:, None]
    itself[:, -1] |= ~itself.any(dim=1)
    others = (len(features), rows.shape[1] - 1)
    return _vote(
        similarities[~itself].view(others), rows[~itself].view(others), labels, temperature
    )


def _vote(similarities: Tensor, rows: Tensor, labels: Tensor, temperature: float) -> Tensor:
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(rows), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[rows], weights)
    return votes.argmax(dim=1)


def accuracy(predicted: Int[Tensor, " queries"], truth: Int[Tensor, " queries"]) -> float:
    """Share of queries whose class is right."""
    return float((predicted == truth).double().mean())
