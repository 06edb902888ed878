"""Losses: equal to plain loops in float64, to closed forms, and safe at any temperature."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

import oracles
from diptych.contrast.losses import (
    info_nce,
    info_nce_scores,
    nt_xent,
    nt_xent_scores,
    pretext_accuracy,
)


def unit(rng: np.random.Generator, count: int, dim: int = 6) -> NDArray[np.float64]:
    vectors = rng.normal(size=(count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 10.0])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_nt_xent_equals_the_loop(batch: int, temperature: float, rng: np.random.Generator) -> None:
    first, second = unit(rng, batch), unit(rng, batch)
    ours = nt_xent(*map(torch.from_numpy, (first, second)), temperature=temperature)
    assert float(ours) == pytest.approx(oracles.nt_xent(first, second, temperature), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("keys", [0, 1, 33])
def test_info_nce_equals_the_loop(keys: int, temperature: float, rng: np.random.Generator) -> None:
    arrays = unit(rng, 5), unit(rng, 5), unit(rng, max(keys, 1))[:keys]
    ours = info_nce(*map(torch.from_numpy, arrays), temperature=temperature)
    wanted = oracles.info_nce(*arrays, temperature)
    assert float(ours) == pytest.approx(wanted, rel=1e-12, abs=1e-15)


def test_equal_scores_give_chance() -> None:
    same = torch.ones(8, 3, dtype=torch.float64)
    assert float(nt_xent(same, same, temperature=0.1)) == pytest.approx(math.log(15))
    keys = torch.ones(20, 3, dtype=torch.float64)
    assert float(info_nce(same, same, keys, temperature=0.1)) == pytest.approx(math.log(21))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lowest_temperature_does_not_overflow(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first = functional.normalize(torch.randn(16, 8, dtype=dtype), dim=1).requires_grad_()
    second = functional.normalize(torch.randn(16, 8, dtype=dtype), dim=1)
    for loss in (
        nt_xent(first, second, temperature=0.001),
        info_nce(first, second, second.flip(0), temperature=0.001),
    ):
        (gradient,) = torch.autograd.grad(loss, first)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()


def test_gradients_are_right(rng: np.random.Generator) -> None:
    first, second, keys = (torch.from_numpy(unit(rng, n)).requires_grad_() for n in (4, 4, 5))
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b, temperature=0.3), (first, second))
    assert torch.autograd.gradcheck(
        lambda a, b, c: info_nce(a, b, c, temperature=0.3), (first, second, keys)
    )


def test_no_loss_depends_on_the_order_of_images_or_the_axes(rng: np.random.Generator) -> None:
    first, second, keys = (torch.from_numpy(unit(rng, n)) for n in (9, 9, 12))
    order = torch.randperm(9)
    turn, _ = torch.linalg.qr(torch.from_numpy(rng.normal(size=(6, 6))))
    loss = nt_xent(first, second, temperature=0.2)
    assert torch.allclose(nt_xent(first[order], second[order], temperature=0.2), loss)
    assert torch.allclose(nt_xent(second, first, temperature=0.2), loss)
    assert torch.allclose(nt_xent(first @ turn, second @ turn, temperature=0.2), loss)
    against = info_nce(first, second, keys, temperature=0.2)
    shuffled = keys[torch.randperm(12)]
    assert torch.allclose(info_nce(first, second, shuffled, temperature=0.2), against)


def test_accuracy_counts_queries_whose_own_key_is_best() -> None:
    queries = torch.eye(3)
    positives = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0.2]])
    negatives = torch.tensor([[0.0, 0.5, 0.9]])
    scores = info_nce_scores(queries, positives, negatives, temperature=0.1)
    assert float(pretext_accuracy(scores)) == pytest.approx(2 / 3)


def test_collapse_is_not_counted_as_success() -> None:
    same = torch.ones(4, 3)
    assert float(pretext_accuracy(nt_xent_scores(same, same, temperature=0.1))) == 0.0
    assert float(pretext_accuracy(info_nce_scores(same, same, same, temperature=0.1))) == 0.0


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(Exception, match=r"(?i)type"):
        nt_xent(torch.ones(4, 3), torch.ones(5, 3), temperature=0.1)
