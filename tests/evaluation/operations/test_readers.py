"""The classifier against a refit without each image, and patches against what they must not see."""

import numpy as np
import pytest
import torch

from diptych.evaluation.operations import readers
from diptych.evaluation.operations.readers import Patches, balanced_accuracy, fit_ridge


def plain_ridge(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, mean: np.ndarray, ridge: float
) -> np.ndarray:
    """The normal equations, in float64; without bias, about a mean and base that are given."""
    base = weights @ np.eye(labels.max() + 1)[labels] / weights.sum()
    rows, wanted = features - mean, np.eye(labels.max() + 1)[labels] - base
    gram = rows.T @ (weights[:, None] * rows) + ridge * np.eye(rows.shape[1])
    return np.linalg.solve(gram, rows.T @ (weights[:, None] * wanted))


def with_intercept(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, ridge: float
) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercept at once, of which only the weights have a penalty."""
    rows = np.hstack([features, np.ones((len(features), 1))])
    penalty = ridge * np.diag([1.0] * features.shape[1] + [0.0])
    gram = rows.T @ (weights[:, None] * rows) + penalty
    found = np.linalg.solve(gram, rows.T @ (weights[:, None] * np.eye(3)[labels]))
    return found[:-1], found[-1]


def test_the_best_strength_by_leaving_out_each_image_in_turn() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [20, 8, 4])
    features = rng.normal(size=(32, 6)) + 0.9 * np.eye(6)[labels]
    counts = np.bincount(labels)
    weights = (len(labels) / (3 * counts))[labels]
    mean = weights @ features / weights.sum()
    total = (weights[:, None] * (features - mean) ** 2).sum() / len(labels)
    scores, solutions = [], []
    for power in range(-5, 3):
        right = np.zeros(3)
        for left_out in range(32):
            kept = np.arange(32) != left_out
            weight, base = with_intercept(
                features[kept], labels[kept], weights[kept], 10.0**power * total
            )
            answer = (features[left_out] @ weight + base).argmax()
            right[labels[left_out]] += answer == labels[left_out]
        scores.append((right / counts).mean())
        solutions.append(plain_ridge(features, labels, weights, mean, 10.0**power * total))
    found = fit_ridge(torch.from_numpy(features).float(), torch.from_numpy(labels))
    best = int(np.argmax(scores))
    assert abs(found.score - scores[best]) < 1e-9
    np.testing.assert_allclose(found.weight.numpy(), solutions[best], atol=1e-5)


def test_the_best_strength_by_leaving_out_each_video_in_turn() -> None:
    rng = np.random.default_rng(4)
    labels, videos = np.repeat([0, 1, 2], [21, 12, 9]), rng.permutation(14).repeat(3)
    videos[5], videos[6] = 50, videos[40]  # one image alone; one in a video of another class
    features = rng.normal(size=(42, 6)) + 1.2 * np.eye(6)[labels]
    features += 1.5 * rng.normal(size=(51, 6))[videos]
    counts = np.bincount(labels)
    weights = (len(labels) / (3 * counts))[labels]
    mean = weights @ features / weights.sum()
    total = (weights[:, None] * (features - mean) ** 2).sum() / len(labels)
    scores = []
    for power in range(-5, 3):
        right = np.zeros(3)
        for video in np.unique(videos):
            kept = videos != video
            weight, base = with_intercept(
                features[kept], labels[kept], weights[kept], 10.0**power * total
            )
            answers = (features[~kept] @ weight + base).argmax(axis=1)
            right += np.bincount(labels[~kept], answers == labels[~kept], minlength=3)
        scores.append((right / counts).mean())
    of_labels = torch.from_numpy(features).float(), torch.from_numpy(labels)
    found = fit_ridge(*of_labels, units=videos)
    assert abs(found.score - max(scores)) < 1e-9
    best = 10.0 ** (int(np.argmax(scores)) - 5) * total
    wanted = plain_ridge(features, labels, weights, mean, best)
    np.testing.assert_allclose(found.weight.numpy(), wanted, atol=1e-5)
    assert max(scores) < fit_ridge(*of_labels).score - 0.05  # with the rest of its video


def test_units_of_one_image_each_change_nothing() -> None:
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(60, 80, generator=generator), torch.arange(60) % 3
    plain = fit_ridge(features, labels)
    for units in (np.random.default_rng(0).permutation(60), np.zeros(60, dtype=np.int64)):
        found = fit_ridge(features, labels, units=units)
        assert torch.equal(found.weight, plain.weight)
        assert found.score == plain.score


def test_many_units_are_left_out_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(3)
    features, labels = torch.randn(60, 20, generator=generator), torch.arange(60) % 3
    units = np.repeat(np.arange(25), [2] * 15 + [3] * 10)
    whole = fit_ridge(features, labels, units=units)
    monkeypatch.setattr(readers, "_LEFT_OUT", 7)
    assert fit_ridge(features, labels, units=units).score == whole.score


def test_more_dimensions_than_images_give_the_same_as_the_normal_equations() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(20) % 2
    features = rng.normal(size=(20, 50)) + labels[:, None]
    found = fit_ridge(torch.from_numpy(features).float(), torch.from_numpy(labels))
    mean = features.mean(axis=0)
    total = ((features - mean) ** 2).sum() / 20
    all_of_them = [
        plain_ridge(features, labels, np.ones(20), mean, 10.0**power * total)
        for power in range(-5, 3)
    ]
    nearest = min(np.abs(found.weight.numpy() - one).max() for one in all_of_them)
    assert nearest < 1e-5


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    predicted, labels = torch.tensor([0, 0, 0, 0]), torch.tensor([0, 0, 0, 1])
    assert balanced_accuracy(predicted, labels) == 0.5


def test_patches_do_not_tell_where_a_thing_is() -> None:
    generator = torch.Generator().manual_seed(0)
    filters = Patches.of(torch.randn(50, 3, 24, 24, generator=generator))
    blank = torch.zeros(2, 3, 32, 32)
    blank[0, :, 8:12, 8:12] = 1.0
    blank[1, :, 16:20, 14:18] = 1.0  # moved by whole strides
    found = filters.read(blank)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)
    assert float((found[0] - filters.read(torch.zeros(1, 3, 32, 32))[0]).abs().max()) > 0.01


def test_noise_in_more_dimensions_than_images_is_not_learned_by_heart() -> None:
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(60, 300, generator=generator)
    assert fit_ridge(features, torch.arange(60) % 2).score < 0.75
