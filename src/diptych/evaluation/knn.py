"""Weighted k-nearest-neighbour classification of features (InstDisc, section 3.4)."""

from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07
_CHUNK: Final = 4096  # rows of a similarity tile: bounds memory, whatever the number of images


def nearest(
    queries: Float[Tensor, "queries dim"], bank: Float[Tensor, "images dim"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k most similar rows of the bank for each query, by cosine, exact, in tiles.

    Returns:
        Similarities in falling order, and the rows they belong to.
    """
    queries, bank = functional.normalize(queries, dim=1), functional.normalize(bank, dim=1)
    k = min(k, len(bank))
    similarities, rows = [], []
    for begin in range(0, len(queries), _CHUNK):
        some = queries[begin : begin + _CHUNK]
        best = some.new_full((len(some), 0), 0.0)
        best_rows = torch.zeros((len(some), 0), dtype=torch.long, device=some.device)
        for start in range(0, len(bank), _CHUNK):
            tile = some @ bank[start : start + _CHUNK].T
            found, columns = tile.topk(min(k, tile.shape[1]), dim=1)
            best = torch.cat([best, found], dim=1)
            best_rows = torch.cat([best_rows, columns + start], dim=1)
            best, order = best.topk(min(k, best.shape[1]), dim=1)
            best_rows = best_rows.gather(1, order)
        similarities.append(best)
        rows.append(best_rows)
    return torch.cat(similarities), torch.cat(rows)


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
    similarities, rows = nearest(test, train, k)
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(test), int(labels.max()) + 1)
    votes.scatter_add_(1, labels[rows], weights)
    return votes.argmax(dim=1)


def accuracy(predicted: Int[Tensor, " queries"], truth: Int[Tensor, " queries"]) -> float:
    """Share of queries whose class is right."""
    return float((predicted == truth).double().mean())
