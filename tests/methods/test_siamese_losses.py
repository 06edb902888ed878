"""Losses without negatives, against plain loops in float64 and against lightly."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config.method import VICRegConfig
from diptych.methods.siamese.barlow_twins import barlow_twins_terms
from diptych.methods.siamese.base import spread_of
from diptych.methods.siamese.byol import byol_loss
from diptych.methods.siamese.lejepa import epps_pulley, random_directions
from diptych.methods.siamese.simsiam import negative_cosine
from diptych.methods.siamese.vicreg import covariance_of, invariance_of, variance_of

Array = NDArray[np.float64]
IMAGES, DIM = 7, 5


@pytest.fixture
def pair(rng: np.random.Generator) -> tuple[Array, Array]:
    """Two views of some images, with dimensions that vary differently and a mean."""
    first = rng.normal(size=(IMAGES, DIM)) * np.arange(1, DIM + 1) + 0.5
    return first, first + 0.3 * rng.normal(size=first.shape)


def as_tensors(*arrays: Array, grad: bool = False) -> list[Tensor]:
    return [torch.tensor(array, requires_grad=grad) for array in arrays]


def cosines(first: Array, second: Array) -> list[float]:
    return [
        float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))
        for a, b in zip(first, second, strict=True)
    ]


def test_byol_is_the_squared_distance_of_unit_vectors(pair: tuple[Array, Array]) -> None:
    total = 0.0
    for prediction, target in zip(*pair, strict=True):
        unit = prediction / np.linalg.norm(prediction) - target / np.linalg.norm(target)
        total += float(unit @ unit)
    assert float(byol_loss(*as_tensors(*pair))) == pytest.approx(total / IMAGES, rel=1e-12)


def test_no_gradient_reaches_the_targets_of_byol(pair: tuple[Array, Array]) -> None:
    predictions, targets = as_tensors(*pair, grad=True)
    byol_loss(predictions, targets).backward()  # type: ignore[no-untyped-call]
    assert predictions.grad is not None
    assert targets.grad is None


def test_simsiam_is_minus_the_cosine(pair: tuple[Array, Array]) -> None:
    wanted = -sum(cosines(*pair)) / IMAGES
    assert float(negative_cosine(*as_tensors(*pair))) == pytest.approx(wanted, rel=1e-12)


def test_barlow_twins_terms(pair: tuple[Array, Array]) -> None:
    first, second = (
        [[(x - view[:, d].mean()) / math.sqrt(view[:, d].var() + 1e-5) for x in view[:, d]]
         for d in range(DIM)]
        for view in pair
    )  # fmt: skip
    diagonal = others = 0.0
    for i in range(DIM):
        for j in range(DIM):
            c = sum(first[i][n] * second[j][n] for n in range(IMAGES)) / IMAGES
            if i == j:
                diagonal += (1 - c) ** 2
            else:
                others += c**2
    found = [float(term) for term in barlow_twins_terms(*as_tensors(*pair))]
    assert found == pytest.approx([diagonal, others], rel=1e-10)


def test_vicreg_terms(pair: tuple[Array, Array]) -> None:
    first, second = pair
    invariance = sum(
        (first[n, d] - second[n, d]) ** 2 for n in range(IMAGES) for d in range(DIM)
    ) / (IMAGES * DIM)
    small = 0.4 * first
    variance = covariance = 0.0
    means = [sum(small[:, d]) / IMAGES for d in range(DIM)]
    for i in range(DIM):
        for j in range(DIM):
            c = sum((row[i] - means[i]) * (row[j] - means[j]) for row in small) / (IMAGES - 1)
            if i == j:
                variance += max(0.0, 1.0 - math.sqrt(c + 1e-4)) / DIM
            else:
                covariance += c**2 / DIM
    (scaled,) = as_tensors(small)
    assert variance > 0
    assert float(invariance_of(*as_tensors(*pair))) == pytest.approx(invariance, rel=1e-10)
    assert float(variance_of(scaled)) == pytest.approx(variance, rel=1e-10)
    assert float(covariance_of(scaled)) == pytest.approx(covariance, rel=1e-10)


def test_epps_pulley_by_a_loop_over_points(rng: np.random.Generator) -> None:
    samples = rng.normal(size=(9, 3)) * [0.5, 1.0, 2.0]
    points = np.linspace(-5, 5, 17)
    wanted = []
    for column in samples.T:
        heights = []
        for t in points:
            found = sum(np.exp(1j * t * x) for x in column) / len(column)
            heights.append(abs(found - math.exp(-(t**2) / 2)) ** 2 * math.exp(-(t**2) / 2))
        area = sum((a + b) / 2 for a, b in pairwise(heights)) * 10 / 16
        wanted.append(len(column) * area)
    (tensor,) = as_tensors(samples)
    np.testing.assert_allclose(epps_pulley(tensor, 17).numpy(), wanted, rtol=1e-10)


def test_epps_pulley_is_least_for_a_normal_distribution(rng: np.random.Generator) -> None:
    normal = rng.normal(size=4000)
    (columns,) = as_tensors(
        np.stack([normal, 3 * normal, normal + 1, np.sign(normal), 0 * normal], axis=1)
    )
    found = epps_pulley(columns, 17).numpy()
    assert found[0] < 2.0  # a few, however many the samples are
    assert (found[1:] > 100 * found[0]).all()


def test_directions_follow_from_seed_and_step() -> None:
    first = random_directions(6, 40, seed=1, step=3)
    assert torch.equal(first, random_directions(6, 40, seed=1, step=3))
    assert not torch.equal(first, random_directions(6, 40, seed=1, step=4))
    assert not torch.equal(first, random_directions(6, 40, seed=2, step=3))
    np.testing.assert_allclose(first.norm(dim=0).numpy(), 1.0, rtol=1e-5)


def test_spread(rng: np.random.Generator) -> None:
    even = rng.normal(size=(500, 8))
    std, rank = spread_of(*as_tensors(even))
    assert float(std) == pytest.approx(1.0, abs=0.02)
    assert 7.5 < float(rank) <= 8.0
    line = rng.normal(size=(50, 1)) * np.ones((1, 8))  # of length one, each is one of two points
    std, rank = spread_of(*as_tensors(line))
    assert float(rank) == pytest.approx(1.0)
    std, rank = spread_of(torch.ones(5, 4))
    assert float(std) == 0.0
    assert math.isfinite(float(rank))


def test_the_rank_is_that_of_eigenvalues(rng: np.random.Generator) -> None:
    for shape in ((6, 20), (20, 6)):
        vectors = rng.normal(size=shape)
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        values = np.linalg.eigvalsh(np.cov(unit.T))
        wanted = values.sum() ** 2 / (values**2).sum()
        assert float(spread_of(*as_tensors(vectors))[1]) == pytest.approx(wanted, rel=1e-10)


class TestAgainstLightly:
    """Values and gradients, where its conventions are ours."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        self.peer: Any = pytest.importorskip("lightly.loss")

    def test_negative_cosine(self, pair: tuple[Array, Array]) -> None:
        self.assert_same(self.peer.NegativeCosineSimilarity(), negative_cosine, pair)

    def test_byol(self, pair: tuple[Array, Array]) -> None:
        """Its BYOL is trained by minus the cosine: ours is twice that, and 2 more."""
        theirs = self.peer.NegativeCosineSimilarity()(*as_tensors(*pair))
        assert float(byol_loss(*as_tensors(*pair))) == pytest.approx(2 + 2 * float(theirs))

    def test_barlow_twins(self, pair: tuple[Array, Array]) -> None:
        def ours(first: Tensor, second: Tensor) -> Tensor:
            diagonal, others = barlow_twins_terms(first, second)
            return diagonal + 0.005 * others

        self.assert_same(self.peer.BarlowTwinsLoss(lambda_param=0.005), ours, pair)

    def test_vicreg(self, pair: tuple[Array, Array]) -> None:
        def ours(first: Tensor, second: Tensor) -> Tensor:
            weights = VICRegConfig()
            return (
                weights.invariance_weight * invariance_of(first, second)
                + weights.variance_weight * (variance_of(first) + variance_of(second)) / 2
                + weights.covariance_weight * (covariance_of(first) + covariance_of(second))
            )

        first, second = pair
        self.assert_same(self.peer.VICRegLoss(), ours, (0.4 * first, 0.4 * second))

    def assert_same(
        self,
        theirs: Callable[[Tensor, Tensor], Tensor],
        ours: Callable[[Tensor, Tensor], Tensor],
        pair: tuple[Array, Array],
    ) -> None:
        inputs = as_tensors(*pair, grad=True)
        mine, its = ours(*inputs), theirs(*inputs)
        torch.testing.assert_close(mine, its, rtol=1e-9, atol=0)
        for one, other in zip(
            torch.autograd.grad(mine, inputs), torch.autograd.grad(its, inputs), strict=True
        ):
            torch.testing.assert_close(one, other, rtol=1e-7, atol=1e-9)
