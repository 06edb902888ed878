"""Logits of queries and keys, and what losses need of them, without a matrix of all of them.

A logit is a dot product divided by the temperature; for cosines the caller hands in vectors of
length one. Of the negative logits, cross-entropy needs only each query's log sum exp.
``negatives_logsumexp`` and ``in_batch_logsumexp`` compute it tile by tile, forward and backward, so
memory grows with rows times dimension. Everything is computed in float32 or, for float64 inputs, in
float64, inside and outside of autocast.

``excluded`` says which negatives do not count for a query: (queries, few) columns of the negatives,
-1 for none; a column may stand there twice.
"""

import math
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

# Logits in a row and a column of a tile. On CPU 16 MB: smaller ones are as fast on idle cores, and
# slower on busy ones, where threads wait for each other after each operation on a tile.
CPU_TILE: Final = 2048
DEVICE_TILE: Final = 4096  # 64 MB: few large kernels
TAME_LOGIT: Final = 40.0  # of logits no larger than this, exp is far from float32's limits
_MORE_ROUNDINGS: Final = 8  # beside those of the sum: of lengths made one, of the temperature

Temperature = float | Float[Tensor, ""]


class SummedLogits(NamedTuple):
    """What a query's logits with the negatives that count come to.

    Attributes:
        logsumexp: (queries,), log sum exp of them; -inf, with gradient zero, where none counts.
        largest: (queries,), the largest of them, without gradient; -inf where none counts.
    """

    logsumexp: Float[Tensor, " queries"]
    largest: Float[Tensor, " queries"]


def positive_logits(
    queries: Float[Tensor, "queries dim"],
    positives: Float[Tensor, "queries dim"],
    *,
    temperature: Temperature,
) -> Float[Tensor, " queries"]:
    """Logit of each query with its positive key."""
    return (_precise(queries) * _precise(positives)).sum(dim=1) / temperature


def negative_logits(
    queries: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: Temperature,
    excluded: Int[Tensor, "queries few"] | None = None,
) -> Float[Tensor, "queries keys"]:
    """Logit of each query with each negative; -inf where one does not count.

    For losses that need every logit: this one does take memory of queries times keys.
    """
    with torch.autocast(queries.device.type, enabled=False):
        logits = _precise(queries) @ _precise(negatives).T / temperature
    if excluded is None:
        return logits
    # A column more, for the -1 that stand for none.
    beyond = torch.where(excluded < 0, len(negatives), excluded)
    left_out = logits.new_zeros((len(queries), len(negatives) + 1), dtype=torch.bool)
    return logits.masked_fill(left_out.scatter_(1, beyond, True)[:, :-1], -math.inf)


def logit_rounding(
    queries: Float[Tensor, "queries dim"],
    *keys: Float[Tensor, "_ dim"],
    temperature: Temperature,
    stored_dtype: torch.dtype | None = None,
) -> Float[Tensor, " queries"]:
    """How far two logits of a query must differ to differ by more than rounding.

    A dot product of dim terms is off by at most dim x eps / 2 times the two lengths, in whatever
    order it is summed (Higham, *Accuracy and Stability of Numerical Algorithms*, section 3.1);
    normalising the vectors and dividing by the temperature add a few eps more. Two logits of equal
    vectors, computed in different ways, differ by no more than twice that.

    Args:
        queries: (queries, dim).
        keys: sets of keys, each (some, dim); the longest of all counts.
        temperature: dot products are divided by it.
        stored_dtype: the type that keys were kept in, if not their own.
    """
    with torch.no_grad():
        exact = [_precise(some) for some in (queries, *keys)]
        lengths = [torch.linalg.vector_norm(some, dim=1) for some in exact]
        longest = torch.cat(lengths[1:]).amax()
        rounding = (queries.shape[1] + _MORE_ROUNDINGS) * torch.finfo(exact[0].dtype).eps
        if stored_dtype is not None:
            rounding += torch.finfo(stored_dtype).eps
        found: Tensor = rounding * lengths[0] * longest / temperature
        return found


def ranks_first(
    positive: Float[Tensor, " queries"],
    largest_negative: Float[Tensor, " queries"],
    rounding: Float[Tensor, " queries"] | float = 0.0,
) -> Bool[Tensor, " queries"]:
    """Which queries have a positive logit above all their negative ones; a tie is none.

    Args:
        positive: logits with the positive key.
        largest_negative: -inf where no negative counts.
        rounding: see ``logit_rounding``; the positive must be higher by more than that.
    """
    found: Tensor = positive - largest_negative > rounding
    return found


