"""Laws of a split: whole groups, every class on both sides, the same whatever the order."""

import time

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.images.groups import among, join_groups, number_contents, stratified_group_split


def drawn(seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint64], float]:
    """Labels, groups that may hold several classes, identities and a share."""
    rng = np.random.default_rng(seed)
    count, classes = int(rng.integers(1, 60)), int(rng.integers(1, 7))
    groups = rng.integers(0, rng.integers(1, count + 1), count)
    labels = rng.integers(0, classes, count)
    if seed % 2:  # each group of one class
        labels = rng.integers(0, classes, count)[groups]
    identities = rng.integers(0, 2**64, count, dtype=np.uint64)
    return labels, groups, identities, float(rng.choice([0.1, 0.2, 1 / 3, 0.5]))


@pytest.mark.parametrize("seed", range(300))
def test_laws_of_a_split(seed: int) -> None:
    labels, groups, identities, share = drawn(seed)
    kept, held_out, alone = stratified_group_split(
        labels, groups, identities=identities, share=share
    )
    assert sorted([*kept, *held_out]) == list(range(len(labels)))
    assert not set(groups[kept]) & set(groups[held_out])
    assert set(labels[kept]) == set(labels)  # no class is measured that was not fitted on
    assert set(alone) == set(labels) - set(labels[held_out])
    for name in set(labels):
        own = set(groups[labels == name])
        pure = [group for group in own if len(set(labels[groups == group])) == 1]
        if len(pure) == len(own) > 1:
            assert name in labels[held_out]
        if len(own) == 1:
            assert name in alone
    order = np.random.default_rng(seed).permutation(len(labels))
    renumbered = (groups.max() - groups)[order]
    again = stratified_group_split(
        labels[order], renumbered, identities=identities[order], share=share
    )
    assert set(order[again.held_out]) == set(held_out)


@pytest.mark.parametrize("seed", range(40))
def test_without_groups_each_class_gives_its_share(seed: int) -> None:
    labels, _, _, share = drawn(seed)
    _, held_out, _ = stratified_group_split(labels, share=share)
    for name, size in zip(*np.unique(labels, return_counts=True), strict=True):
        held = (labels[held_out] == name).sum()
        assert held == 0 if size == 1 else 1 <= held <= size - 1
        assert held == min(size - 1, max(1, int(share * size + 0.5)))
    _, as_groups, _ = stratified_group_split(labels, np.arange(len(labels)), share=share)
    assert as_groups.tolist() == held_out.tolist()


def test_groups_come_as_near_to_the_share_as_they_allow() -> None:
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(200), rng.integers(1, 12, 200))
    labels = rng.integers(0, 5, 200)[groups]
    _, held_out, _ = stratified_group_split(labels, groups)
    for name in range(5):
        assert 0.17 < (labels[held_out] == name).sum() / (labels == name).sum() < 0.23
    # A group of half of a class stays where it fits.
    giant = np.array([0] * 50 + list(range(1, 51)))
    _, held_out, _ = stratified_group_split(np.zeros(100, dtype=np.int64), giant)
    assert len(held_out) == 20
    assert 0 not in giant[held_out]


def test_another_seed_holds_out_others() -> None:
    labels = np.arange(100) % 4
    first, second = (set(stratified_group_split(labels, seed=seed).held_out) for seed in (0, 1))
    assert len(first & second) < 12  # by chance 4 of 20
    assert first == set(stratified_group_split(labels, seed=0).held_out)


def test_each_of_several_labels_is_on_both_sides() -> None:
    rng = np.random.default_rng(3)
    targets = (rng.random((90, 6)) < 0.08).astype(np.float32)
    assert targets.sum(axis=0).tolist() == [4, 1, 8, 8, 15, 8]
    kept, held_out, alone = stratified_group_split(targets)
    assert len(held_out) == 18
    assert alone.tolist() == [1]
    assert (targets[held_out].sum(axis=0) > 0).tolist() == [True, False, True, True, True, True]
    assert (targets[kept].sum(axis=0) > 0).all()


def test_what_belongs_together_by_either_is_joined() -> None:
    rng = np.random.default_rng(4)
    for _ in range(50):
        first, second = rng.integers(0, 15, (2, 20))
        joined, todo = join_groups(first, second), set(range(20))
        while todo:  # by walking from image to image
            found, reached = {min(todo)}, {min(todo)}
            while found:
                one = found.pop()
                near = {j for j in range(20) if first[j] == first[one] or second[j] == second[one]}
                found |= near - reached
                reached |= near
            assert len(set(joined[list(reached)])) == 1
            todo -= reached
        assert len(set(joined)) <= min(len(set(first)), len(set(second)))


def test_contents_are_told_apart_by_all_of_their_bits() -> None:
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 4, (300, 2), dtype=np.uint64) << np.uint64(62)
    numbers = number_contents(rows)
    for i in range(0, 300, 7):
        assert (numbers == numbers[i]).tolist() == (rows == rows[i]).all(axis=1).tolist()
    found = among(rows[:50], rows[280:])
    assert found is not None
    assert found.tolist() == [row.tolist() in rows[280:].tolist() for row in rows[:50]]
    assert among(rows, None) is None


@pytest.mark.slow
def test_a_million_images_take_seconds() -> None:
    rng = np.random.default_rng(6)
    labels, groups = rng.integers(0, 1000, 1_000_000), rng.integers(0, 300_000, 1_000_000)
    begun = time.monotonic()
    stratified_group_split(labels)
    alone = time.monotonic() - begun
    stratified_group_split(labels, groups)
    assert alone < 5
    assert time.monotonic() - begun < 60
