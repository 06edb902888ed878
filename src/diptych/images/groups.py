"""Images that show the same thing: found by folder, file name or table; partners; splits by group.

Two views of one image are one way to say "the same"; two images of one product, patient or burst
are another. The pretext task is a part of the data, not of the network. For evaluation a split
keeps every group on one side.
"""

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError
from diptych.images.frame_times import times_of
from diptych.images.label_tables import WHAT_A_NAME_IS, read_column

PARTNER_STREAM: Final = 0x50415254  # "PART": keeps these draws apart from any other use of the seed
_FORMS: Final = "'folder', 'folder:LEVEL', 'name:PATTERN' or 'FILE.csv:COLUMN'"


@dataclass(frozen=True)
class Groups:
    """Which images of a set belong together.

    Attributes:
        numbers: (images,), int64, the group of each, counted from 0.
        order: (images,), all images, group after group.
        starts: (groups + 1,), where each group begins in ``order``, and the end.
        first: (images,), where those that may be an image's partners begin in ``order``.
        counts: (images,), how many these are, the image itself among them.
    """

    numbers: NDArray[np.int64]
    order: NDArray[np.int64]
    starts: NDArray[np.int64]
    first: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def of(cls, numbers: NDArray[np.int64]) -> "Groups":
        """Groups by the number of each image, (images,)."""
        order = np.argsort(numbers, kind="stable").astype(np.int64)
        starts = np.searchsorted(numbers[order], np.arange(numbers.max() + 2)).astype(np.int64)
        return cls(numbers, order, starts, starts[numbers], np.diff(starts)[numbers])

    def near(self, times: NDArray[np.float64], within: float) -> "Groups":
        """The same groups, whose partners are at most so far from each other in time, (images,)."""
        order = np.lexsort((times, self.numbers)).astype(np.int64)
        first, counts = self.first.copy(), self.counts.copy()
        reach = within * (1 + 1e-9)  # times of frames are rounded
        for start, end in pairwise(self.starts):
            members = order[start:end]
            low = np.searchsorted(times[members], times[members] - reach)
            high = np.searchsorted(times[members], times[members] + reach, side="right")
            first[members], counts[members] = start + low, high - low
        return Groups(self.numbers, order, self.starts, first, counts)

    @cached_property
    def places(self) -> NDArray[np.int64]:
        """(images,), where each image stands in ``order``."""
        found = np.empty_like(self.order)
        found[self.order] = np.arange(len(self.order))
        return found

    def __len__(self) -> int:
        return len(self.starts) - 1

    def fingerprint(self) -> str:
        """A hash of who belongs together, to notice that a run resumes with other groups."""
        belonging = [self.numbers]
        if not np.array_equal(self.counts, np.diff(self.starts)[self.numbers]):
            belonging += [self.order, self.first, self.counts]
        return hashlib.sha256(b"".join(one.tobytes() for one in belonging)).hexdigest()

    def partners(
        self, indices: NDArray[np.int64], *, seed: int, epoch: int, views: int
    ) -> NDArray[np.int64]:
        """Which image each view of each row shows: a function of seed, epoch, image and view.

        Args:
            indices: (batch,), the images of a batch.
            seed: of the run.
            epoch: counted from 0.
            views: of each row, 2 or more.

        Returns:
            (views, batch): first the images themselves, then others of their groups, every one
            that is near enough equally likely; the image itself where there is none.
        """
        starts, sizes = self.first[indices], self.counts[indices]
        shown = [indices]
        for view in range(1, views):
            uniform = _uniforms(len(self.numbers), seed, epoch, view)[indices]
            # 1 .. size - 1 places on, around the end: never itself, all others equally likely.
            steps = np.where(sizes > 1, 1 + np.floor(uniform * (sizes - 1)), 0).astype(np.int64)
            shown.append(self.order[starts + (self.places[indices] - starts + steps) % sizes])
        return np.stack(shown)


def groups_of(names: Sequence[str], config: ImagesConfig) -> Groups | None:
    """The groups that a run learns from; None where each image is a group of its own.

    Args:
        names: of the images.
        config: says by what they are found, and how near in time partners are.

    Raises:
        ConfigError: the images have no such groups, or no times.
    """
    if config.group_by is None:
        return None
    groups = find_groups(names, config.group_by)
    if config.group_within is None:
        return groups
    found = groups.near(times_of(names, config.video_seconds), config.group_within)
    if not (found.counts > 1).any():
        raise ConfigError(
            f"images.group_within = {config.group_within:g}: no image has another of its group so "
            "near. Frames of videos are images.video_seconds apart, others by the numbers in their "
            "names; wanted more than the least of these distances."
        )
    return found


