"""Labels of neighbours: probabilities of walks, against a linear system."""

import numpy as np
import pytest

from diptych.embeddings.neighbours import Neighbours, nearest
from diptych.gallery.spread import spread, walks
from served_gallery import two_groups


def found(k: int = 6) -> Neighbours:
    features = two_groups()
    return nearest(features, features, k, exclude_own_row=True)


def codes_of(labelled: dict[int, int]) -> np.ndarray[tuple[int], np.dtype[np.int16]]:
    codes = np.full(len(two_groups()), -1, np.int16)
    for row, code in labelled.items():
        codes[row] = code
    return codes


def test_walks_solve_the_harmonic_equations() -> None:
    near, codes = found(), codes_of({0: 0, 2: 0, 1: 1, 7: 2})
    count = len(near.rows)
    weights = np.exp(near.similarities.astype(np.float64) / 0.07)
    weights /= weights.sum(axis=1, keepdims=True)
    steps = np.zeros((count, count))
    np.put_along_axis(steps, near.rows, 0.98 * weights, axis=1)
    own = np.zeros((count, 3))
    for row in np.flatnonzero(codes >= 0):
        steps[row] = 0
        own[row, codes[row]] = 1
    exact = np.linalg.solve(np.eye(count) - steps, own)
    # A walk that has not ended after 100 steps is counted as lost: 0.98^100 at most.
    np.testing.assert_allclose(walks(near, codes, 3), exact, atol=0.15)
    assert (walks(near, codes, 3) <= exact + 1e-5).all()


def test_each_group_gets_the_label_of_its_own() -> None:
    proposals = spread(found(), codes_of({0: 1, 1: 0}), 2, confidence=0.2)
    assert set(proposals.rows.tolist()).isdisjoint({0, 1})
    assert len(proposals.rows) > 40
    assert (proposals.codes == (proposals.rows + 1) % 2).mean() > 0.95
    assert (np.diff(proposals.confidences) <= 0).all()
    assert proposals.confidences.min() >= 0.2


def test_far_from_all_labels_nothing_is_proposed() -> None:
    proposals = spread(found(), codes_of({0: 0}), 1, confidence=0.2)
    assert len(proposals.rows)
    assert (proposals.rows % 2 == 0).mean() > 0.95


def test_one_class_alone() -> None:
    proposals = spread(found(), codes_of({0: 1, 1: 0}), 2, only=1, confidence=0.0)
    assert set(proposals.codes.tolist()) == {1}


@pytest.mark.parametrize("confidence", [0.0, 1.0])
def test_without_labels_there_are_no_proposals(confidence: float) -> None:
    assert not len(spread(found(), codes_of({}), 0 + 1, confidence=confidence).rows)
