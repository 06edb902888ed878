"""kNN, linear classifier and geometry against scikit-learn, SciPy and plain loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

import oracles
from diptych.evaluation import knn as nearest_module
from diptych.evaluation import linear
from diptych.evaluation.geometry import alignment, effective_rank, uniformity
from diptych.evaluation.knn import accuracy, knn_predict, leave_one_out, nearest
from diptych.evaluation.linear import (
    L2_STRENGTHS,
    SIMCLR_STRENGTHS,
    fit_linear,
    fit_multilabel,
    fit_with_strength,
    minimise,
)
from diptych.images.groups import stratified_group_split


def blobs(rng: np.random.Generator, count: int, dim: int = 12, classes: int = 5) -> Any:
    centres = np.random.default_rng(1).normal(size=(classes, dim))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + rng.normal(0, 0.9, (count, dim))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def in_tiles(monkeypatch: pytest.MonkeyPatch, queries: int, images: int) -> None:
    monkeypatch.setattr(nearest_module, "_TILE_QUERIES", queries)
    monkeypatch.setattr(nearest_module, "_TILE_IMAGES", images)


def weights(distances: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(-distances / 0.07)  # exp(cosine / T) up to a factor


def test_knn_equals_scikit_learn(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    in_tiles(monkeypatch, 40, 70)
    (train, labels), (test, truth) = blobs(rng, 400), blobs(rng, 150)
    theirs = KNeighborsClassifier(20, weights=weights, metric="cosine", algorithm="brute")
    theirs.fit(train.double().numpy(), labels.numpy())
    ours = knn_predict(train.double(), labels, test.double())
    assert ours.tolist() == theirs.predict(test.double().numpy()).tolist()
    assert accuracy(ours, truth) == pytest.approx(
        theirs.score(test.double().numpy(), truth.numpy())
    )


def test_nearest_in_tiles_equals_the_whole(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (bank, _), (queries, _) = blobs(rng, 300), blobs(rng, 90)
    whole = nearest(queries.double(), bank.double(), 7)
    in_tiles(monkeypatch, 7, 11)
    tiled = nearest(queries.double(), bank.double(), 7)
    assert torch.equal(whole[1], tiled[1])
    torch.testing.assert_close(whole[0], tiled[0])


@pytest.mark.parametrize("spread", [1.0, 0.01, 1e-5])
def test_a_first_look_in_half_precision_changes_nothing(
    spread: float, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The closer the vectors, the less bfloat16 can tell them apart; then the second look decides.
    near = 1.0 + spread * rng.normal(size=(900, 64))
    bank = torch.from_numpy(near).float()
    queries = torch.from_numpy(near[:200] + 0.3 * spread * rng.normal(size=(200, 64))).float()
    whole = nearest(queries, bank, 5)
    monkeypatch.setattr(nearest_module, "_pays", lambda bank: True)
    looked = []
    plain = nearest_module._plain

    def counted(queries: torch.Tensor, *others: Any) -> Any:
        looked.append((queries.dtype, len(queries)))
        return plain(queries, *others)

    monkeypatch.setattr(nearest_module, "_plain", counted)
    twice = nearest(queries, bank, 5)
    torch.testing.assert_close(whole[0], twice[0], atol=1e-6, rtol=0)
    if spread > 1e-5:  # below, float32 itself no longer tells which is nearer
        assert (whole[1] == twice[1]).double().mean() > 0.99
    assert looked[0] == (torch.bfloat16, 200)
    again = sum(count for dtype, count in looked if dtype == torch.float32)
    assert again < 100 if spread == 1.0 else again == 200


def test_more_neighbours_than_images_are_all_images() -> None:
    found, rows = nearest(torch.randn(2, 3), torch.randn(4, 3), 20)
    assert found.shape == rows.shape == (2, 4)


def test_votes_of_a_few_queries_at_a_time_name_the_same_classes(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (train, labels), (test, _) = blobs(rng, 300), blobs(rng, 90)
    labels = labels * 100  # as of 401 classes
    whole = knn_predict(train, labels, test), leave_one_out(train, labels)
    held = list[int]()
    votes = nearest_module._votes

    def counted(*given: Any) -> Tensor:
        found = votes(*given)
        held.append(found.numel())
        return found

    monkeypatch.setattr(nearest_module, "_votes", counted)
    monkeypatch.setattr(nearest_module, "_MOST_VOTES", 8000)
    assert torch.equal(knn_predict(train, labels, test), whole[0])
    assert torch.equal(leave_one_out(train, labels), whole[1])
    assert max(held) <= 8000
    assert sum(held) == (90 + 300) * 401
    assert knn_predict(train, labels, test[:0]).shape == (0,)


def test_leave_one_out_asks_all_others(rng: np.random.Generator) -> None:
    features, labels = blobs(rng, 60)
    features = features.double()
    features[7] = features[3]  # copies: each is the other's nearest
    wanted = []
    for image in range(60):
        others = [i for i in range(60) if i != image]
        wanted.append(knn_predict(features[others], labels[others], features[[image]], k=5)[0])
    assert leave_one_out(features, labels, k=5).tolist() == torch.stack(wanted).tolist()
    crowd = torch.ones(9, 3).double()  # nine copies: itself need not be among the nearest
    assert leave_one_out(crowd, torch.zeros(9).long(), k=2).tolist() == [0] * 9


def test_a_quadratic_ends_where_algebra_says(rng: np.random.Generator) -> None:
    root = torch.from_numpy(rng.normal(size=(6, 6)))
    bend = root @ root.T + 0.1 * torch.eye(6).double()
    target = torch.from_numpy(rng.normal(size=(3, 6)))

    def objective(point: torch.Tensor) -> tuple[float, torch.Tensor]:
        slope = point @ bend - target
        return float((0.5 * point * (point @ bend) - point * target).sum()), slope

    wanted = torch.linalg.solve(bend, target.T).T
    for inverse in (torch.linalg.inv(bend), torch.eye(6).double()):
        found = minimise(
            objective, torch.zeros(3, 6).double(), inverse, tolerance=1e-9, most_passes=500
        )
        torch.testing.assert_close(found.point, wanted)
        assert found.steepness <= 1e-9
    known = minimise(
        objective,
        torch.zeros(3, 6).double(),
        torch.linalg.inv(bend),
        tolerance=1e-9,
        most_passes=500,
    )
    assert known.passes <= 4  # with the true curvature the first step is the last
    short = minimise(
        objective, torch.zeros(3, 6).double(), torch.eye(6).double(), tolerance=0.0, most_passes=5
    )
    assert short.passes <= 25  # a line search may look a few times more


def test_single_precision_ends_where_double_would(rng: np.random.Generator) -> None:
    features, labels = blobs(rng, 3000)
    features = features * torch.logspace(0, -3, 12) + 5.0  # narrow and far from zero
    found = fit_with_strength(features, labels, 5, 1e-4, None)
    standard = ((features - found.mean) * found.scale).double()
    weight, bias = (part.double().requires_grad_() for part in (found.weight, found.bias))
    loss = torch.nn.functional.cross_entropy(standard @ weight.T + bias, labels)
    slopes = torch.autograd.grad(loss + 0.5e-4 * weight.square().sum(), (weight, bias))
    assert max(float(slope.abs().max()) for slope in slopes) < 2e-5


def test_several_labels_equal_one_regression_each(rng: np.random.Generator) -> None:
    features, classes = blobs(rng, 400)
    targets = torch.stack([(classes < 2), (classes % 2 == 0)], dim=1).float()
    found = fit_multilabel(features.double(), targets, strengths=(0.01,))
    standard = ((features.double() - found.mean) * found.scale).numpy()
    for label in range(2):
        theirs = LogisticRegression(C=1 / (0.01 * 400), tol=1e-8, max_iter=2000)
        theirs.fit(standard, targets[:, label].numpy())
        np.testing.assert_allclose(found.weight[label].numpy(), theirs.coef_[0], atol=2e-3)
        np.testing.assert_allclose(found.bias[label].numpy(), theirs.intercept_[0], atol=2e-3)


def test_simclr_sweeps_45_strengths(rng: np.random.Generator) -> None:
    assert len(SIMCLR_STRENGTHS) == 45
    np.testing.assert_allclose(SIMCLR_STRENGTHS, np.logspace(5, -6, 45))
    train, labels = blobs(rng, 300)
    test, truth = blobs(rng, 400)
    swept = fit_linear(train, labels, strengths=SIMCLR_STRENGTHS)
    assert swept.l2 < 10  # not one of those so strong that all images look alike
    assert accuracy(swept.predict(test), truth) > 0.8


@pytest.mark.parametrize("l2", [1.0, 0.01, 0.0001])
def test_logistic_regression_equals_scikit_learn(l2: float, rng: np.random.Generator) -> None:
    train, labels = blobs(rng, 500)
    test, _ = blobs(rng, 400)
    ours = fit_with_strength(train.double(), labels, 5, l2, None)
    standard = ((train.double() - ours.mean) * ours.scale).numpy()
    theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=5000)
    theirs.fit(standard, labels.numpy())
    wanted = theirs.predict(((test.double() - ours.mean) * ours.scale).numpy())
    assert (ours.predict(test.double()).numpy() == wanted).mean() > 0.995
    difference = ours.weight.numpy() - theirs.coef_
    if l2 >= 0.01:
        np.testing.assert_allclose(difference - difference.mean(axis=0), 0, atol=2e-3)


@pytest.mark.parametrize("l2", [1.0, 0.01])
def test_of_fewer_images_than_dimensions_it_equals_scikit_learn(
    l2: float, rng: np.random.Generator
) -> None:
    train, labels = blobs(rng, 40, dim=90)
    warm = fit_with_strength(train.double(), labels, 5, 10.0, None)
    for start in (None, warm):
        ours = fit_with_strength(train.double(), labels, 5, l2, start)
        standard = ((train.double() - ours.mean) * ours.scale).numpy()
        theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=5000)
        theirs.fit(standard, labels.numpy())
        np.testing.assert_allclose(ours.weight.numpy(), theirs.coef_, atol=2e-3)


def test_the_strength_is_chosen_by_held_out_images(rng: np.random.Generator) -> None:
    noise = torch.randn(600, 400, generator=torch.Generator().manual_seed(0))
    noise[:, 0] += torch.arange(600) % 2 * 2.0
    labels = torch.arange(600) % 2
    assert fit_linear(noise, labels).l2 >= 0.01  # many useless dimensions: a strong pull
    train, classes = blobs(rng, 800)
    test, truth = blobs(rng, 400)
    assert accuracy(fit_linear(train, classes).predict(test), truth) > 0.8


def held_out_parts(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The fifth that chooses the strength, and the rest, as ``seed=0`` has them."""
    order = torch.randperm(len(features), generator=torch.Generator().manual_seed(0))
    chosen, rest = order[: len(order) // 5], order[len(order) // 5 :]
    return features[rest], targets[rest], features[chosen], targets[chosen]


@pytest.mark.parametrize("sweep", [L2_STRENGTHS, SIMCLR_STRENGTHS])
def test_a_sweep_finds_the_best_of_its_grid(
    sweep: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accuracy along the grid may rise again after it fell: here two peaks, the later higher."""
    heights = dict.fromkeys(sweep, 0.5)
    heights |= {sweep[1]: 0.7, sweep[2]: 0.6, sweep[3]: 0.6, sweep[4]: 0.55, sweep[-1]: 0.8}
    monkeypatch.setattr(linear, "minus_brier", lambda fitted, *rest: heights[fitted.l2])
    features, labels = blobs(np.random.default_rng(0), 60)
    assert fit_linear(features, labels, strengths=sweep).l2 == sweep[-1]


def test_one_image_far_off_does_not_choose_the_strength() -> None:
    """A feature that hardly varied in four fifths, and an image of the last with a usual value of
    it: the mean loss was that of this one image, and the strongest penalty cost nine points."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(6, 40))
    classes = rng.integers(0, 6, 2600)
    pixels = centres[classes] + 0.9 * rng.normal(size=(2600, 40))
    pixels[:, :3] *= 1e-4  # features that are nearly always off, and tell something
    _, held_out, _ = stratified_group_split(classes[:600], None, seed=0)  # the first that chooses
    pixels[held_out[0], :3] = 1.0
    features, labels = torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes)
    few, known, test, truth = features[:600], labels[:600], features[600:], labels[600:]
    fitted = fit_linear(few, known)
    assert fitted.l2 < L2_STRENGTHS[0]
    shares = [
        accuracy(fit_with_strength(few, known, 6, l2, None).predict(test), truth)
        for l2 in L2_STRENGTHS
    ]
    assert accuracy(fitted.predict(test), truth) > max(shares) - 0.01
    usual = float(test[:500].std(dim=0).square().mean().sqrt())
    assert float(fit_linear(test[:500], truth[:500]).scale.max()) <= 101 / usual


def test_the_brier_score_by_a_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(9, 4, generator=generator)
    weight, bias = torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator)
    fitted = linear.LinearClassifier(weight, bias, torch.zeros(4), torch.ones(4), 0.1)
    classes, labels = torch.arange(9) % 3, torch.randint(0, 2, (9, 3), generator=generator)
    of_classes = of_labels = 0.0
    for n in range(9):
        scores = [float(features[n] @ weight[c] + bias[c]) for c in range(3)]
        whole = sum(math.exp(score) for score in scores)
        for c, score in enumerate(scores):
            of_classes += (math.exp(score) / whole - (int(classes[n]) == c)) ** 2 / 9
            of_labels += (1 / (1 + math.exp(-score)) - int(labels[n, c])) ** 2 / 27
    assert linear.minus_brier(fitted, features, classes) == pytest.approx(-of_classes, rel=1e-6)
    assert linear.minus_brier(fitted, features, labels) == pytest.approx(-of_labels, rel=1e-6)


