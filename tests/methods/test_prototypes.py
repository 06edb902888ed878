"""The losses of SwAV, DINO and NNCLR, against plain loops in float64 and against lightly."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

import oracles
from diptych.config.method import LossConfig
from diptych.methods.dictionaries import InBatch
from diptych.methods.losses import find_loss
from diptych.methods.objective import contrast
from diptych.methods.siamese.dino import cosines, teacher_probabilities
from diptych.methods.siamese.nnclr import nearest
from diptych.methods.siamese.prototypes import (
    build_prototypes,
    cross_entropy_of_views,
    prototype_metrics,
)
from diptych.methods.siamese.swav import sinkhorn
from diptych.views.batches import Batch

Array = NDArray[np.float64]
IMAGES, PROTOTYPES = 9, 5


def softmax(row: Array, temperature: float = 1.0) -> Array:
    powers = np.exp((row - row.max()) / temperature)
    return powers / powers.sum()


def plain_sinkhorn(scores: Array, epsilon: float, iterations: int) -> Array:
    """SwAV's algorithm 1, with loops: rows and columns in turn."""
    shares = np.exp(scores / epsilon)
    for _ in range(iterations):
        for k in range(shares.shape[1]):
            shares[:, k] /= shares[:, k].sum() * shares.shape[1]
        for i in range(len(shares)):
            shares[i] /= shares[i].sum() * len(shares)
    return np.array([row / row.sum() for row in shares])


def plain_cross_entropy(targets: Array, logits: Array) -> float:
    """Over all pairs of a target and another view, image by image."""
    found = []
    for t, target in enumerate(targets):
        for v, view in enumerate(logits):
            if v == t:
                continue
            for wanted, given in zip(target, view, strict=True):
                found.append(
                    -sum(q * math.log(p) for q, p in zip(wanted, softmax(given), strict=True))
                )
    return float(np.mean(found))


@pytest.mark.parametrize("iterations", [0, 1, 3])
def test_sinkhorn_equals_the_loop(iterations: int, rng: np.random.Generator) -> None:
    scores = rng.uniform(-1, 1, (IMAGES, PROTOTYPES))
    found = sinkhorn(torch.from_numpy(scores), epsilon=0.05, iterations=iterations)
    np.testing.assert_allclose(found, plain_sinkhorn(scores, 0.05, iterations), rtol=1e-9)


