"""Outliers and doubtful labels, each against plain loops in float64, and planted ones found."""

from pathlib import Path

import numpy as np
import pytest

from diptych.curation import mislabelled as module
from diptych.curation.mislabelled import find_mislabelled
from diptych.curation.outliers import find_outliers
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError, EmbeddingsError

CLASSES = ["cat", "dog", "owl"]


def clusters(count: int = 40, labels: list[str | None] | None = None) -> VectorSet:
    """Three classes, each around a direction of its own."""
    rng = np.random.default_rng(2)
    centres = 3 * np.eye(3, 8)
    features = np.concatenate([c + rng.normal(size=(count, 8)) * 0.4 for c in centres])
    given = labels or [CLASSES[row // count] for row in range(3 * count)]
    names = [f"{row}.png" for row in range(3 * count)]
    return VectorSet(Path("v.npy"), features.astype(np.float32), names, given)


def cosines(vectors: VectorSet) -> np.ndarray:
    unit = vectors.features.astype(np.float64)
    unit = unit / np.linalg.norm(unit, axis=1, keepdims=True)
    found = unit @ unit.T
    np.fill_diagonal(found, -np.inf)
    return found


def test_the_mean_distance_is_that_of_a_plain_loop() -> None:
    vectors = clusters()
    found = find_outliers(vectors, 5)
    wanted = [1 - np.sort(row)[::-1][:5].mean() for row in cosines(vectors)]
    np.testing.assert_allclose(found.distances, wanted, atol=1e-6)
    assert found.rows[0] == np.argmax(wanted)


def test_a_strange_image_comes_first_though_it_has_a_copy() -> None:
    vectors = clusters()
    vectors.features[:2] = [0, 0, 0, 0, -5, 0, 0, 0]
    found = find_outliers(vectors)
    assert set(found.rows[:2].tolist()) == {0, 1}
    assert found.far >= 2


def test_images_that_are_all_alike_have_no_outlier() -> None:
    alike = VectorSet(Path("v.npy"), np.ones((20, 4), np.float32), [str(i) for i in range(20)])
    assert find_outliers(alike).far == 0


def votes_by_loop(vectors: VectorSet, k: int) -> np.ndarray:
    numbers, classes = vectors.classes()
    found = np.zeros((len(vectors), len(classes)))
    for row, near in enumerate(cosines(vectors)):
        for other in np.argsort(-near)[:k]:
            found[row, numbers[other]] += np.exp(near[other] / 0.07)
    return found / found.sum(axis=1, keepdims=True)


def test_suspicion_follows_confident_learning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 17)
    given: list[str | None] = [CLASSES[row // 40] for row in range(120)]
    for row in range(0, 120, 15):
        given[row] = CLASSES[(row // 40 + 1) % 3]
    vectors = clusters(labels=given)
    found = find_mislabelled(vectors, 9)
    numbers, _ = vectors.classes()
    votes = votes_by_loop(vectors, 9)
    usual = [votes[numbers == label, label].mean() for label in range(3)]
    wanted = set()
    for row in range(120):
        others = {label: votes[row, label] for label in range(3) if label != numbers[row]}
        best = max(others, key=lambda label: others[label])
        if others[best] > votes[row, numbers[row]] and others[best] >= usual[best]:
            wanted.add(row)
    suspected = found.rows[: found.suspected].tolist()
    assert set(suspected) == wanted
    assert len(wanted & set(range(0, 120, 15))) >= 7  # of 8 that were planted
    own = votes[found.rows, numbers[found.rows]]
    np.testing.assert_allclose(found.own, own, atol=1e-4)
    doubt = (found.other - found.own)[: found.suspected]
    assert (np.diff(doubt) <= 0).all()


def test_images_without_a_label_neither_vote_nor_are_judged() -> None:
    given: list[str | None] = [CLASSES[row // 40] if row % 2 else None for row in range(120)]
    found = find_mislabelled(clusters(labels=given), 5)
    assert sorted(found.rows.tolist()) == list(range(1, 120, 2))


def test_what_cannot_be_judged_is_refused() -> None:
    with pytest.raises(ConfigError, match="one class"):
        find_mislabelled(clusters(labels=["cat"] * 120))
    with pytest.raises(EmbeddingsError, match="no labels"):
        find_mislabelled(clusters(labels=[None] * 120))
    with pytest.raises(ConfigError, match="--neighbours"):
        find_outliers(clusters(), 0)
