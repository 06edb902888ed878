"""Losses: equal to plain loops in float64, to closed forms, to others' code; safe when cold."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

import oracles
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.method import DictionaryConfig, LossConfig, MethodConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.methods.logits import (
    in_batch_logsumexp,
    negative_logits,
    negatives_logsumexp,
    positive_logits,
    pretext_accuracy,
    semi_hard,
)
from diptych.methods.losses import (
    LOSSES,
    cross_entropy,
    cross_entropy_of_many,
    decoupled_cross_entropy,
    decoupled_nt_xent,
    info_nce,
    logistic,
    margin_triplet,
    nt_logistic,
    nt_xent,
    require_fitting_loss,
    supervised_contrastive,
    triplet,
)
from diptych.methods.objective import contrast_many

SUPERVISED = MethodConfig(loss=LossConfig("supervised"))
QUEUE = replace(SUPERVISED, dictionary=DictionaryConfig("queue"))
MISFITS = [
    (RunConfig(method=MethodConfig(loss=LossConfig("triplett"))), "one of info_nce, .*triplet"),
    (RunConfig(method=QUEUE), r"goes with the dictionary 'batch' and both_views; got 'queue'"),
    (
        RunConfig(method=MethodConfig(views=3, loss=LossConfig("triplet"))),
        "with the losses info_nce and supervised; got 'triplet'",
    ),
    (
        RunConfig(
            method=MethodConfig(loss=LossConfig("decoupled")), views=ViewsConfig(small_views=1)
        ),
        "with the losses info_nce and supervised; got 'decoupled'",
    ),
    (
        RunConfig(method=MethodConfig(loss=LossConfig(semi_hard=True))),
        "goes with the kinds nt_logistic and triplet; got 'info_nce'",
    ),
    (
        RunConfig(method=SUPERVISED, images=ImagesConfig(group_by="folder")),
        "leave one of them out",
    ),
]

EXCLUDED = torch.tensor([[0, 1], [-1, -1], [2, 2], [-1, 5], [6, 3]])


def unit(rng: np.random.Generator, count: int, dim: int = 6) -> NDArray[np.float64]:
    vectors = rng.normal(size=(count, dim))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def tensors(rng: np.random.Generator, *counts: int, grad: bool = False) -> list[Tensor]:
    return [torch.from_numpy(unit(rng, count)).requires_grad_(grad) for count in counts]


@pytest.mark.parametrize("temperature", [0.01, 0.1, 0.5, 10.0])
@pytest.mark.parametrize("batch", [1, 2, 7])
def test_nt_xent_equals_the_loop(batch: int, temperature: float, rng: np.random.Generator) -> None:
    first, second = unit(rng, batch), unit(rng, batch)
    ours = nt_xent(*map(torch.from_numpy, (first, second)), temperature=temperature)
    wanted = oracles.nt_xent(first, second, temperature)
    assert float(ours) == pytest.approx(wanted, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("count", [2, 3, 5])
def test_nt_xent_of_many_views_equals_the_loop(
    count: int, temperature: float, rng: np.random.Generator
) -> None:
    views = [unit(rng, 4) for _ in range(count)]
    ours = nt_xent(*map(torch.from_numpy, views), temperature=temperature)
    labels = [image for _ in views for image in range(4)]
    wanted = oracles.supervised_contrastive(np.concatenate(views), labels, temperature)
    assert float(ours) == pytest.approx(wanted, rel=1e-10, abs=1e-13)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("batch", [2, 7])
def test_decoupled_nt_xent_equals_the_loop(
    batch: int, temperature: float, rng: np.random.Generator
) -> None:
    first, second = unit(rng, batch), unit(rng, batch)
    ours = decoupled_nt_xent(*map(torch.from_numpy, (first, second)), temperature=temperature)
    wanted = oracles.decoupled_nt_xent(first, second, temperature)
    assert float(ours) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.2, 1.0])
@pytest.mark.parametrize("keys", [0, 1, 33])
def test_info_nce_equals_the_loop(keys: int, temperature: float, rng: np.random.Generator) -> None:
    arrays = unit(rng, 5), unit(rng, 5), unit(rng, max(keys, 1))[:keys]
    ours = info_nce(*map(torch.from_numpy, arrays), temperature=temperature)
    wanted = oracles.info_nce(*arrays, temperature)
    assert float(ours) == pytest.approx(wanted, rel=1e-10, abs=1e-15)


def test_info_nce_leaves_out_what_is_excluded(rng: np.random.Generator) -> None:
    arrays = unit(rng, 5), unit(rng, 5), unit(rng, 7)
    ours = info_nce(*map(torch.from_numpy, arrays), temperature=0.1, excluded=EXCLUDED)
    rows = [
        oracles.info_nce(query[None], positive[None], np.delete(arrays[2], columns, 0), 0.1)
        for query, positive, columns in zip(arrays[0], arrays[1], struck(), strict=True)
    ]
    assert float(ours) == pytest.approx(np.mean(rows), rel=1e-10)


def struck() -> list[list[int]]:
    return [sorted({column for column in row if column >= 0}) for row in EXCLUDED.tolist()]


@pytest.mark.parametrize("semi_hard_only", [False, True])
@pytest.mark.parametrize("temperature", [0.05, 0.5, 1.0])
def test_nt_logistic_equals_the_loop(
    temperature: float, semi_hard_only: bool, rng: np.random.Generator
) -> None:
    arrays = unit(rng, 5), unit(rng, 5), unit(rng, 7)
    ours = nt_logistic(
        *map(torch.from_numpy, arrays),
        temperature=temperature,
        excluded=EXCLUDED,
        semi_hard_only=semi_hard_only,
    )
    left_out = [set(columns) for columns in struck()]
    wanted = oracles.nt_logistic(*arrays, temperature, left_out, semi_hard_only)
    assert float(ours) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("semi_hard_only", [False, True])
@pytest.mark.parametrize("margin", [0.2, 0.8])
def test_triplet_equals_the_loop(
    margin: float, semi_hard_only: bool, rng: np.random.Generator
) -> None:
    arrays = unit(rng, 5), unit(rng, 5), unit(rng, 7)
    ours = triplet(
        *map(torch.from_numpy, arrays),
        margin=margin,
        excluded=EXCLUDED,
        semi_hard_only=semi_hard_only,
    )
    left_out = [set(columns) for columns in struck()]
    wanted = oracles.triplet(*arrays, margin, left_out, semi_hard_only)
    assert float(ours) == pytest.approx(wanted, rel=1e-10)


@pytest.mark.parametrize("labels", [[0, 1, 0, 2, 1, 0, 3], [0, 0, 0, 0], [1, 2, 3]])
@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_supervised_contrastive_equals_the_loop(
    labels: list[int], temperature: float, rng: np.random.Generator
) -> None:
    views = unit(rng, len(labels))
    ours = supervised_contrastive(
        torch.from_numpy(views), torch.tensor(labels), temperature=temperature
    )
    wanted = oracles.supervised_contrastive(views, labels, temperature)
    assert float(ours) == pytest.approx(wanted, rel=1e-10, abs=1e-13)


def test_supervised_with_images_for_classes_is_nt_xent(rng: np.random.Generator) -> None:
    views = tensors(rng, 6, 6, 6)
    ours = supervised_contrastive(torch.cat(views), torch.arange(6).repeat(3), temperature=0.2)
    assert float(ours) == pytest.approx(float(nt_xent(*views, temperature=0.2)), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0])
def test_equal_scores_give_chance(temperature: float) -> None:
    same = functional.normalize(torch.ones(8, 3, dtype=torch.float64), dim=1)
    keys = same[:1].repeat(20, 1)
    some = torch.tensor([[0, 3]]).repeat(8, 1)
    classes = torch.arange(8) % 3
    for loss, wanted in (
        (nt_xent(same, same, temperature=temperature), math.log(15)),
        (nt_xent(same, same, same, temperature=temperature), math.log(23)),
        (decoupled_nt_xent(same, same, temperature=temperature), math.log(14)),
        (info_nce(same, same, keys, temperature=temperature), math.log(21)),
        (info_nce(same, same, keys, temperature=temperature, excluded=some), math.log(19)),
        (supervised_contrastive(same, classes, temperature=temperature), math.log(7)),
        (triplet(same, same, keys, margin=0.7), 0.7),
        (nt_logistic(same, 0 * same, 0 * keys, temperature=temperature), 2 * math.log(2)),
    ):
        assert float(loss) == pytest.approx(wanted, rel=1e-9)


def test_without_negatives_there_is_nothing_to_lose(rng: np.random.Generator) -> None:
    queries, positives = tensors(rng, 3, 3, grad=True)
    none = queries.detach()[:0]
    losses = (
        info_nce(queries, positives, none, temperature=0.1),
        nt_xent(queries[:1], positives[:1], temperature=0.1),
        triplet(queries, positives, none, margin=0.5),
        triplet(queries, positives, none, margin=0.5, semi_hard_only=True),
    )
    for loss in losses:
        gradients = torch.autograd.grad(loss, (queries, positives), allow_unused=True)
        assert float(loss.detach()) == 0
        assert all(gradient is None or (gradient == 0).all() for gradient in gradients)
    own = positive_logits(queries, positives, temperature=0.1)
    empty = negatives_logsumexp(queries, none, temperature=0.1).logsumexp
    assert float(decoupled_cross_entropy(own, empty).detach()) == 0


@pytest.mark.parametrize("temperature", [0.01, 0.05])
def test_cold_losses_in_single_precision(temperature: float, rng: np.random.Generator) -> None:
    """Finite, gradients too, and close to the same in float64; near and far views alike."""
    first, second, keys = tensors(rng, 16, 16, 30)
    second[:8] = first[:8]
    labels = torch.arange(16) % 5
    losses: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
        lambda a, b, k: nt_xent(a, b, temperature=temperature),
        lambda a, b, k: nt_xent(a, b, a.flip(0), temperature=temperature),
        lambda a, b, k: decoupled_nt_xent(a, b, temperature=temperature),
        lambda a, b, k: info_nce(a, b, k, temperature=temperature),
        lambda a, b, k: nt_logistic(a, b, k, temperature=temperature),
        lambda a, b, k: nt_logistic(a, b, k, temperature=temperature, semi_hard_only=True),
        lambda a, b, k: supervised_contrastive(a, labels, temperature=temperature),
    ]
    for loss in losses:
        results = []
        for dtype in (torch.float32, torch.float64):
            inputs = [vectors.to(dtype).requires_grad_() for vectors in (first, second, keys)]
            value = loss(*inputs)
            (gradient,) = torch.autograd.grad(value, inputs[0])
            results.append((value.detach().double(), gradient.double()))
        (single, single_gradient), (double, double_gradient) = results
        torch.testing.assert_close(single, double, rtol=1e-5, atol=1e-5)
        scale = float(double_gradient.abs().max())
        torch.testing.assert_close(single_gradient, double_gradient, rtol=0, atol=1e-4 * scale)


def test_gradients_are_right(rng: np.random.Generator) -> None:
    first, second, keys = tensors(rng, 5, 5, 7, grad=True)
    warmth = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 0, 2])

    def against(loss: Callable[..., Tensor], **options: object) -> None:
        assert torch.autograd.gradcheck(
            lambda a, b, k, t: loss(a, b, k, temperature=t, excluded=EXCLUDED, **options),
            (first, second, keys, warmth),
        )

    against(info_nce)
    against(nt_logistic)
    against(nt_logistic, semi_hard_only=True)
    against(triplet, margin=0.5)
    against(triplet, margin=0.5, semi_hard_only=True)
    for loss in (nt_xent, decoupled_nt_xent):
        assert torch.autograd.gradcheck(
            lambda a, b, t, loss=loss: loss(a, b, temperature=t), (first, second, warmth)
        )
    assert torch.autograd.gradcheck(
        lambda a, b, t: nt_xent(a, b, b.flip(0), temperature=t), (first, second, warmth)
    )
    assert torch.autograd.gradcheck(
        lambda a, t: supervised_contrastive(a, labels, temperature=t), (first, warmth)
    )


def test_no_loss_depends_on_the_order_of_images_or_the_axes(rng: np.random.Generator) -> None:
    first, second, keys = tensors(rng, 9, 9, 12)
    order, key_order = torch.randperm(9), torch.randperm(12)
    turn, _ = torch.linalg.qr(torch.from_numpy(rng.normal(size=(6, 6))))
    labels = torch.arange(9) % 4
    for loss in (nt_xent, decoupled_nt_xent):
        value = loss(first, second, temperature=0.2)
        torch.testing.assert_close(loss(first[order], second[order], temperature=0.2), value)
        torch.testing.assert_close(loss(second, first, temperature=0.2), value)
        torch.testing.assert_close(loss(first @ turn, second @ turn, temperature=0.2), value)
    value = supervised_contrastive(first, labels, temperature=0.2)
    turned = supervised_contrastive(first[order] @ turn, labels[order], temperature=0.2)
    torch.testing.assert_close(turned, value)
    losses: list[Callable[[Tensor, Tensor, Tensor], Tensor]] = [
        lambda a, b, k: info_nce(a, b, k, temperature=0.2),
        lambda a, b, k: nt_logistic(a, b, k, temperature=0.2),
        lambda a, b, k: triplet(a, b, k, margin=0.4, semi_hard_only=True),
    ]
    for against in losses:
        value = against(first, second, keys)
        shuffled = against(first[order], second[order], keys[key_order])
        torch.testing.assert_close(shuffled, value)
        torch.testing.assert_close(against(first @ turn, second @ turn, keys @ turn), value)


def test_losses_of_scores_by_hand() -> None:
    own, others = torch.tensor([1.0, 0.0]), torch.tensor([[0.5, -math.inf], [0.0, 2.0]])
    assert float(margin_triplet(own, others, margin=1.0)) == pytest.approx((0.5 + (1 + 3) / 2) / 2)
    assert semi_hard(own, others).tolist() == [[0.5], [-math.inf]]  # a tie is not below
    first = math.log1p(math.exp(-1)) + math.log1p(math.exp(0.5))
    second = math.log(2) + (math.log(2) + math.log1p(math.exp(2))) / 2
    assert float(logistic(own, others)) == pytest.approx((first + second) / 2, rel=1e-6)
    assert float(cross_entropy_of_many(own[:, None], others.logsumexp(dim=1))) == pytest.approx(
        float(cross_entropy(own, others.logsumexp(dim=1))), rel=1e-6
    )


def test_a_loss_close_to_zero_is_exact() -> None:
    """log(1 + x) of a small x, which a sum of exponentials next to 1 would lose."""
    loss = cross_entropy(torch.tensor([100.0]), torch.tensor([70.0]))
    assert float(loss) == pytest.approx(math.exp(-30), rel=1e-5)


def test_accuracy_counts_queries_whose_own_key_is_best() -> None:
    queries = torch.eye(3)
    positives = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 0.2]])
    negatives = torch.tensor([[0.0, 0.5, 0.9]])
    own = positive_logits(queries, positives, temperature=0.1)
    best = negatives_logsumexp(queries, negatives, temperature=0.1).largest
    assert float(pretext_accuracy(own, best)) == pytest.approx(2 / 3)
    assert torch.equal(best, negative_logits(queries, negatives, temperature=0.1).amax(dim=1))


@pytest.mark.parametrize("classes", [2, 6, 12])
def test_chance_is_what_random_vectors_find(classes: int, rng: np.random.Generator) -> None:
    """Of a query with several positives guessing finds one more often."""
    ids = torch.arange(24) % classes
    config = LossConfig("supervised")
    found = [
        contrast_many(
            torch.from_numpy(unit(rng, 24)), ids, LOSSES[config.kind], config, temperature=0.5
        ).metrics
        for _ in range(300)
    ]
    reached = float(np.mean([float(one["pretext_accuracy"]) for one in found]))
    chance = float(found[0]["chance_pretext_accuracy"])
    assert chance == pytest.approx((24 / classes - 1) / 23)
    assert reached == pytest.approx(chance, abs=0.03)


def test_collapse_is_not_counted_as_success() -> None:
    same = torch.ones(4, 3)
    own = positive_logits(same, same, temperature=0.1)
    best = in_batch_logsumexp(same, temperature=0.1, excluded=torch.arange(4)[:, None]).largest
    assert float(pretext_accuracy(own, best)) == 0.0


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(Exception, match=r"(?i)type"):
        nt_xent(torch.ones(4, 3), torch.ones(5, 3), temperature=0.1)


def test_one_view_is_refused() -> None:
    with pytest.raises(ValueError, match="2 views"):
        nt_xent(torch.ones(4, 3), temperature=0.1)


class TestAgainstLightly:
    """Its losses normalise; ours take what they get, so both are given unit vectors."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        self.peer = pytest.importorskip("lightly.loss")

    @pytest.mark.parametrize("temperature", [0.05, 0.5])
    def test_nt_xent(self, temperature: float, rng: np.random.Generator) -> None:
        first, second = tensors(rng, 12, 12, grad=True)
        theirs = self.peer.NTXentLoss(temperature=temperature)(first, second)
        ours = nt_xent(first, second, temperature=temperature)
        assert_same_loss(ours, theirs, [first, second])

    def test_info_nce_against_a_memory_bank(self, rng: np.random.Generator) -> None:
        queries, positives = (vectors.float() for vectors in tensors(rng, 6, 6))  # as its bank is
        peer = self.peer.NTXentLoss(temperature=0.2, memory_bank_size=(20, 6))
        peer(queries, positives)  # the first call fills the bank, with noise
        bank = peer.memory_bank.bank.clone()
        queries.requires_grad_()
        theirs = peer(queries, positives)  # compares first; then its bank takes the positives in
        ours = info_nce(queries, positives, bank, temperature=0.2)
        assert_same_loss(ours, theirs, [queries], rtol=1e-5)

    @pytest.mark.parametrize("temperature", [0.05, 0.5])
    def test_decoupled(self, temperature: float, rng: np.random.Generator) -> None:
        first, second = tensors(rng, 12, 12, grad=True)
        theirs = self.peer.DCLLoss(temperature=temperature)(first, second)
        ours = decoupled_nt_xent(first, second, temperature=temperature)
        assert_same_loss(ours, theirs, [first, second])


