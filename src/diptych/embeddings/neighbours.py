"""Exact nearest neighbours, block by block: the memory does not grow with the square of a set."""

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_BLOCK_BYTES: Final = 1 << 26  # of similarities at once
_ROWS: Final = 256  # of queries at once: the fewer, the wider are blocks, and the quicker is topk
_GROUP: Final = 32  # columns that are looked at together


class Neighbours(NamedTuple):
    """The nearest rows of each query, the nearest first.

    Attributes:
        rows: int64 (queries, k), of the set that was searched.
        similarities: float32 (queries, k), cosines.
    """

    rows: NDArray[np.int64]
    similarities: NDArray[np.float32]


def unit_length(features: NDArray[np.float32]) -> Tensor:
    """(images, dim) of length one, so that their products are cosines; zeros stay zeros."""
    return functional.normalize(torch.from_numpy(np.ascontiguousarray(features)), dim=1)


def nearest(
    queries: NDArray[np.float32],
    searched: NDArray[np.float32],
    k: int,
    *,
    exclude_own_row: bool = False,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """The k rows of ``searched`` with the largest cosine to each query, exactly.

    Of equal cosines the lower row comes first, whatever the blocks.

    Args:
        queries: (queries, dim).
        searched: (rows, dim).
        k: of them; all there are, if there are fewer.
        exclude_own_row: query i is row i, which is no neighbour of itself.
        device: where products are computed.
    """
    most = min(k, len(searched) - exclude_own_row)
    parts = [
        (rows.numpy(), values.numpy())
        for _, rows, values in _blocks(queries, searched, most, exclude_own_row, device)
    ]
    if not parts or most < 1:
        shape = (len(queries), max(0, most))
        return Neighbours(np.empty(shape, np.int64), np.empty(shape, np.float32))
    return Neighbours(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _blocks(
    queries: NDArray[np.float32],
    searched: NDArray[np.float32],
    k: int,
    exclude_own_row: bool,
    device: str | torch.device,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """First query of a block, and (queries of the block, k) rows and similarities."""
    if k < 1:
        return
    ours, theirs = unit_length(queries), unit_length(searched).to(device)
    width = min(len(theirs), max(k, _BLOCK_BYTES // (4 * _ROWS)))
    # Memory that is new to the process costs as much as half of the product.
    memory = theirs.new_empty(min(_ROWS, len(ours)) * width)
    for first in range(0, len(ours), _ROWS):
        block = ours[first : first + _ROWS].to(device)
        best_values = block.new_empty((len(block), 0))
        best_rows = torch.empty((len(block), 0), dtype=torch.int64, device=device)
        for begin in range(0, len(theirs), width):
            part = theirs[begin : begin + width].T
            values = memory[: len(block) * part.shape[1]].view(len(block), -1)
            torch.mm(block, part, out=values)
            if exclude_own_row:
                own = torch.arange(first, first + len(block), device=device) - begin
                inside = torch.nonzero((own >= 0) & (own < values.shape[1])).flatten()
                values[inside, own[inside]] = -torch.inf
            top, at = _top(values, min(k, values.shape[1]))
            best_values = torch.cat([best_values, top], dim=1)
            best_rows = torch.cat([best_rows, at + begin], dim=1)
            best_values, best_rows = _best(best_values, best_rows, k)
        yield first, best_rows.cpu(), best_values.cpu()


def _top(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row and their columns; of equal ones at the end the first columns."""
    columns, beyond = _candidates(values, k)
    among = values if columns is None else values.gather(1, columns)
    top, at = among.topk(k, dim=1)
    at = at if columns is None else columns.gather(1, at)
    # topk takes any of equal values: where more than fit are as large as the last, sort that row.
    last = top[:, -1:]
    tied = ((among >= last).sum(dim=1) > k) | (beyond >= last[:, 0])
    for row in torch.nonzero(tied).flatten().tolist():
        order = values[row].argsort(descending=True, stable=True)[:k]
        top[row], at[row] = values[row, order], order
    return top, at


def _candidates(values: Tensor, k: int) -> tuple[Tensor | None, Tensor]:
    """Columns that hold the k largest of each row, and the largest value of all other columns.

    The k largest lie in those k groups of columns that have the largest maxima. Finding the maxima
    is one pass over the values, several times as fast as topk. None stands for all columns.
    """
    groups = values.shape[1] // _GROUP
    if groups < 4 * k:
        return None, values.new_full((len(values),), -torch.inf)
    # Column c is in group c % groups: a maximum over the first of two axes runs along memory.
    grouped = torch.unflatten(values[:, : groups * _GROUP], 1, (_GROUP, groups))
    maxima, chosen = grouped.amax(dim=1).topk(k + 1, dim=1)
    apart = groups * torch.arange(_GROUP, device=values.device)
    columns = (chosen[:, :k, None] + apart).flatten(1)
    left = torch.arange(groups * _GROUP, values.shape[1], device=values.device)
    return torch.cat([columns, left.expand(len(values), -1)], dim=1), maxima[:, k]


def _best(values: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest, of equal ones the lower row first."""
    by_row = rows.argsort(dim=1)
    values, rows = values.gather(1, by_row), rows.gather(1, by_row)
    order = values.argsort(dim=1, descending=True, stable=True)[:, :k]
    return values.gather(1, order), rows.gather(1, order)
