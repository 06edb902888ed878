"""Groups of copies: the two promises on what is kept, exact copies, and overlap of two sets."""

from pathlib import Path

import numpy as np
import pytest

from diptych.curation import copies as module
from diptych.curation.copies import find_copies, find_overlap
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError, EmbeddingsError

RNG = np.random.default_rng(5)


def vectors(
    features: np.ndarray,
    checksums: list[bytes] | None = None,
    labels: list[str | None] | None = None,
) -> VectorSet:
    names = [f"{row}.png" for row in range(len(features))]
    return VectorSet(Path("v.npy"), features.astype(np.float32), names, labels, checksums)


def at_angles(degrees: list[float]) -> np.ndarray:
    turned = np.radians(degrees)
    return np.stack([np.cos(turned), np.sin(turned)], axis=1)


def cosine_distance(degrees: float) -> float:
    return float(1 - np.cos(np.radians(degrees)))


@pytest.mark.parametrize("most", [0.01, 0.1, 0.3])
def test_kept_images_are_apart_and_each_copy_is_near_its_own(
    most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_ROWS", 7)
    features = RNG.normal(size=(200, 3))
    found = find_copies(vectors(features), most)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    apart = 1 - unit @ unit.T
    kept = np.unique(found.kept)
    np.testing.assert_array_equal(found.kept[kept], kept)
    between = apart[np.ix_(kept, kept)] + 9 * np.eye(len(kept))
    assert between.min() > most - 1e-6
    own = apart[np.arange(200), found.kept]
    assert own.max() <= most + 1e-6
    np.testing.assert_allclose(found.distances, own, atol=1e-6)
    listed = np.sort(np.concatenate(found.groups()))
    np.testing.assert_array_equal(np.unique(listed), listed)


def test_a_chain_is_not_one_group() -> None:
    """Each is near the next, but the last is far from the first."""
    found = find_copies(vectors(at_angles([0, 5, 10, 15])), cosine_distance(6))
    assert found.kept.tolist() == [0, 0, 2, 2]


def test_the_preferred_image_is_kept_and_asked_for_only_where_there_are_copies() -> None:
    asked = list[int]()

    def prefer(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.array([1.0, 5.0, 3.0, 9.0])

    found = find_copies(vectors(at_angles([0, 1, 2, 90])), cosine_distance(3), prefer=prefer)
    assert found.kept.tolist() == [1, 1, 1, 3]
    assert asked == [0, 1, 2]
    assert found.groups()[0].tolist()[0] == 1


def test_equal_bytes_are_exact_copies_whatever_their_vectors() -> None:
    sums = [b"a", b"b", b"a", b"c"]
    found = find_copies(vectors(at_angles([0, 30, 60, 30]), sums), 0.0)
    assert found.kept.tolist() == [0, 1, 0, 1]
    assert found.exact.tolist() == [True] * 4  # 1 and 3 have the same vector


def test_labels_that_differ_within_a_group_are_counted() -> None:
    data = vectors(at_angles([0, 1, 90, 91]), labels=["cat", "dog", "cat", None])
    assert find_copies(data, cosine_distance(2)).conflicts(data) == 1


def test_one_image_has_no_copies() -> None:
    found = find_copies(vectors(at_angles([0])))
    assert found.groups() == []


@pytest.mark.parametrize("threshold", [-0.1, 2.5, float("nan")])
def test_a_threshold_that_is_no_distance_is_refused(threshold: float) -> None:
    with pytest.raises(ConfigError, match="cosine distance"):
        find_copies(vectors(at_angles([0, 1])), threshold)


def test_a_threshold_at_which_nearly_all_are_near_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_PAIRS", 1000)
    with pytest.raises(ConfigError, match="Give a smaller --threshold"):
        find_copies(vectors(RNG.normal(size=(60, 3))), 2.0)


def test_overlap_finds_the_nearest_and_equal_bytes_first() -> None:
    learned = vectors(at_angles([0, 40, 80]), [b"a", b"b", b"c"])
    tested = vectors(at_angles([41, 79.5, 10]), [b"x", b"y", b"c"])
    found = find_overlap(learned, tested, cosine_distance(2))
    assert found.rows.tolist() == [1, 2, 2]  # the last by its bytes
    assert found.exact.tolist() == [False, False, True]
    assert found.copies().tolist() == [2, 1, 0]


def test_vectors_of_other_lengths_have_no_overlap() -> None:
    with pytest.raises(EmbeddingsError, match="same encoder"):
        find_overlap(vectors(np.ones((3, 2))), vectors(np.ones((3, 4))))
