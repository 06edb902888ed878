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

from diptych.config.method import (
    WITH_PREDICTOR,
    BarlowTwinsConfig,
    KeyEncoderConfig,
    LeJEPAConfig,
    MethodConfig,
    VICRegConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.run import RunConfig
from diptych.methods.build import METHODS
from diptych.methods.siamese.barlow_twins import barlow_twins_terms
from diptych.methods.siamese.base import Encoded, Siamese, spread_of
from diptych.methods.siamese.byol import byol_loss
from diptych.methods.siamese.lejepa import epps_pulley, random_directions
from diptych.methods.siamese.simsiam import negative_cosine
from diptych.methods.siamese.vicreg import covariance_of, invariance_of, variance_of
from diptych.views.batches import Batch

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


class TestOfAllViews:
    """What a step compares: two views of full size and a small one, in plain loops."""

    WHOLE, VIEWS = 2, 3

    @pytest.fixture
    def views(self, rng: np.random.Generator) -> tuple[Array, Array, Array]:
        """Predictions and projections of all views, and targets of those of full size."""
        predictions, projections = 0.4 * rng.normal(size=(2, self.VIEWS, IMAGES, DIM)) + 0.2
        return predictions, projections, rng.normal(size=(self.WHOLE, IMAGES, DIM))

    def compared(self, name: str, views: tuple[Array, Array, Array], **method: Any) -> float:
        head = HeadConfig(output_features=DIM, predictor_layers=2 * (name in WITH_PREDICTOR))
        key_encoder = KeyEncoderConfig("momentum" if name == "byol" else "shared")
        config = RunConfig(
            encoder=EncoderConfig(width=4, stage_blocks=(1,)),
            head=head,
            method=MethodConfig(name, key_encoder=key_encoder, **method),
        )
        built = METHODS[name].build(config, None, None)
        assert isinstance(built, Siamese)
        batch = Batch((), torch.arange(IMAGES), 3)
        return float(built.compare(Encoded(*as_tensors(*views)), batch).loss)

    def pairs(self) -> list[tuple[int, int]]:
        """Of two views, of which one at least is of full size."""
        return [(one, other) for one in range(self.WHOLE) for other in range(one + 1, self.VIEWS)]

    def test_predictions_meet_the_targets_of_other_views(
        self, views: tuple[Array, Array, Array]
    ) -> None:
        predictions, _, targets = views
        found = list[float]()
        for view in range(self.VIEWS):
            for target in range(self.WHOLE):
                if view != target:
                    found += cosines(predictions[view], targets[target])
        mean = sum(found) / len(found)
        assert len(found) == 4 * IMAGES
        assert self.compared("simsiam", views) == pytest.approx(-mean, rel=1e-10)
        assert self.compared("byol", views) == pytest.approx(2 - 2 * mean, rel=1e-10)

    def test_barlow_twins(self, views: tuple[Array, Array, Array]) -> None:
        _, projections, _ = views
        total = 0.0
        for one, other in self.pairs():
            first, second = (
                (v - v.mean(axis=0)) / np.sqrt(v.var(axis=0) + 1e-5)
                for v in (projections[one], projections[other])
            )
            c = first.T @ second / IMAGES
            total += sum((1 - c[i, i]) ** 2 for i in range(DIM))
            total += 0.3 * sum(c[i, j] ** 2 for i in range(DIM) for j in range(DIM) if i != j)
        found = self.compared("barlow_twins", views, barlow_twins=BarlowTwinsConfig(0.3))
        assert found == pytest.approx(total / 3, rel=1e-10)

    def test_vicreg(self, views: tuple[Array, Array, Array]) -> None:
        _, projections, _ = views
        invariance = sum(
            ((projections[one] - projections[other]) ** 2).mean() for one, other in self.pairs()
        )
        variance = covariance = 0.0
        for view in projections:
            c = np.cov(view.T)
            variance += np.maximum(0, 1 - np.sqrt(np.diag(c) + 1e-4)).sum() / DIM
            covariance += sum(c[i, j] ** 2 for i in range(DIM) for j in range(DIM) if i != j) / DIM
        # The mean of both views' variance terms, and the sum of their covariance terms.
        wanted = 7 * invariance / 3 + 5 * variance / 3 + 3 * (2 * covariance / 3)
        found = self.compared("vicreg", views, vicreg=VICRegConfig(7.0, 5.0, 3.0))
        assert variance > 0
        assert found == pytest.approx(wanted, rel=1e-10)

    def test_lejepa(self, views: tuple[Array, Array, Array]) -> None:
        _, projections, _ = views
        centre = (projections[0] + projections[1]) / 2  # not of the small view
        near = sum(((view - centre) ** 2).sum() for view in projections) / projections.size
        directions = random_directions(DIM, 4, seed=0, step=3).double().numpy()
        t = np.linspace(-5, 5, 17)
        normal = np.exp(-(t**2) / 2)
        tests = list[float]()
        for view in projections:
            for column in (view @ directions).T:
                waves = np.exp(1j * np.outer(t, column)).mean(axis=1)
                tests.append(IMAGES * np.trapezoid(abs(waves - normal) ** 2 * normal, t))
        wanted = 0.9 * near + 0.1 * sum(tests) / len(tests)
        config = LeJEPAConfig(0.1, directions=4, points=17)
        assert self.compared("lejepa", views, lejepa=config) == pytest.approx(wanted, rel=1e-6)


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