def semi_hard(
    positive: Float[Tensor, " queries"], negatives: Float[Tensor, "queries keys"]
) -> Float[Tensor, "queries 1"]:
    """The largest negative logit below the positive one: the closest key of those farther away.

    FaceNet (1503.03832), eq. 4, used in SimCLR's table 4. Where there is none it is -inf, which
    counts for nothing. Of those, the ones outside a triplet's margin give zero loss anyway.

    Example:
        >>> semi_hard(torch.tensor([0.5]), torch.tensor([[0.9, 0.4, 0.1]]))
        tensor([[0.4000]])
    """
    if not negatives.shape[1]:
        return negatives.new_full((len(negatives), 1), -math.inf)
    farther = negatives.masked_fill(negatives >= positive.detach()[:, None], -math.inf)
    return farther.amax(dim=1, keepdim=True)


def pretext_accuracy(
    positive: Float[Tensor, " queries"],
    largest_negative: Float[Tensor, " queries"],
    rounding: Float[Tensor, " queries"] | float = 0.0,
) -> Float[Tensor, ""]:
    """Share of queries whose positive logit is above all their negative ones.

    A tie does not count: where all features have collapsed to one point every logit is the same,
    and the accuracy is 0. As equal logits that are computed in different ways differ by rounding,
    ``rounding`` says what the positive must be higher by: see ``logit_rounding``.

    Example:
        >>> float(pretext_accuracy(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.4])))
        0.5
    """
    return ranks_first(positive, largest_negative, rounding).to(positive.dtype).mean()


def row_ranks_first(
    queries: Float[Tensor, "rows dim"], keys: Float[Tensor, "rows dim"]
) -> Bool[Tensor, " rows"]:
    """Which queries have the key of their row nearest, of the keys of all rows."""
    rows = torch.arange(len(queries), device=queries.device)[:, None]
    negatives = negatives_logsumexp(queries, keys, temperature=1.0, excluded=rows)
    positive = positive_logits(queries, keys, temperature=1.0)
    return ranks_first(positive, negatives.largest, logit_rounding(queries, keys, temperature=1.0))


def negatives_logsumexp(
    queries: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: Temperature,
    excluded: Int[Tensor, "queries few"] | None = None,
    tile: int | None = None,
) -> SummedLogits:
    """Log sum exp and maximum of each query's logits with all negatives.

    Args:
        queries: (queries, dim).
        negatives: (keys, dim); gradients flow to them if they require it.
        temperature: dot products are divided by it; gradients flow to a tensor.
        excluded: (queries, few), negatives that do not count for a query.
        tile: logits in a row and a column of a tile; None for what suits the device.
    """
    with torch.autocast(queries.device.type, enabled=False):
        return SummedLogits(
            *_LogSumExp.apply(
                # Divided out here, so that autograd finds the temperature's gradient.
                _precise(queries) / temperature,
                _precise(negatives),
                excluded,
                tile or tile_of(queries.device.type),
            )
        )


def in_batch_logsumexp(
    views: Float[Tensor, "views dim"],
    *,
    temperature: Temperature,
    excluded: Int[Tensor, "views few"],
    tile: int | None = None,
) -> SummedLogits:
    """The same for each view against all others: ``negatives_logsumexp(views, views)``.

    A logit of i with j is that of j with i, so only the upper triangle of tiles is computed: 2
    multiply-adds for each pair and dimension, forward and backward, instead of 4.

    Args:
        views: (views, dim); each is once the query and always a key.
        temperature: dot products are divided by it; gradients flow to a tensor.
        excluded: (views, few), views that do not count for a view, itself among them. It must be
            symmetric: where i leaves out j, j leaves out i.
        tile: logits in a row and a column of a tile; None for what suits the device.
    """
    with torch.autocast(views.device.type, enabled=False):
        # Each side of the product is divided by the root, so that the product stays symmetric.
        scaled, tile = _precise(views) / temperature**0.5, tile or tile_of(views.device.type)
        return SummedLogits(*_InBatchLogSumExp.apply(scaled, excluded, tile))


def batch_exclusions(ids: Int[Tensor, " rows"]) -> Int[Tensor, "rows few"]:
    """For each row the rows that have its id, itself included, padded by -1.

    Example:
        >>> batch_exclusions(torch.tensor([7, 3, 7])).tolist()
        [[0, 2], [1, -1], [0, 2]]
    """
    if not len(ids):
        return ids.new_zeros((0, 1), dtype=torch.long)
    group, sizes = _groups(ids)
    place = torch.arange(int(sizes.max()), device=ids.device)
    starts = sizes.cumsum(0) - sizes
    members = group.argsort(stable=True)  # group after group
    # A small group has nobody at the last places: they are read elsewhere, and become -1.
    at = (starts[group, None] + place).clamp(max=len(ids) - 1)
    return torch.where(place < sizes[group, None], members[at], -1)


