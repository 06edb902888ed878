"""kNN, linear classifier and geometry against scikit-learn, SciPy and plain loops."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

import oracles
from diptych.evaluation import knn
from diptych.evaluation.geometry import alignment, effective_rank, uniformity
from diptych.evaluation.knn import accuracy, knn_predict, nearest
from diptych.evaluation.linear import fit_linear, fit_with_strength


def blobs(rng: np.random.Generator, count: int, dim: int = 12, classes: int = 5) -> Any:
    centres = np.random.default_rng(1).normal(size=(classes, dim))
    labels = rng.integers(0, classes, count)
    features = centres[labels] + rng.normal(0, 0.9, (count, dim))
    return torch.from_numpy(features).float(), torch.from_numpy(labels)


def in_tiles(monkeypatch: pytest.MonkeyPatch, queries: int, images: int) -> None:
    monkeypatch.setattr(knn, "_TILE_QUERIES", queries)
    monkeypatch.setattr(knn, "_TILE_IMAGES", images)


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


def test_more_neighbours_than_images_are_all_images() -> None:
    found, rows = nearest(torch.randn(2, 3), torch.randn(4, 3), 20)
    assert found.shape == rows.shape == (2, 4)


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


def test_the_strength_is_chosen_by_held_out_images(rng: np.random.Generator) -> None:
    noise = torch.randn(120, 400, generator=torch.Generator().manual_seed(0))
    noise[:, 0] += torch.arange(120) % 2 * 2.0
    labels = torch.arange(120) % 2
    assert fit_linear(noise, labels).l2 >= 0.01  # many useless dimensions: a strong pull
    train, classes = blobs(rng, 800)
    test, truth = blobs(rng, 400)
    assert accuracy(fit_linear(train, classes).predict(test), truth) > 0.8


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
