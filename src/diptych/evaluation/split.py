"""On which images a figure was measured, which of them pretraining saw, and which were left out."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError
from diptych.evaluation.confidence import count_units
from diptych.images.collection import Collection, ImageSet
from diptych.images.groups import among, find_groups, join_groups, number_contents
from diptych.models.weights import TrainedOn

NOT_RECORDED: Final = "On images not recorded."
"""For figures of older files, which record no split."""

_NAMED: Final = 5  # images or classes, of those that a sentence is about

ImageMask = NDArray[np.bool_] | None
"""(images,), a yes or no for each image; None where it is not known."""


@dataclass(frozen=True)
class LeftOut:
    """Images that are on no side, and why.

    Attributes:
        images: how many.
        what: which, as ``training images``.
        why: the reason.
        names: of some, or of their classes.
    """

    images: int
    what: str
    why: str
    names: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """As a part of a sentence."""
        return f"{self.images:,} {self.what} {self.why} ({', '.join(self.names[:_NAMED])})"


@dataclass(frozen=True, kw_only=True)
class Split:
    """Images in two parts: to fit on, which may be none, and to measure on.

    Attributes:
        train: to fit on.
        test: to measure on.
        classes: their names, where there are labels.
        test_seen: (images,), whether pretraining learned from each test image, by its content; None
            where that is not known.
        train_seen: the same of the training images.
        labels_used: whether pretraining learned from the labels of the images it saw.
        repeated: (images,), whether a test image is among the training images too; None where that
            is not known.
        shared: (images,), whether its group is; None where there are no groups.
        units: (training images,), numbers: images of one group or of one content have the same, so
            that a cut within the training images keeps them together. None where each is its own.
        groups: (images,) of each part, numbers of their groups; None where there are none.
        whole: both parts as the one set that they are cut from, those to fit on first; None where
            they are two by themselves.
        left_out: what is in neither.
        remarks: sentences on how the parts came about.
    """

    train: ImageSet
    test: ImageSet
    classes: tuple[str, ...] = ()
    test_seen: ImageMask = None
    train_seen: ImageMask = None
    labels_used: bool = False
    repeated: ImageMask = None
    shared: ImageMask = None
    units: NDArray[np.int64] | None = None
    groups: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None
    whole: ImageSet | None = None
    left_out: tuple[LeftOut, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def test_units(self) -> NDArray[np.int64] | None:
        """The same as ``units`` of the test images, which an interval draws whole."""
        return units_of(self.test, None if self.groups is None else self.groups[1])

    @property
    def tested(self) -> str:
        """The images measured on, as a part of a sentence."""
        return _tested(self.as_counts())

    @property
    def sentences(self) -> tuple[str, ...]:
        """On which images, in words, the most important first."""
        return (_measured_on(self.as_counts()), *_overlaps(self), *self._left_out, *self.remarks)

    @property
    def words(self) -> str:
        """All sentences."""
        return " ".join(self.sentences)

    def as_counts(self) -> dict[str, Any]:
        """Numbers of images of each kind; None where one is not known."""
        return {
            "train_images": len(self.train),
            "test_images": len(self.test),
            "classes": len(self.classes),
            "test_images_seen": _count(self.test_seen),
            "train_images_seen": _count(self.train_seen),
            "labels_used": self.labels_used,
            "test_images_in_train": _count(self.repeated),
            "test_images_of_shared_groups": _count(self.shared),
            "cut": self.whole is not None,
        }

    def as_dict(self) -> dict[str, Any]:
        """For JSON: the counts, what was left out, and all of it in words."""
        return self.as_counts() | {
            "left_out": [
                {"images": one.images, "what": one.what, "why": one.why, "names": list(one.names)}
                for one in self.left_out
            ],
            "tested": self.tested,
            "words": self.words,
        }

    def as_resampled(self) -> dict[str, Any]:
        """``as_dict`` of figures with intervals over test images: with the units that are drawn."""
        units = count_units(len(self.test), self.test_units)
        words = drawn_whole(units, len(self.test))
        return replace(self, remarks=(*self.remarks, *words)).as_dict() | {"test_units": units}

    @property
    def _left_out(self) -> list[str]:
        if not self.left_out:
            return []
        return [f"Left out: {'; '.join(one.words for one in self.left_out)}."]


def drawn_whole(units: int, images: int) -> tuple[str, ...]:
    """A sentence on what the intervals of a figure draw, where that is not the single images."""
    if units == images:
        return ()
    return (
        "Intervals count copies, and images of one group (images.group_by), as one: "
        f"{units:,} of these {images:,} images.",
    )


def split_words(split: Mapping[str, Any] | None) -> str:
    """The sentences of a split as recorded, or that none was recorded."""
    return NOT_RECORDED if split is None else str(split["words"])


def unlabelled_split(
    train: ImageSet | None, test: ImageSet, seen: TrainedOn | None, **more: Any
) -> Split:
    """A split without classes.

    Args:
        train: to fit on, if any.
        test: to measure on.
        seen: what pretraining learned from, if known.
        **more: other attributes.
    """
    fitted = test.select(np.arange(0)) if train is None else train
    return Split(train=fitted, test=test, **compared_parts(fitted, test, seen), **more)


def compared_parts(train: ImageSet, test: ImageSet, seen: TrainedOn | None) -> dict[str, Any]:
    """By the contents of two parts: what pretraining saw of them, and what is in both."""
    return {
        "test_seen": None if seen is None else seen.saw(test),
        "train_seen": None if seen is None else seen.saw(train),
        "labels_used": seen is not None and seen.labels_used,
        "repeated": among(test.checksums, train.checksums),
    }


def unseen_split(collection: Collection, seen: TrainedOn | None, *, most: int) -> Split:
    """The held-out images of a collection, or those learned from where it has none; evenly spread.

    Args:
        collection: of images.
        seen: what pretraining learned from, if known.
        most: images, at most.
    """
    images = collection.train if collection.test is None else collection.test
    return unlabelled_split(None, images.spread(most), seen)


def units_of(images: ImageSet, groups: NDArray[np.int64] | None) -> NDArray[np.int64] | None:
    """Numbers that images of one group, or of one content, have in common."""
    contents = None if images.checksums is None else number_contents(images.checksums)
    if groups is None or contents is None:
        return contents if groups is None else groups
    return join_groups(groups, contents)


def groups_of_parts(
    train: ImageSet, test: ImageSet | None, group_by: str | None
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None, tuple[str, ...]]:
    """Numbers of groups of the images of both parts, and a remark where they cannot be found.

    Groups are found by names, and the images of an evaluation may be called otherwise.
    """
    if group_by is None:
        return None, None, ()
    # Both parts at once: groups are numbered as they appear, so numbers from two calls would not
    # mean the same groups.
    names = [*train.names, *(() if test is None else test.names)]
    try:
        numbers = find_groups(names, group_by).numbers
    except ConfigError as error:
        remark = f"Groups are not known, and may lie on both sides: {error}"
        return None, None, (remark,)
    return numbers[: len(train)], None if test is None else numbers[len(train) :], ()


def _count(flags: ImageMask) -> int | None:
    return None if flags is None else int(flags.sum())


def _tested(counts: Mapping[str, Any]) -> str:
    images, seen = counts["test_images"], counts["test_images_seen"]
    how = "with labels" if counts["labels_used"] else "without labels"
    # Before the comparison with 0: not known must never read as not seen.
    if seen is None:
        return f"{images:,} images (whether pretraining saw them is not known)"
    if seen == 0:
        return f"{images:,} images that pretraining did not see"
    if seen == images:
        return f"{images:,} images that pretraining saw ({how})"
    return f"{images:,} images, {seen:,} of which pretraining saw ({how})"


def _measured_on(counts: Mapping[str, Any]) -> str:
    # Without its first letter, as it begins a sentence or goes on with one.
    measured = f"easured on {_tested(counts)}"
    if not counts["train_images"]:
        return f"M{measured}."
    labelled = f"labelled images of {counts['classes']:,} classes"
    fitted = f"Fitted on {counts['train_images']:,} {labelled if counts['classes'] else 'images'}"
    origin = ", cut from the same set" if counts["cut"] else ""
    return f"{fitted} and m{measured}{origin}."


def _overlaps(split: Split) -> list[str]:
    repeated, shared = _count(split.repeated), _count(split.shared)
    found = []
    if repeated:
        found.append(
            f"{repeated:,} of the {len(split.test):,} measured on are also among those fitted on, "
            "byte for byte."
        )
    # Not `not shared`: None means that there are no groups, of which nothing is said.
    if shared == 0:
        found.append("No group (images.group_by) has images in both.")
    if shared:
        found.append(
            f"{shared:,} of the {len(split.test):,} measured on are of groups (images.group_by) "
            "that those fitted on have too."
        )
    return found