def test_of_few_images_the_strength_is_not_chosen_by_luck() -> None:
    """By accuracy on one fifth, thirty images here, up to seven points were lost."""
    centres = np.random.default_rng(0).normal(size=(8, 60)) / 2
    lost = []
    for seed in range(12):
        rng = np.random.default_rng(seed)
        classes = rng.integers(0, 8, 4150)
        pixels = centres[classes] + rng.normal(size=(4150, 60))
        features, labels = torch.tensor(pixels, dtype=torch.float32), torch.tensor(classes)
        few, known, test, truth = features[:150], labels[:150], features[150:], labels[150:]
        shares = {
            l2: accuracy(fit_with_strength(few, known, 8, l2, None).predict(test), truth)
            for l2 in L2_STRENGTHS
        }
        lost.append(max(shares.values()) - shares[fit_linear(few, known, seed=seed).l2])
    assert np.mean(lost) < 0.015
    assert max(lost) < 0.03


def test_of_many_images_the_strength_has_the_best_held_out_accuracy_by_scikit_learn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(linear, "FEW", 0)
    for seed in range(4):
        features, labels = blobs(np.random.default_rng(seed), 80, dim=40)
        fitted = fit_linear(features.double(), labels)
        train, known, chosen, truth = held_out_parts(features.double(), labels)
        mean, spread = train.mean(dim=0), train.std(dim=0, correction=0)

        def share(l2: float, parts: Any = (train, known, chosen, truth, mean, spread)) -> float:
            train, known, chosen, truth, mean, spread = parts
            theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-6, max_iter=5000)
            theirs.fit(((train - mean) / spread).numpy(), known.numpy())
            found = theirs.score(((chosen - mean) / spread).numpy(), truth.numpy())
            return float(found)

        shares = {l2: share(l2) for l2 in L2_STRENGTHS}
        assert shares[fitted.l2] >= max(shares.values()) - 1 / len(truth) - 1e-9