def test_sinkhorn_gives_all_prototypes_the_same_share(rng: np.random.Generator) -> None:
    scores = torch.from_numpy(rng.uniform(-1, 1, (IMAGES, PROTOTYPES)))
    scores[:, 0] += 2.0  # the nearest one of all rows
    alone = sinkhorn(scores, epsilon=0.05, iterations=0)
    assert float(alone.sum(dim=0)[0]) > 0.9 * IMAGES
    shared = sinkhorn(scores, epsilon=0.05, iterations=100)
    torch.testing.assert_close(
        shared.sum(dim=0), torch.full((5,), IMAGES / 5).double(), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(shared.sum(dim=1), torch.ones(IMAGES).double())


def test_sinkhorn_does_not_overflow_nor_depend_on_the_order(rng: np.random.Generator) -> None:
    scores = torch.from_numpy(rng.uniform(-1, 1, (IMAGES, PROTOTYPES))).float()
    found = sinkhorn(scores, epsilon=0.01, iterations=3)  # exp(100) is no float32
    assert bool(torch.isfinite(found).all())
    turned = sinkhorn(scores.roll(3, dims=0), epsilon=0.01, iterations=3)
    torch.testing.assert_close(turned, found.roll(3, dims=0))


@pytest.mark.parametrize("views", [2, 4])
def test_the_cross_entropy_of_views_equals_the_loop(views: int, rng: np.random.Generator) -> None:
    targets = rng.dirichlet(np.ones(PROTOTYPES), (2, IMAGES))
    logits = rng.normal(0, 3, (views, IMAGES, PROTOTYPES))
    found = cross_entropy_of_views(torch.from_numpy(targets), torch.from_numpy(logits))
    assert float(found) == pytest.approx(plain_cross_entropy(targets, logits), rel=1e-12)


def test_no_gradient_flows_to_the_targets(rng: np.random.Generator) -> None:
    targets = torch.from_numpy(rng.dirichlet(np.ones(4), (2, 3))).requires_grad_()
    logits = torch.from_numpy(rng.normal(size=(2, 3, 4))).requires_grad_()
    cross_entropy_of_views(targets, logits).backward()  # type: ignore[no-untyped-call]
    assert targets.grad is None
    assert logits.grad is not None


def test_the_teachers_probabilities_equal_the_loop(rng: np.random.Generator) -> None:
    logits, center = rng.normal(size=(2, IMAGES, PROTOTYPES)), rng.normal(size=PROTOTYPES)
    found = teacher_probabilities(
        torch.from_numpy(logits), torch.from_numpy(center), temperature=0.07
    )
    expected = [[softmax(row - center, 0.07) for row in view] for view in logits]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_neighbours_are_the_nearest_of_a_loop(rng: np.random.Generator) -> None:
    vectors, stored = (
        rows / np.linalg.norm(rows, axis=1, keepdims=True)
        for rows in (rng.normal(size=(700, 4)), rng.normal(size=(30, 4)))
    )
    expected = [stored[int(np.argmax([row @ one for one in stored]))] for row in vectors]
    found = nearest(torch.from_numpy(vectors), torch.from_numpy(stored))
    np.testing.assert_array_equal(found, expected)
    none = nearest(torch.from_numpy(vectors), torch.zeros(0, 4).double())
    np.testing.assert_array_equal(none, vectors)


def nnclr_loss(neighbours: Tensor, predictions: Tensor, temperature: float) -> Tensor:
    """As the method puts it together: neighbours against the predictions of the batch."""
    batch = Batch((predictions,), torch.arange(len(predictions)), 0)
    comparison = InBatch(both_views=False).compare(neighbours, predictions, batch)
    settings = LossConfig(temperature=temperature)
    return contrast(comparison, find_loss("info_nce"), settings, temperature=temperature).loss


def test_nnclr_is_info_nce_of_neighbours(rng: np.random.Generator) -> None:
    """Equation 3 of the paper: negatives are the predictions of the other images."""
    unit = [
        rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in rng.normal(size=(2, 6, 4))
    ]
    neighbours, predictions = unit
    expected = np.mean(
        [
            oracles.info_nce(
                neighbours[[i]], predictions[[i]], np.delete(predictions, i, axis=0), 0.2
            )
            for i in range(6)
        ]
    )
    found = nnclr_loss(torch.from_numpy(neighbours), torch.from_numpy(predictions), 0.2)
    assert float(found) == pytest.approx(expected, rel=1e-9)


class TestMetrics:
    def metrics(self, names: list[int], wanted: list[int], sure: float = 50.0) -> dict[str, float]:
        """Views that name prototypes, and targets that do, both as sure as asked."""
        logits, targets = (
            sure * functional.one_hot(torch.tensor(one), PROTOTYPES).double()[None]
            for one in (names, wanted)
        )
        logits, targets = logits.repeat(2, 1, 1), targets.repeat(2, 1, 1).softmax(dim=-1)
        loss = cross_entropy_of_views(targets, logits)
        found = prototype_metrics(targets, logits, loss)
        return {name: float(value) for name, value in found.items()}

    def test_views_that_agree(self) -> None:
        found = self.metrics([0, 1, 2, 3], [0, 1, 2, 0])
        assert found["prototype_agreement"] == 0.75
        # Of 12 pairs of different images one names 0 twice.
        assert found["chance_prototype_agreement"] == pytest.approx(1 / 12)
        assert found["named_prototypes"] == pytest.approx(4)
        assert found["target_entropy"] == pytest.approx(0, abs=1e-9)
        assert found["chance_loss"] == pytest.approx(math.log(PROTOTYPES))

    def test_all_name_one(self) -> None:
        """Both views agree on all images, and so do all pairs of images."""
        found = self.metrics([2] * 6, [2] * 6)
        assert found["prototype_agreement"] == found["chance_prototype_agreement"] == 1.0
        assert found["named_prototypes"] == pytest.approx(1)
        assert found["target_divergence"] == pytest.approx(0, abs=1e-9)

    def test_all_are_flat(self) -> None:
        found = self.metrics([0, 1, 2], [0, 1, 2], sure=0.0)
        assert found["target_entropy"] == pytest.approx(math.log(PROTOTYPES))
        assert found["target_divergence"] == pytest.approx(0, abs=1e-9)
        assert found["prototype_agreement"] <= found["chance_prototype_agreement"]


def test_prototypes_follow_from_the_seed_and_have_length_one() -> None:
    state = torch.get_rng_state()
    one, same, other = (build_prototypes(7, dim=4, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.weight, same.weight)
    assert not torch.equal(one.weight, other.weight)
    torch.testing.assert_close(one.weight.norm(dim=1), torch.ones(7))


class TestAgainstLightly:
    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        self.peer = pytest.importorskip("lightly.loss")
        self.modules = pytest.importorskip("lightly.models.modules")

    @pytest.mark.parametrize("small", [0, 3])
    @pytest.mark.parametrize("queued", [0, 4])
    def test_swav(self, small: int, queued: int, rng: np.random.Generator) -> None:
        scores = torch.from_numpy(rng.uniform(-1, 1, (2 + small, IMAGES, PROTOTYPES)))
        scores.requires_grad_()
        stored = torch.from_numpy(rng.uniform(-1, 1, (2, queued, PROTOTYPES)))
        peer = self.peer.SwaVLoss(temperature=0.1, sinkhorn_iterations=3, sinkhorn_epsilon=0.05)
        theirs = peer(list(scores[:2]), list(scores[2:]), list(stored) if queued else None)
        targets = [
            sinkhorn(torch.cat([scores[view], stored[view]]), epsilon=0.05, iterations=3)[:IMAGES]
            for view in range(2)
        ]
        ours = cross_entropy_of_views(torch.stack(targets), scores / 0.1)
        assert_same(ours, theirs, scores)

    @pytest.mark.parametrize("small", [0, 3])
    def test_dino(self, small: int, rng: np.random.Generator) -> None:
        student = torch.from_numpy(rng.normal(size=(2 + small, IMAGES, PROTOTYPES))).float()
        student.requires_grad_()
        teacher = torch.from_numpy(rng.normal(size=(2, IMAGES, PROTOTYPES))).float()
        peer = self.peer.DINOLoss(PROTOTYPES, student_temp=0.1, center_momentum=0.9)
        center = torch.zeros(PROTOTYPES)
        for _ in range(2):  # its centre moves after its loss
            theirs = peer(list(teacher), list(student), teacher_temp=0.07)
            targets = teacher_probabilities(teacher, center, temperature=0.07)
            ours = cross_entropy_of_views(targets, student / 0.1)
            assert_same(ours, theirs, student, rtol=1e-5)
            center = center.lerp(teacher.flatten(0, 1).mean(dim=0), 0.1)
        torch.testing.assert_close(peer.center.flatten(), center)

    @pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
    def test_dinos_last_layer(self, rng: np.random.Generator) -> None:
        """Its head has the same cosines where its layers before are left out."""
        head = self.modules.DINOProjectionHead(4, 6, 4, PROTOTYPES, norm_last_layer=True)
        head.layers = nn.Identity()
        vectors = torch.from_numpy(rng.normal(size=(IMAGES, 4))).float()
        torch.testing.assert_close(cosines(vectors, head.last_layer.weight_v), head(vectors))

    def test_nnclr(self, rng: np.random.Generator) -> None:
        """Its loss has the same positives, and the other neighbours among the negatives too."""
        vectors = functional.normalize(
            torch.from_numpy(rng.normal(size=(IMAGES, 4))).float(), dim=1
        )
        peer = self.modules.NNMemoryBankModule(size=(20, 4))
        peer(vectors, update=True)  # it begins with noise
        bank = functional.normalize(peer.bank, dim=1)
        torch.testing.assert_close(
            nearest(vectors, bank), functional.normalize(peer(vectors), dim=1)
        )


def assert_same(ours: Tensor, theirs: Any, scores: Tensor, rtol: float = 1e-9) -> None:
    torch.testing.assert_close(ours, theirs.reshape(()), rtol=rtol, atol=0)
    mine, other = (torch.autograd.grad(one.sum(), scores)[0] for one in (ours, theirs))
    torch.testing.assert_close(mine, other, rtol=rtol, atol=1e-9)