class TestAgainstPytorchMetricLearning:
    """Its losses take vectors with labels; two views of an image have one label."""

    @pytest.fixture(autouse=True)
    def _installed(self) -> None:
        self.peer = pytest.importorskip("pytorch_metric_learning.losses")
        self.distances = pytest.importorskip("pytorch_metric_learning.distances")
        self.reducers = pytest.importorskip("pytorch_metric_learning.reducers")

    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_nt_xent(self, temperature: float, rng: np.random.Generator) -> None:
        # With more than two views the conventions differ: its denominator holds one positive, the
        # one in the numerator, ours holds all (SupCon, eq. 2).
        first, second = tensors(rng, 8, 8, grad=True)
        peer = self.peer.NTXentLoss(temperature=temperature)
        theirs = peer(torch.cat([first, second]), torch.arange(8).repeat(2))
        ours = nt_xent(first, second, temperature=temperature)
        assert_same_loss(ours, theirs, [first, second], rtol=1e-6)  # it adds 1e-9 in a logarithm

    @pytest.mark.parametrize("temperature", [0.1, 0.5])
    def test_supervised_contrastive(self, temperature: float, rng: np.random.Generator) -> None:
        # Its mean leaves out losses that are exactly 0, ours those of views without a partner:
        # the same here.
        (views,) = tensors(rng, 12, grad=True)
        labels = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2, 1, 3, 4])
        theirs = self.peer.SupConLoss(temperature=temperature)(views, labels)
        ours = supervised_contrastive(views, labels, temperature=temperature)
        assert_same_loss(ours, theirs, [views], rtol=1e-6)

    def test_triplet(self, rng: np.random.Generator) -> None:
        # Its default mean leaves out triplets without loss; a plain mean is asked for here.
        first, second = tensors(rng, 6, 6, grad=True)
        peer = self.peer.TripletMarginLoss(
            margin=0.4,
            distance=self.distances.DotProductSimilarity(normalize_embeddings=False),
            reducer=self.reducers.MeanReducer(),
        )
        views = torch.cat([first, second])
        theirs = peer(views, torch.arange(6).repeat(2))
        own_image = torch.arange(12)[:, None] % 6 + torch.tensor([0, 6])
        ours = triplet(views, views.roll(6, dims=0), views, margin=0.4, excluded=own_image)
        assert_same_loss(ours, theirs, [first, second])


def assert_same_loss(
    ours: Tensor, theirs: Tensor, inputs: list[Tensor], rtol: float = 1e-9
) -> None:
    """Equal values; equal gradients along the sphere, as a peer may normalise once more."""
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    gradients = zip(
        inputs, torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True
    )
    for vectors, mine, peers in gradients:
        along = [g - (g * vectors).sum(dim=1, keepdim=True) * vectors for g in (mine, peers)]
        torch.testing.assert_close(*along, rtol=10 * rtol, atol=10 * rtol)


@pytest.mark.parametrize(("config", "words"), MISFITS)
def test_a_loss_that_does_not_fit_is_refused(config: RunConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        require_fitting_loss(config)


def test_every_loss_fits_somewhere() -> None:
    for kind in LOSSES:
        config = RunConfig(method=MethodConfig(loss=LossConfig(kind)))
        assert require_fitting_loss(config) is LOSSES[kind]
    groups = ImagesConfig(group_by="folder")
    three = MethodConfig(views=3)
    assert require_fitting_loss(RunConfig(method=three, images=groups)) is LOSSES["info_nce"]
