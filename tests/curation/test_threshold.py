"""The threshold of copies: nothing where there are none, and all where there are."""

import math

import numpy as np
import pytest

from diptych.curation.threshold import NEIGHBOURS, SAME, fit_threshold, given_threshold
from diptych.embeddings.neighbours import nearest


def points(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """Directions that are even on a sphere of dim - 1 dimensions."""
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def distances(vectors: np.ndarray) -> np.ndarray:
    found = nearest(vectors, vectors, NEIGHBOURS, exclude_own_row=True)
    return np.maximum(1 - found.similarities, 0)


@pytest.mark.parametrize("dim", [4, 9])
def test_the_dimension_is_that_of_the_points(dim: int) -> None:
    """A cosine distance is half a squared one, so its dimension is half as large."""
    found = fit_threshold(distances(points(4000, dim)))
    assert found.dimension == pytest.approx((dim - 1) / 2, rel=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_without_copies_hardly_anything_is_found(seed: int) -> None:
    found = fit_threshold(distances(points(1000, 12, seed)))
    assert found.nearer <= 4
    assert found.distance < 0.7 * found.median


@pytest.mark.parametrize("share", [0.02, 0.3, 1.0])
def test_copies_are_found_and_the_expected_number_is_right(share: float) -> None:
    originals = points(1000, 12)
    count = int(share * len(originals))
    copies = originals[:count] + 0.05 * points(count, 12, seed=1)
    found = fit_threshold(distances(np.concatenate([originals, copies])))
    between = 1 - (originals[:count] * copies).sum(1) / (
        np.linalg.norm(originals[:count], axis=1) * np.linalg.norm(copies, axis=1)
    )
    assert (between <= found.distance + 1e-6).mean() > 0.98
    wrong = (distances(originals)[:, 0] <= found.distance).sum()
    assert wrong <= 0.05 * found.nearer + 2
    assert found.expected == pytest.approx(wrong, abs=0.05 * found.nearer)


def test_many_copies_of_one_image_are_found() -> None:
    originals = points(600, 12)
    copies = originals[:1] + 0.05 * points(100, 12, seed=1)
    found = fit_threshold(distances(np.concatenate([originals, copies])))
    assert found.nearer >= 100


def test_the_expected_number_follows_the_formula() -> None:
    """Counted again in plain loops."""
    originals = points(300, 8)
    near = distances(np.concatenate([originals, originals[:40] + 0.02 * points(40, 8, seed=2)]))
    found = fit_threshold(near)
    assert found.dimension is not None
    half = 0.25 * float(np.median(near[:, -1]))
    expected = 0.0
    for row in near.tolist():
        share = min(1.0, found.distance / max(row[-1], half)) ** found.dimension
        expected += 1 - math.pow(1 - share, NEIGHBOURS - 1)
    assert found.expected == pytest.approx(expected, rel=1e-4)
    assert found.nearer == sum(row[0] <= found.distance for row in near.tolist())
    assert f"within {found.distance:.4f} for {found.expected:.1f} images" in found.sentences()[1]


def test_few_images_have_no_threshold_of_their_own() -> None:
    found = fit_threshold(distances(points(30, 4)))
    assert found.distance == SAME
    assert "from 50 images on" in found.sentences()[1]


def test_a_given_threshold_says_so() -> None:
    found = given_threshold(np.array([0.0, 0.1, 0.3]), 0.2)
    assert (found.same, found.nearer) == (1, 2)
    assert found.sentences()[1] == "The threshold was given."
