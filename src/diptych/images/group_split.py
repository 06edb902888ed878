"""A part of a set held out: whole groups, of each class its share, always the same ones."""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

FIFTH: Final = 0.2
"""Held out where nothing else is said."""


class GroupSplit(NamedTuple):
    """A set in two sides.

    Attributes:
        kept: indices, ascending.
        held_out: the other indices, ascending.
        alone: classes that are on the kept side only, as they have too few groups for both.
    """

    kept: NDArray[np.int64]
    held_out: NDArray[np.int64]
    alone: NDArray[np.int64]


def stratified_group_split(
    labels: NDArray[np.generic],
    groups: NDArray[np.int64] | None = None,
    *,
    identities: NDArray[np.uint64] | None = None,
    share: float = FIFTH,
    seed: int = 0,
) -> GroupSplit:
    """Cuts a set in two: no group on both sides, and every class on both as far as groups allow.

    Which groups are held out is decided by what they are, not by where they stand: another order of
    the images gives the same two sides, if ``identities`` tell images apart.

    Args:
        labels: (images,), classes from 0; or (images, labels) of 0 and 1, where an image may have
            several.
        groups: (images,), numbers; each image is its own group when not given.
        identities: (images,), the same number wherever an image stands; its place when not given.
        share: of the images of each class to hold out, as near as whole groups come to it; one
            group at least, and one at least is kept.
        seed: another one holds out others.
    """
    count = len(labels)
    units = np.arange(count) if groups is None else np.unique(groups, return_inverse=True)[1]
    units = units.reshape(-1)
    drawn = _mixed(np.arange(count) if identities is None else identities, seed)
    first = np.full(units.max(initial=-1) + 1, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(first, units, drawn)
    order = np.argsort(first, kind="stable")
    rows, classes = _memberships(labels)
    held = _chosen(units[rows], classes, order, share)[units]
    present = np.unique(classes)
    alone = np.setdiff1d(present, classes[held[rows]])
    return GroupSplit(np.flatnonzero(~held), np.flatnonzero(held), alone.astype(np.int64))


def join_groups(first: NDArray[np.int64], second: NDArray[np.int64]) -> NDArray[np.int64]:
    """Groups of images that either numbering puts together, directly or by others between them.

    >>> join_groups(np.array([0, 0, 1, 2, 3]), np.array([5, 6, 6, 7, 7])).tolist()
    [0, 0, 0, 3, 3]
    """
    joined = np.arange(len(first), dtype=np.int64)
    while True:
        before = joined
        for numbers in (first, second):
            _, places = np.unique(numbers, return_inverse=True)
            least = np.full(len(joined), len(joined), dtype=np.int64)
            np.minimum.at(least, places.reshape(-1), joined)
            joined = least[places.reshape(-1)]
        if np.array_equal(before, joined):
            return joined


def _memberships(labels: NDArray[np.generic]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of images and their classes; of several labels, one more that all images have."""
    if labels.ndim == 1:
        return np.arange(len(labels)), labels.astype(np.int64)
    rows, classes = np.nonzero(np.column_stack([labels, np.ones(len(labels))]))
    return rows, classes


def _chosen(
    units: NDArray[np.int64], classes: NDArray[np.int64], order: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """Whether each unit is held out; units and classes are those of memberships."""
    if len(units) == len(order):  # one of each: the usual case, and the fast one
        return _first_of_each(units, classes, order, share)
    sides = _Sides(units, classes, len(order), share)
    by_class: dict[int, list[int]] = {}
    for unit in order.tolist():
        for name, _ in sides.members[unit]:
            by_class.setdefault(name, []).append(unit)
    # The rarest first, as they have the least choice.
    for name, among in sorted(by_class.items(), key=lambda item: (len(item[1]), item[0])):
        if not sides.held[name]:
            able = [unit for unit in among if sides.may_leave(unit)]
            if able:
                sides.hold_out(max(able, key=sides.gain))
    for unit in order.tolist():
        if not sides.is_held[unit] and sides.may_leave(unit) and sides.gain(unit) > 0:
            sides.hold_out(unit)
    return np.array(sides.is_held, dtype=np.bool_)


def _first_of_each(
    units: NDArray[np.int64], classes: NDArray[np.int64], order: NDArray[np.int64], share: float
) -> NDArray[np.bool_]:
    """The first of each class in the order drawn, its share of them."""
    class_of = np.empty(len(order), dtype=np.int64)
    class_of[units] = classes
    sorted_units = order[np.argsort(class_of[order], kind="stable")]
    sizes = np.bincount(classes)
    wanted = np.clip(np.floor(share * sizes + 0.5), 1, np.maximum(sizes - 1, 0))
    sorted_classes = class_of[sorted_units]
    place = np.arange(len(order)) - (np.cumsum(sizes) - sizes)[sorted_classes]
    held = np.zeros(len(order), dtype=np.bool_)
    held[sorted_units] = place < wanted[sorted_classes]
    return held


class _Sides:
    """Which groups are held out, and how many images of each class that makes.

    Attributes:
        members: of each group, its classes with the number of its images of each.
        is_held: of each group.
        kept: of each class, groups that are kept.
        held: of each class, images that are held out.
        wanted: of each class, images to hold out.
    """

    def __init__(
        self, units: NDArray[np.int64], classes: NDArray[np.int64], count: int, share: float
    ) -> None:
        width = int(classes.max(initial=0)) + 1
        pairs, sizes = np.unique(units * width + classes, return_counts=True)
        self.members: list[list[tuple[int, int]]] = [[] for _ in range(count)]
        for pair, size in zip(pairs.tolist(), sizes.tolist(), strict=True):
            self.members[pair // width].append((pair % width, size))
        self.is_held = [False] * count
        self.kept: list[int] = np.bincount(pairs % width, minlength=width).tolist()
        self.held = [0] * width
        self.wanted: Sequence[float] = (share * np.bincount(classes, minlength=width)).tolist()

    def may_leave(self, unit: int) -> bool:
        """Whether every class of the group stays on the kept side without it."""
        return all(self.kept[name] > 1 for name, _ in self.members[unit])

    def gain(self, unit: int) -> float:
        """By how many images the classes come closer to their shares if it is held out."""
        return sum(
            abs(self.held[name] - self.wanted[name])
            - abs(self.held[name] + size - self.wanted[name])
            for name, size in self.members[unit]
        )

    def hold_out(self, unit: int) -> None:
        self.is_held[unit] = True
        for name, size in self.members[unit]:
            self.kept[name] -= 1
            self.held[name] += size


def _mixed(numbers: NDArray[np.generic], seed: int) -> NDArray[np.uint64]:
    """Numbers that say nothing of those they come from: two rounds of SplitMix64's last step."""
    found = numbers.astype(np.uint64)
    for salt in (2 * seed + 1, 2 * seed + 2):
        found = found + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found = found ^ (found >> np.uint64(31))
    return found