def mean_positives(
    views: Float[Tensor, "rows dim"],
    ids: Int[Tensor, " rows"],
) -> tuple[Float[Tensor, "rows dim"], Int[Tensor, " rows"]]:
    """For each row the mean of the other rows that have its id, and how many they are.

    A logit is linear in the key: the mean logit with all positives is the logit with their mean.
    It is zeros where there is none.

    Example:
        >>> mean_positives(torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([4, 4, 9]))
        (tensor([[2.], [1.], [0.]]), tensor([1, 1, 0]))
    """
    views = _precise(views)
    group, sizes = _groups(ids)
    sums = views.new_zeros(len(sizes), views.shape[1]).index_add(0, group, views)
    count = sizes[group] - 1
    others = (sums[group] - views) / count.clamp(min=1)[:, None]
    return torch.where(count[:, None] > 0, others, 0.0), count


def _groups(ids: Tensor) -> tuple[Tensor, Tensor]:
    """The group of each row, numbered in the order of ids, and the size of each group."""
    _, group, sizes = torch.unique(ids, return_inverse=True, return_counts=True)
    return group, sizes


class _LogSumExp(torch.autograd.Function):
    """Log sum exp and maximum of each row of queries @ negatives.T, in tiles.

    The gradient to a query is the mean of the negatives, weighted by the softmax. It is gathered
    on the way forward, so that the backward computes logits again only if keys need gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, negatives: Tensor, excluded: Tensor | None, tile: int
    ) -> tuple[Tensor, Tensor]:
        largest, total = (
            queries.new_full((len(queries),), -math.inf),
            queries.new_zeros(len(queries)),
        )
        mean_key = torch.zeros_like(queries) if ctx.needs_input_grad[0] else None
        tiles = _Tiles(queries, negatives, excluded, tile)
        for rows in _blocks(len(queries), tile):
            for columns in _blocks(len(negatives), tile):
                logits = tiles.logits(rows, columns)
                # Rows are slices, so views are written to: an index tensor would copy, and the sums
                # would be lost.
                shrink = _add_exponentials(logits, largest[rows], total[rows])
                if mean_key is not None:
                    # By now these are exponentials; what was summed before shrinks to their scale.
                    mean_key[rows].mul_(shrink[:, None]).addmm_(logits, negatives[columns])
        if mean_key is not None:
            # Where nothing counts the gradient is zero; 0 / 0 would make it NaN.
            mean_key.div_(torch.where(total > 0, total, 1.0)[:, None])
        logsumexp = _finite(largest) + total.log()
        ctx.save_for_backward(queries, negatives, excluded, logsumexp, mean_key)
        ctx.tile = tile
        ctx.mark_non_differentiable(largest)
        return logsumexp, largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        queries, negatives, excluded, logsumexp, mean_key = ctx.saved_tensors
        to_queries = None if mean_key is None else mean_key * slope[:, None]
        to_negatives = None
        if ctx.needs_input_grad[1]:
            to_negatives = torch.zeros_like(negatives)
            reference, pull = _finite(logsumexp), queries * slope[:, None]
            # A backward pass runs outside of the contexts of its forward pass: autocast, where it
            # is on here, would multiply in half precision.
            with torch.autocast(queries.device.type, enabled=False):
                tiles = _Tiles(queries, negatives, excluded, ctx.tile)
                for rows in _blocks(len(queries), ctx.tile):
                    for columns in _blocks(len(negatives), ctx.tile):
                        logits = tiles.logits(rows, columns)
                        shares = logits.sub_(reference[rows, None]).exp_()
                        to_negatives[columns].addmm_(shares.T, pull[rows])
        return to_queries, to_negatives, None, None


class _InBatchLogSumExp(torch.autograd.Function):
    """The same among views, from the tiles on and above the diagonal."""

    @staticmethod
    def forward(ctx: Any, views: Tensor, excluded: Tensor, tile: int) -> tuple[Tensor, Tensor]:
        largest, total = views.new_full((len(views),), -math.inf), views.new_zeros(len(views))
        # No logit is larger than the largest squared length. Of tame logits one exponential,
        # without a maximum taken off, serves the row and the column.
        lengths = views.square().sum(dim=1)
        tame = bool((lengths <= TAME_LOGIT).all())
        tiles = _Tiles(views, views, excluded, tile)
        for rows, columns in _upper_triangle(len(views), tile):
            logits = tiles.logits(rows, columns)
            if tame:
                torch.maximum(largest[rows], logits.amax(dim=1), out=largest[rows])
                # A tile on the diagonal has both directions of its pairs: it counts once.
                if rows != columns:
                    torch.maximum(largest[columns], logits.amax(dim=0), out=largest[columns])
                logits.exp_()
                total[rows] += logits.sum(dim=1)
                if rows != columns:
                    total[columns] += logits.sum(dim=0)
            else:
                if rows != columns:  # first, and of a copy: logits become their exponentials
                    _add_exponentials(logits.T.clone(), largest[columns], total[columns])
                _add_exponentials(logits, largest[rows], total[rows])
        logsumexp = total.log() if tame else _finite(largest) + total.log()
        ctx.save_for_backward(views, excluded, logsumexp)
        ctx.tile, ctx.tame = tile, tame
        ctx.mark_non_differentiable(largest)
        return logsumexp, largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        views, excluded, logsumexp = ctx.saved_tensors
        gradient, reference = torch.zeros_like(views), _finite(logsumexp)
        # Tame logits let the sum be divided out as a factor, one exponential for both directions.
        factor = slope * torch.exp(-reference) if ctx.tame else slope
        with torch.autocast(views.device.type, enabled=False):
            tiles = _Tiles(views, views, excluded, ctx.tile)
            # The tiles share one buffer: a second factor needs another, or it would overwrite them.
            spare = _Buffer(views, views, ctx.tile)
            for rows, columns in _upper_triangle(len(views), ctx.tile):
                logits = tiles.logits(rows, columns)
                other = spare.shaped(*logits.shape)
                # The logit of i with j pulls at both: by slope_i share_ij + slope_j share_ji.
                if ctx.tame:
                    torch.add(factor[rows, None], factor[None, columns], out=other)
                    pull = logits.exp_().mul_(other)
                else:
                    torch.sub(logits, reference[None, columns], out=other)
                    other.exp_().mul_(factor[None, columns])
                    logits.sub_(reference[rows, None]).exp_().mul_(factor[rows, None])
                    pull = logits.add_(other)
                gradient[rows].addmm_(pull, views[columns])
                if rows != columns:
                    gradient[columns].addmm_(pull.T, views[rows])
        return gradient, None, None


class _Buffer:
    """Memory for one tile, taken once: large temporaries go back to the system each time."""

    def __init__(self, queries: Tensor, keys: Tensor, tile: int) -> None:
        self.memory = queries.new_empty(min(tile, len(queries)) * min(tile, len(keys)))

    def shaped(self, rows: int, columns: int) -> Tensor:
        return self.memory[: rows * columns].view(rows, columns)


class _Tiles:
    """Computes one tile of logits after another in the same memory."""

    def __init__(self, queries: Tensor, keys: Tensor, excluded: Tensor | None, tile: int) -> None:
        self.queries, self.keys, self.excluded = queries, keys, excluded
        self.buffer = _Buffer(queries, keys, tile)

    def logits(self, rows: slice, columns: slice) -> Tensor:
        """Of some queries with some keys; -inf where a key does not count."""
        out = self.buffer.shaped(rows.stop - rows.start, columns.stop - columns.start)
        torch.mm(self.queries[rows], self.keys[columns].T, out=out)
        if self.excluded is not None:
            _leave_out(out, self.excluded[rows], columns.start)
        return out


def _leave_out(logits: Tensor, excluded: Tensor, first_column: int) -> None:
    """Sets to -inf what does not count in a tile that begins at some column."""
    column = excluded - first_column
    inside = (excluded >= 0) & (column >= 0) & (column < logits.shape[1])
    # What lies outside takes the minimum with +inf: nothing happens, and no device must wait to
    # learn how many lie inside.
    limit = torch.where(inside, -math.inf, math.inf).to(logits.dtype)
    logits.scatter_reduce_(1, column.clamp(0, logits.shape[1] - 1), limit, "amin")


def _add_exponentials(logits: Tensor, largest: Tensor, total: Tensor) -> Tensor:
    """Moves the rows' maxima and sums of exp(logit - maximum) on by a tile, all in place.

    Logits become their exponentials; returns by what the sums so far were shrunk.
    """
    higher = torch.maximum(largest, logits.amax(dim=1))
    reference = _finite(higher)
    shrink = torch.exp(largest - reference)
    logits.sub_(reference[:, None]).exp_()
    total.mul_(shrink).add_(logits.sum(dim=1))
    largest.copy_(higher)
    return shrink


def _finite(logits: Tensor) -> Tensor:
    """Zero for -inf: where nothing counts, nothing may turn into -inf minus -inf."""
    return torch.where(logits == -math.inf, 0.0, logits)


def _blocks(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))


def _upper_triangle(count: int, size: int) -> Iterator[tuple[slice, slice]]:
    blocks = list(_blocks(count, size))
    return ((rows, columns) for i, rows in enumerate(blocks) for columns in blocks[i:])


def _precise(vectors: Tensor) -> Tensor:
    """At least float32: sums of thousands of exponentials do not fit into half precision."""
    return vectors.float() if vectors.dtype in (torch.float16, torch.bfloat16) else vectors


def tile_of(device: str) -> int:
    """Logits in a row of a tile on a type of device."""
    return CPU_TILE if device == "cpu" else DEVICE_TILE
