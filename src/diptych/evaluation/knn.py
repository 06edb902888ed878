"""Weighted k-nearest-neighbour classification of features (InstDisc, section 3.4)."""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07
# A tile of similarities bounds memory, whatever the number of images. It is wide, as picking the
# best of a row has a price for each row: tiles of 4,096 x 4,096 took 1.5 times as long.
_TILE_QUERIES: Final = 1024
_TILE_IMAGES: Final = 50_000


def nearest(
    queries: Float[Tensor, "queries dim"], bank: Float[Tensor, "images dim"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k most similar rows of the bank for each query, by cosine, exact, in tiles.

    Returns:
        Similarities in falling order, and the rows they belong to.
    """
    queries, bank = functional.normalize(queries, dim=1), functional.normalize(bank, dim=1)
    k = min(k, len(bank))
    found = [_nearest(some, bank, k) for some in torch.split(queries, _TILE_QUERIES)]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def _nearest(queries: Tensor, bank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    best = queries.new_empty(len(queries), 0)
    rows = torch.empty(len(queries), 0, dtype=torch.long, device=queries.device)
    for start in range(0, len(bank), _TILE_IMAGES):
        tile = queries @ bank[start : start + _TILE_IMAGES].T
        found, columns = tile.topk(min(k, tile.shape[1]), dim=1)
        best, rows = torch.cat([best, found], dim=1), torch.cat([rows, columns + start], dim=1)
        best, order = best.topk(min(k, best.shape[1]), dim=1)
        rows = rows.gather(1, order)
    return best, rows


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