def test_the_strength_for_rare_labels_does_not_say_no_always() -> None:
    """Of three labels that one in twelve images has, "no" is right eleven times in twelve."""
    rng = np.random.default_rng(3)
    targets = (rng.random((600, 3)) < 1 / 12).astype(np.float32)
    informative = targets @ rng.normal(size=(3, 20)) * 0.5
    features = torch.from_numpy(informative + rng.normal(size=(600, 20))).double()
    wanted = torch.from_numpy(targets)
    fitted = fit_multilabel(features, wanted)
    train, known, chosen, truth = held_out_parts(features, wanted)
    mean, spread = train.mean(dim=0), train.std(dim=0, correction=0)
    losses = {}
    for l2 in L2_STRENGTHS:
        sums = []
        for label in range(3):
            theirs = LogisticRegression(C=1 / (l2 * len(train)), tol=1e-8, max_iter=5000)
            theirs.fit(((train - mean) / spread).numpy(), known[:, label].numpy())
            chances = theirs.predict_proba(((chosen - mean) / spread).numpy())
            sums.append(log_loss(truth[:, label].numpy(), chances, labels=[0, 1]))
        losses[l2] = float(np.mean(sums))
    assert fitted.l2 == min(losses, key=losses.__getitem__)
    said = fitted.scores(chosen) > 0
    assert (said & (truth > 0)).sum() > 0.25 * truth.sum()