def find_groups(names: Sequence[str], group_by: str) -> Groups:
    """Finds which images belong together.

    Args:
        names: of the images, as paths relative to their folder.
        group_by: ``folder``, ``folder:LEVEL`` (counted from 1), ``name:PATTERN`` (the first
            parenthesis of a regular expression, searched in the whole name) or
            ``FILE.csv:COLUMN`` (a table with a column ``name``). An image whose cell is blank, or
            for which the parenthesis finds nothing, is a group of its own.

    Raises:
        ConfigError: the form is not known, an image has no group by it, or all have the same.
    """
    kind, _, detail = group_by.partition(":")
    if kind == "folder":
        keys = [_folder(name, detail) for name in names]
    elif kind == "name" and detail:
        keys = _matches(names, detail)
    elif group_by.rpartition(":")[0].lower().endswith(".csv"):
        path, _, column = group_by.rpartition(":")
        keys = _from_table(names, Path(path).expanduser(), column)
    else:
        raise ConfigError(f"images.group_by must be {_FORMS}; got {group_by!r}.")
    numbers: dict[str, int] = {}
    # An image without a key gets a key of its own, made from its place: it shares no group.
    own = (key or f"\0{place}" for place, key in enumerate(keys))
    found = np.array([numbers.setdefault(key, len(numbers)) for key in own], dtype=np.int64)
    if len(numbers) < 2:
        raise ConfigError(
            f"images.group_by = {group_by!r} puts all {len(names)} images into one group, which "
            "leaves no negatives; wanted two groups or more."
        )
    return Groups.of(found)


@lru_cache(maxsize=16)
def _uniforms(count: int, seed: int, epoch: int, view: int) -> NDArray[np.float64]:
    # For all images of the set: an image's draw must not depend on the batch that it is in.
    key = np.array([seed, PARTNER_STREAM], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, view, epoch], dtype=np.uint64))
    return np.random.Generator(bits).random(count)


def _folder(name: str, level: str) -> str:
    folders = name.split(os.sep)[:-1]
    if not level:
        return os.sep.join(folders)
    if not level.isdigit() or not 1 <= int(level) <= len(folders):
        raise ConfigError(
            f"images.group_by = 'folder:{level}' needs a level between 1 and {len(folders)} for "
            f"{name!r}, which lies {len(folders)} folders deep."
        )
    return os.sep.join(folders[: int(level)])


def _matches(names: Sequence[str], pattern: str) -> list[str]:
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"images.group_by: {pattern!r} is no regular expression: {error}."
        ) from error
    if expression.groups < 1:
        raise ConfigError(
            f"images.group_by: {pattern!r} needs a parenthesis around the group's name."
        )
    found = [expression.search(name) for name in names]
    missing = [name for name, match in zip(names, found, strict=True) if match is None]
    if missing:
        raise ConfigError(
            f"images.group_by: {pattern!r} is not found in {len(missing)} of {len(names)} names, "
            f"as {missing[0]!r}."
        )
    return [match[1] or "" for match in found if match is not None]


def _from_table(names: Sequence[str], path: Path, column: str) -> list[str]:
    table = read_column(path, column, "images.group_by")
    missing = [name for name in names if name not in table]
    if missing:
        raise ConfigError(
            f"images.group_by: {path} has no row for {len(missing)} of {len(names)} images, as "
            f"{missing[0]!r}. {WHAT_A_NAME_IS}"
        )
    return [table[name] for name in names]


FIFTH: Final = 0.2
"""The share that is held out by default."""


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
    # The lowest draw of its images stands for a group, wherever they stand in the set.
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
        # Reduced by hand: NumPy's arrays wrap around, and a number of over 64 bits is refused.
        found = found + np.uint64(salt * 0x9E3779B97F4A7C15 % 2**64)
        found = (found ^ (found >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        found = (found ^ (found >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        found = found ^ (found >> np.uint64(31))
    return found


def among(
    some: NDArray[np.uint64] | None, others: NDArray[np.uint64] | None
) -> NDArray[np.bool_] | None:
    """Whether each of some checksums, (images, 2), is one of the others; None where either is."""
    if some is None or others is None:
        return None
    numbers = number_contents(np.concatenate([some, others]))
    return np.isin(numbers[: len(some)], numbers[len(some) :])


def number_contents(checksums: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Numbers of contents, (images,): the same for images whose checksums are.

    >>> number_contents(np.array([[7, 1], [2, 5], [7, 1]], dtype=np.uint64)).tolist()
    [1, 0, 1]
    """
    order = np.lexsort((checksums[:, 1], checksums[:, 0]))
    ranked = checksums[order]
    is_new = (ranked[1:] != ranked[:-1]).any(axis=1)
    numbers = np.zeros(len(checksums), dtype=np.int64)
    numbers[order[1:]] = np.cumsum(is_new)
    return numbers
