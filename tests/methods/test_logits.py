"""Scores in tiles: the same as a plain matrix of them, in value and in gradient."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

import oracles
from diptych.methods.logits import (
    SummedLogits,
    batch_exclusions,
    in_batch_logsumexp,
    mean_positives,
    negative_logits,
    negatives_logsumexp,
    positive_logits,
)

# Cold, where no two scores share an exponential; the edge of where they do; warm.
TEMPERATURES = [0.01, 0.07, 1.0]


def drawn(seed: int, count: int, dim: int = 5) -> Tensor:
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return functional.normalize(torch.from_numpy(vectors), dim=1)


def leave_out(seed: int, queries: int, keys: int, few: int) -> Tensor:
    """Columns drawn with repetition; some -1."""
    columns = np.random.default_rng(seed).integers(-1, keys, size=(queries, few))
    return torch.from_numpy(columns)


def plain(
    queries: Tensor, negatives: Tensor, temperature: float | Tensor, excluded: Tensor
) -> Tensor:
    """The matrix of scores, from which columns are struck out one by one."""
    scores = queries @ negatives.T / temperature
    struck = torch.zeros(scores.shape, dtype=torch.bool)
    for row, columns in enumerate(excluded.tolist()):
        for column in columns:
            if column >= 0:
                struck[row, column] = True
    return scores.masked_fill(struck, -math.inf)


def logsumexp(scores: Tensor) -> Tensor:
    """A row where all is struck out gives -inf and no gradient."""
    counts = (scores > -math.inf).any(dim=1)
    safe = torch.where(counts[:, None], scores, 0.0)
    return torch.where(counts, safe.logsumexp(dim=1), -math.inf)


def assert_same(
    ours: SummedLogits, scores: Tensor, slopes: Tensor, inputs: list[Tensor], rtol: float = 1e-9
) -> None:
    """Equal sums, equal maxima, and equal gradients for arbitrary slopes of the sums."""
    wanted = logsumexp(scores)
    torch.testing.assert_close(ours.logsumexp, wanted, rtol=rtol, atol=1e-11)
    torch.testing.assert_close(ours.largest, scores.detach().amax(dim=1), rtol=rtol, atol=1e-11)
    assert not ours.largest.requires_grad
    counts = wanted > -math.inf
    pairs = [
        torch.autograd.grad((sums[counts] * slopes[counts]).sum(), inputs)
        for sums in (ours.logsumexp, wanted)
    ]
    for got, want in zip(*pairs, strict=True):
        scale = float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=rtol, atol=rtol * scale + 1e-15)


@settings(deadline=None, max_examples=60)
@given(
    queries=st.integers(1, 12),
    keys=st.integers(1, 20),
    few=st.integers(0, 3),
    tile=st.integers(1, 24),
    temperature=st.sampled_from(TEMPERATURES),
    seed=st.integers(0, 1000),
)
def test_tiles_equal_the_matrix(
    queries: int, keys: int, few: int, tile: int, temperature: float, seed: int
) -> None:
    q, k = drawn(seed, queries).requires_grad_(), drawn(seed + 1, keys).requires_grad_()
    warmth = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    excluded = leave_out(seed + 2, queries, keys, few)
    ours = negatives_logsumexp(q, k, temperature=warmth, excluded=excluded, tile=tile)
    slopes = torch.from_numpy(np.random.default_rng(seed).normal(size=queries))
    assert_same(ours, plain(q, k, warmth, excluded), slopes, [q, k, warmth])


@settings(deadline=None, max_examples=60)
@given(
    ids=st.lists(st.integers(0, 4), min_size=2, max_size=20),
    tile=st.integers(1, 24),
    temperature=st.sampled_from(TEMPERATURES),
    length=st.sampled_from([0.1, 1.0, 3.0]),
    seed=st.integers(0, 1000),
)
def test_the_upper_triangle_equals_the_matrix(
    ids: list[int], tile: int, temperature: float, length: float, seed: int
) -> None:
    views = (length * drawn(seed, len(ids))).requires_grad_()
    warmth = torch.tensor(temperature, dtype=torch.float64, requires_grad=True)
    excluded = batch_exclusions(torch.tensor(ids))
    ours = in_batch_logsumexp(views, temperature=warmth, excluded=excluded, tile=tile)
    slopes = torch.from_numpy(np.random.default_rng(seed).normal(size=len(ids)))
    assert_same(ours, plain(views, views, warmth, excluded), slopes, [views, warmth])


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_half_the_work_gives_the_same(temperature: float) -> None:
    views = drawn(3, 50).requires_grad_()
    excluded = torch.stack([torch.arange(50), torch.arange(50).roll(25)], dim=1)
    half = in_batch_logsumexp(views, temperature=temperature, excluded=excluded, tile=8)
    full = negatives_logsumexp(views, views, temperature=temperature, excluded=excluded, tile=16)
    torch.testing.assert_close(half.logsumexp, full.logsumexp, rtol=1e-12, atol=0)
    torch.testing.assert_close(half.largest, full.largest, rtol=1e-12, atol=0)
    ours, wanted = (torch.autograd.grad(o.logsumexp.square().sum(), views)[0] for o in (half, full))
    torch.testing.assert_close(ours, wanted, rtol=1e-9, atol=1e-12 * float(wanted.abs().max()))


def test_sums_equal_the_loop() -> None:
    queries, keys = drawn(0, 4), drawn(1, 6)
    excluded = torch.tensor([[0, 5], [-1, -1], [2, 2], [-1, 3]])
    ours = negatives_logsumexp(queries, keys, temperature=0.1, excluded=excluded)
    for row, columns in enumerate(excluded.tolist()):
        scores = oracles.scores(queries[row].numpy(), keys.numpy(), 0.1, set(columns))
        assert float(ours.logsumexp[row]) == pytest.approx(oracles.log_sum_exp(scores), rel=1e-12)
        assert float(ours.largest[row]) == pytest.approx(max(scores), rel=1e-12)


@pytest.mark.parametrize("tile", [2, 64])
def test_gradients_are_right(tile: int) -> None:
    queries, keys = drawn(0, 3).requires_grad_(), drawn(1, 5).requires_grad_()
    warmth = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    excluded = torch.tensor([[0, 4], [-1, 2], [1, 1]])

    def against(q: Tensor, k: Tensor, t: Tensor) -> Tensor:
        return negatives_logsumexp(q, k, temperature=t, excluded=excluded, tile=tile).logsumexp

    def among(k: Tensor, t: Tensor) -> Tensor:
        ids = torch.tensor([0, 1, 0, 2, 3])
        return in_batch_logsumexp(
            k, temperature=t, excluded=batch_exclusions(ids), tile=tile
        ).logsumexp

    assert torch.autograd.gradcheck(against, (queries, keys, warmth))
    assert torch.autograd.gradcheck(among, (keys, warmth))
    cold = torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(among, (keys, cold), eps=1e-7)


def test_keys_alone_may_need_gradients() -> None:
    queries, keys = drawn(0, 3), drawn(1, 5).requires_grad_()
    (ours,) = torch.autograd.grad(
        negatives_logsumexp(queries, keys, temperature=0.1).logsumexp.sum(), keys
    )
    (wanted,) = torch.autograd.grad((queries @ keys.T / 0.1).logsumexp(dim=1).sum(), keys)
    torch.testing.assert_close(ours, wanted)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_where_nothing_counts_the_sum_is_empty_and_the_gradient_zero(temperature: float) -> None:
    views = drawn(0, 3).requires_grad_()
    everything = torch.arange(3).repeat(3, 1)
    for others in (
        negatives_logsumexp(views, views, temperature=temperature, excluded=everything, tile=2),
        in_batch_logsumexp(views, temperature=temperature, excluded=everything, tile=2),
        negatives_logsumexp(views, views[:0], temperature=temperature),
    ):
        assert (others.logsumexp == -math.inf).all()
        assert (others.largest == -math.inf).all()
        (gradient,) = torch.autograd.grad(functional.softplus(others.logsumexp).sum(), views)
        assert (gradient == 0).all()


def test_not_a_number_is_not_hidden() -> None:
    views = drawn(0, 6)
    views[2, 0] = math.nan
    itself = torch.arange(6)[:, None]
    assert in_batch_logsumexp(views, temperature=0.1, excluded=itself).logsumexp.isnan().any()
    assert negatives_logsumexp(views, views, temperature=0.1).logsumexp.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_summed_in_single(dtype: torch.dtype, autocast: bool) -> None:
    views = drawn(0, 40, 16).to(torch.float32 if autocast else dtype).requires_grad_()
    itself = torch.arange(40)[:, None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        among = in_batch_logsumexp(views, temperature=0.1, excluded=itself)
        against = negatives_logsumexp(views, views, temperature=0.1, excluded=itself)
        dense = negative_logits(views, views, temperature=0.1, excluded=itself)
        assert positive_logits(views, views, temperature=0.1).dtype == torch.float32
        (gradient,) = torch.autograd.grad(among.logsumexp.sum(), views)
    assert gradient.dtype == views.dtype
    wide = views.detach().double()
    wanted = in_batch_logsumexp(wide, temperature=0.1, excluded=itself).logsumexp.float()
    for ours in (among.logsumexp, against.logsumexp, dense.logsumexp(dim=1)):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.detach(), wanted, rtol=1e-5, atol=1e-5)


def test_memory_for_gradients_is_linear_in_the_rows() -> None:
    """What is kept for the backward is a few vectors, not the matrix of scores."""
    views = drawn(0, 300, 8).requires_grad_()
    kept: list[int] = []

    def count(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    def measure(compute: Callable[[], SummedLogits]) -> int:
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            compute()
        return sum(kept)

    itself = torch.arange(300)[:, None]
    assert measure(lambda: in_batch_logsumexp(views, temperature=0.1, excluded=itself)) < 20 * 300
    assert (
        measure(lambda: negatives_logsumexp(views, views, temperature=0.1, excluded=itself))
        < 40 * 300
    )


def test_all_scores_strikes_out_what_does_not_count() -> None:
    queries, keys = drawn(0, 3), drawn(1, 5)
    excluded = torch.tensor([[0, 4], [-1, -1], [1, 1]])
    ours = negative_logits(queries, keys, temperature=0.2, excluded=excluded)
    torch.testing.assert_close(ours, plain(queries, keys, 0.2, excluded))
    assert negative_logits(queries, keys[:0], temperature=0.2).shape == (3, 0)
    torch.testing.assert_close(
        positive_logits(queries, keys[:3], temperature=0.2),
        negative_logits(queries, keys[:3], temperature=0.2).diagonal(),
    )


@given(ids=st.lists(st.integers(-3, 3), max_size=12))
def test_exclusions_are_the_rows_of_the_same_id(ids: list[int]) -> None:
    excluded = batch_exclusions(torch.tensor(ids, dtype=torch.long)).tolist()
    assert len(excluded) == len(ids)
    for mine, columns in zip(ids, excluded, strict=True):
        same = [column for column, other in enumerate(ids) if other == mine]
        assert [column for column in columns if column >= 0] == same


@given(ids=st.lists(st.integers(-3, 3), min_size=1, max_size=12))
def test_mean_positives_leave_out_the_row_itself(ids: list[int]) -> None:
    views = drawn(0, len(ids))
    means, count = mean_positives(views, torch.tensor(ids))
    for row, mine in enumerate(ids):
        same = [other for other, label in enumerate(ids) if label == mine and other != row]
        assert int(count[row]) == len(same)
        wanted = views[same].mean(dim=0) if same else torch.zeros(5, dtype=torch.float64)
        torch.testing.assert_close(means[row], wanted, rtol=1e-10, atol=1e-12)