def test_a_constant_feature_does_no_harm() -> None:
    features = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    features[:, 2] = 7.0
    labels = (features[:, 0] > 0).long()
    assert accuracy(fit_linear(features, labels).predict(features), labels) > 0.9


def test_geometry_equals_the_loops(rng: np.random.Generator) -> None:
    vectors = rng.normal(size=(40, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    tensor = torch.from_numpy(vectors)
    assert uniformity(tensor) == pytest.approx(oracles.uniformity(vectors), rel=1e-10)
    assert effective_rank(tensor) == pytest.approx(oracles.effective_rank(vectors), rel=1e-6)
    shifted = np.roll(vectors, 1, axis=0)
    wanted = np.mean([((a - b) ** 2).sum() for a, b in zip(vectors, shifted, strict=True)])
    assert alignment(tensor, torch.from_numpy(shifted)) == pytest.approx(wanted)


def test_rank_counts_directions() -> None:
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(5, 64, generator=generator)
    features = torch.randn(4000, 5, generator=generator) @ torch.linalg.qr(basis.T)[0].T
    assert effective_rank(features) == pytest.approx(5, abs=0.05)
    assert effective_rank(torch.ones(10, 4)) == 1.0


def test_no_group_chooses_its_own_strength() -> None:
    """Copies on both sides make what only remembers look best: groups keep them together."""
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 80)
    features = rng.normal(size=(80, 120))
    features[:, 0] += 1.5 * labels
    many = torch.from_numpy(np.tile(features, (5, 1))).float()
    truth, groups = torch.from_numpy(np.tile(labels, 5)), np.tile(np.arange(80), 5)
    alone, together = fit_linear(many, truth), fit_linear(many, truth, groups=groups)
    assert together.l2 > alone.l2
    fresh, kinds = rng.normal(size=(4000, 120)), rng.integers(0, 2, 4000)
    fresh[:, 0] += 1.5 * kinds
    shares = [
        accuracy(one.predict(torch.from_numpy(fresh).float()), torch.from_numpy(kinds))
        for one in (alone, together)
    ]
    assert shares[1] > shares[0]
