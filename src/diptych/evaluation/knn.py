"""Weighted k-nearest-neighbour classification of features (InstDisc, section 3.4)."""

from typing import Final, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

NEIGHBOURS: Final = 20
TEMPERATURE: Final = 0.07
_MOST_VOTES: Final = 4_000_000  # held at once


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
    return _winners(*nearest(test, train, k), labels, temperature)


def knn_votes(
    train: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    test: Float[Tensor, "queries dim"],
    *,
    k: int = NEIGHBOURS,
    temperature: float = TEMPERATURE,
    classes: int | None = None,
) -> Float[Tensor, "queries classes"]:
    """The votes for each class; the nearest image's counts 1.

    Args:
        train: features of the images that vote.
        labels: their classes.
        test: features of the queries.
        k: images that vote.
        temperature: of the weights.
        classes: how many; as many as the labels say when not given.
    """
    return _votes(*nearest(test, train, k), labels, temperature, classes)


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
    return _winners(
        similarities[~itself].view(others), rows[~itself].view(others), labels, temperature
    )


def _winners(similarities: Tensor, rows: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The class with most votes, (queries,)."""
    # Of a block of queries at a time: the votes of all are queries times classes.
    classes = int(labels.max()) + 1
    block = max(1, _MOST_VOTES // classes)
    parts = zip(torch.split(similarities, block), torch.split(rows, block), strict=True)
    return torch.cat([_votes(*part, labels, temperature, classes).argmax(dim=1) for part in parts])


def _votes(
    similarities: Tensor,
    rows: Tensor,
    labels: Tensor,
    temperature: float,
    classes: int | None = None,
) -> Tensor:
    weights = ((similarities - similarities[:, :1]) / temperature).exp()
    votes = weights.new_zeros(len(rows), classes or int(labels.max()) + 1)
    return votes.scatter_add_(1, labels[rows], weights)


def accuracy(predicted: Int[Tensor, " queries"], truth: Int[Tensor, " queries"]) -> float:
    """Share of queries whose class is right."""
    return float((predicted == truth).double().mean())


# A tile of similarities bounds memory, whatever the number of images. It is wide, as picking the
# best of a row has a price for each row: tiles of 4,096 x 4,096 took 1.5 times as long.
_TILE_QUERIES: Final = 1024
_TILE_IMAGES: Final = 50_000

_ROUGH_FROM: Final = 8192  # images; below, a first look gains nothing
_CANDIDATES: Final = 2  # for each of the nearest that is wanted
_LAST_PLACE: Final = 2.0**-8  # bfloat16's, of a similarity as it is stored
_SUMMING: Final = 1e-4  # error of a sum in float32, generously


def nearest(
    queries: Float[Tensor, "queries dim"], bank: Float[Tensor, "images dim"], k: int
) -> tuple[Float[Tensor, "queries k"], Int[Tensor, "queries k"]]:
    """The k most similar rows of the bank for each query, by cosine.

    Returns:
        Similarities in falling order, and the rows they belong to.
    """
    queries, bank = functional.normalize(queries, dim=1), functional.normalize(bank, dim=1)
    k = min(k, len(bank))
    if _pays(bank) and len(bank) > _CANDIDATES * k:
        look = _FirstLook.of(bank)
        found = [look.nearest(some, k) for some in torch.split(queries, _TILE_QUERIES)]
    else:
        room = _room(bank)
        found = [_plain(some, bank, k, room) for some in torch.split(queries, _TILE_QUERIES)]
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


def _pays(bank: Tensor) -> bool:
    """Whether a first look in bfloat16 is faster here."""
    able = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    large = bank.device.type == "cpu" and bank.dtype == torch.float32 and len(bank) >= _ROUGH_FROM
    return large and bool(able())


def _room(bank: Tensor) -> Tensor:
    """Memory for a tile of similarities: to allocate it for each takes as long as to fill it."""
    return bank.new_empty(_TILE_QUERIES * min(len(bank), _TILE_IMAGES))


def _plain(queries: Tensor, bank: Tensor, k: int, room: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest, in the precision of the vectors."""
    values, places = [], []
    for start in range(0, len(bank), _TILE_IMAGES):
        some = bank[start : start + _TILE_IMAGES]
        tile = room[: len(queries) * len(some)].view(len(queries), len(some))
        torch.mm(queries, some.T, out=tile)
        found, columns = tile.topk(min(k, len(some)), dim=1)
        values.append(found)
        places.append(columns + start)
    if len(values) == 1:
        return values[0], places[0]
    best, order = torch.cat(values, dim=1).topk(k, dim=1)
    return best, torch.cat(places, dim=1).gather(1, order)


class _FirstLook(NamedTuple):
    """Vectors and what they are in bfloat16.

    Attributes:
        bank: (images, dim), of unit length.
        rounded: the same, rounded.
        farthest: the longest distance of a vector from its rounded one.
        room: for a tile of rounded similarities.
    """

    bank: Tensor
    rounded: Tensor
    farthest: float
    room: Tensor

    @classmethod
    def of(cls, bank: Tensor) -> "_FirstLook":
        rounded = bank.bfloat16()
        parts = zip(torch.split(bank, _ROUGH_FROM), torch.split(rounded, _ROUGH_FROM), strict=True)
        farthest = max(float((some - near.float()).norm(dim=1).max()) for some, near in parts)
        # A little more, as the distances are rounded too: ``nearest`` needs an upper bound.
        return cls(bank, rounded, 1.01 * farthest, _room(rounded))

    def nearest(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The nearest in float32 among those that look near."""
        looked = queries.bfloat16()
        rough, candidates = _plain(looked, self.rounded, _CANDIDATES * k, self.room)
        last = rough[:, -1].float()
        # Of an image that is no candidate, this is the most that the similarity can be.
        wrong = (queries - looked.float()).norm(dim=1) + self.farthest + _SUMMING
        most = last + last.abs() * _LAST_PLACE + wrong
        close = functional.embedding(candidates, self.bank)
        best, order = (close @ queries[:, :, None])[:, :, 0].topk(k, dim=1)
        rows = candidates.gather(1, order)
        # Where an image that was left out might be nearer, the whole bank is searched.
        unsure = torch.nonzero(best[:, -1] < most)[:, 0]
        if len(unsure):
            best[unsure], rows[unsure] = _plain(queries[unsure], self.bank, k, _room(self.bank))
        return best, rows
