"""Labelled images in two parts: to fit a probe on, and to measure it on."""

import difflib
import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.evaluation.split import (
    ImageMask,
    LeftOut,
    Split,
    compared_parts,
    groups_of_parts,
    units_of,
)
from diptych.images.collection import Collection, ImageSet, spread_indices
from diptych.images.groups import among, stratified_group_split
from diptych.images.inventory import listed
from diptych.images.listing import Progress, ignore_progress
from diptych.images.open import open_images
from diptych.images.sources.handed_over import path_of
from diptych.models.weights import TrainedOn

_ALIKE: Final = 0.8  # similarity of two names of classes that may be one name with a typing error
_NAMED: Final = 5  # images without a label


@dataclass(frozen=True, kw_only=True)
class Labelled(Split):
    """A split of images with labels.

    Attributes:
        train_labels: (images,), classes.
        test_labels: (images,), the same classes: a test image of another one is left out.
    """

    train_labels: Tensor
    test_labels: Tensor

    @property
    def chance(self) -> float:
        """Accuracy of naming the largest class always."""
        return float(torch.bincount(self.train_labels).max() / len(self.train))

    @property
    def largest_class(self) -> float:
        """Share of the test images in the class that most of them are of."""
        return float(torch.bincount(self.test_labels).max() / len(self.test))

    @property
    def measured_classes(self) -> int:
        """Classes that test images are of."""
        return len(torch.unique(self.test_labels))

    @property
    def fingerprint(self) -> str:
        """A short hash of both parts and their labels, to tell results on other images apart."""
        digest = hashlib.sha256()
        for part, labels in ((self.train, self.train_labels), (self.test, self.test_labels)):
            # Labels too: the same images sorted into other classes are another task.
            digest.update(part.fingerprint().encode() + labels.numpy().tobytes())
        return digest.hexdigest()[:16]

    def limited(self, fit_images: int | None, test_images: int | None) -> "Labelled":
        """At most so many images of each part, spread over it, and a remark that says so."""
        rows, remarks = list[NDArray[np.int64]](), list[str]()
        for part, most, what in (
            (self.train, fit_images, "are fitted on"),
            (self.test, test_images, "are measured on"),
        ):
            rows.append(spread_indices(len(part), len(part) if most is None else most))
            if len(rows[-1]) < len(part):
                remarks.append(
                    f"Of {len(part):,} images {len(rows[-1]):,} {what}, spread over all."
                )
        if not remarks:
            return self
        return replace(self.select(rows[0], rows[1]), remarks=(*self.remarks, *remarks))

    def select(self, train: NDArray[np.int64], test: NDArray[np.int64]) -> "Labelled":
        """Some of the images of each part."""
        fitted, measured = self.train.select(train), self.test.select(test)
        both = np.concatenate([train, len(self.train) + test])
        groups = None if self.groups is None else (self.groups[0][train], self.groups[1][test])
        return replace(
            self,
            train=fitted,
            test=measured,
            train_labels=self.train_labels[torch.from_numpy(train)],
            test_labels=self.test_labels[torch.from_numpy(test)],
            test_seen=None if self.test_seen is None else self.test_seen[test],
            train_seen=None if self.train_seen is None else self.train_seen[train],
            # Anew: of what is left to fit on, a test image or its group may be no more.
            repeated=among(measured.checksums, fitted.checksums),
            groups=groups,
            shared=_shared(groups),
            units=None if self.units is None else self.units[train],
            whole=None if self.whole is None else self.whole.select(both),
        )


def labelled_parts(
    collection: Collection, *, group_by: str | None = None, seen: TrainedOn | None = None
) -> Labelled | None:
    """The labelled images of a collection in two parts; None without labels.

    These are its own two parts where both have labels. Else a fifth is cut from the part that has:
    whole groups, of each class its share. Images that pretraining learned from may be measured on,
    as where a set has no held-out part; the split says so.

    Args:
        collection: of images.
        group_by: ``images.group_by``.
        seen: what pretraining learned from, if known.

    Raises:
        ImagesError: the two parts have no class in common, or no class has images for two parts.
    """
    train, test = collection.train, collection.test
    if train.labels is not None and test is not None and test.labels is not None:
        return _given(train, test, group_by, seen)
    if train.labels is not None:
        remarks: tuple[str, ...] = ()
        if test is not None:
            which = f"The {len(test):,} held-out images"
            remarks = (f"{which} have no labels of two classes or more, so are of no use here.",)
        return _cut(train, group_by, seen, remarks)
    if test is not None and test.labels is not None:
        return _cut(test, group_by, seen, (_CUT_FROM_TEST,))
    return None


_CUT_FROM_TEST: Final = "They are held-out images: those to learn from have no labels."


def open_labelled(
    config: ImagesConfig,
    executor: Executor,
    *,
    train: str | Path | Any | None = None,
    test: str | Path | Any | None = None,
    seen: TrainedOn | None = None,
    on_progress: Progress = ignore_progress,
) -> Labelled:
    """Opens labelled images.

    Args:
        config: of the run's images, which are taken where no others are given.
        executor: its threads decode.
        train: labelled images to fit probes on.
        test: labelled images to measure them on; by default those held out with ``train``, or a
            fifth of its images, see ``labelled_parts``.
        seen: what pretraining learned from, if known.
        on_progress: told how many images are read.

    Raises:
        ImagesError: there are no labels, or the parts have no class in common.
    """

    def read(path: str | Path | Any | None, limit: int | None) -> Collection:
        wanted = config.path if path is None else path_of(path)
        return open_images(replace(config.at(wanted), limit=limit), executor, on_progress)

    collection = read(train, config.limit if train is None else None)
    _require_labels("--train", train, collection.train, collection.test)
    remarks = [] if train is None else _of_what_is_given(train, collection)
    if test is not None:
        held_out = read(test, None)
        if train is not None and collection.test is not None:
            remarks.append(_part_of(train, collection, "is not used, as there is --test"))
        collection = replace(collection, test=held_out.test or held_out.train)
        _require_labels("--test", test, collection.test)
        remarks += _of_what_is_given(test, held_out)
        if held_out.test is not None:
            remarks.append(_part_of(test, held_out, "is measured on"))
    found = labelled_parts(collection, group_by=config.group_by, seen=seen)
    if found is None:
        raise ImagesError(
            "evaluation needs labels of two classes or more: put the images of each class into a "
            "folder of its own, and give --train PATH and --test PATH. Without labels, the report "
            "still shows the label-free measures."
        )
    return replace(found, remarks=(*found.remarks, *remarks))


def _of_what_is_given(path: str | Path | Any, collection: Collection) -> list[str]:
    """What is in the folder and not in the split; unreadable images are listed elsewhere."""
    sentences = replace(collection.inventory, unreadable=()).sentences()
    return [f"In {readable(path_of(path))}: {' '.join(sentences)}"] if sentences else []


def _part_of(path: str | Path | Any, collection: Collection, what: str) -> str:
    """A sentence on the held-out part of what is given."""
    return f"Of {readable(path_of(path))}, the part {readable(collection.test_part)} {what}."


def _require_labels(flag: str, path: object, *parts: ImageSet | None) -> None:
    if path is not None and all(part is None or part.labels is None for part in parts):
        raise ImagesError(
            f"{flag} {path} has no labels: evaluation needs two classes or more, the images of "
            "each in a folder of its own."
        )


def _given(
    train: ImageSet, test: ImageSet, group_by: str | None, seen: TrainedOn | None
) -> Labelled:
    """Two parts as they lie, their classes matched by name."""
    fitted, left_out = _with_label(train, "training images")
    measured, unlabelled = _with_label(test, "test images")
    assert fitted.labels is not None
    assert measured.labels is not None
    # By name, as each part numbers its own classes: one class may have two numbers.
    labels = _matched(measured, train.classes)
    known = np.flatnonzero(labels >= 0)
    if not len(known):
        raise ImagesError(
            f"the test images are of the classes {listed(test.classes)}, the training images of "
            f"{listed(train.classes)}: none in common, so nothing can be measured. Classes are "
            f"matched by name; give their folders the same ones.{_slips(test, train)}"
        )
    # An image of an unknown class could only be wrong, which says nothing of the features.
    if len(known) < len(measured):
        unknown = tuple(name for name in test.classes if name not in train.classes)
        why = "of classes that the training images lack"
        unlabelled += (LeftOut(len(measured) - len(known), "test images", why, unknown),)
    measured = measured.select(known)
    ours, theirs, remarks = groups_of_parts(fitted, measured, group_by)
    if ours is not None and theirs is not None and not _is_finer(ours, fitted.labels):
        ours, theirs, remarks = None, None, (_NOT_FINER,)
    groups = None if ours is None or theirs is None else (ours, theirs)
    slips = _slips(test, train).strip()
    return Labelled(
        train=fitted,
        train_labels=torch.from_numpy(fitted.labels),
        test=measured,
        test_labels=torch.from_numpy(labels[known]),
        classes=train.classes,
        groups=groups,
        shared=_shared(groups),
        units=units_of(fitted, ours),
        left_out=left_out + unlabelled,
        remarks=(*remarks, slips) if slips else remarks,
        **compared_parts(fitted, measured, seen),
    )


def _cut(
    images: ImageSet, group_by: str | None, seen: TrainedOn | None, remarks: tuple[str, ...]
) -> Labelled:
    """Two parts of one set, with all of a group, and all copies of an image, in one of them."""
    labelled, left_out = _with_label(images, "images")
    assert labelled.labels is not None
    groups, _, more = groups_of_parts(labelled, None, group_by)
    # With one group for each class nothing could be held out: every class has to stay on the side
    # that is fitted on.
    if groups is not None and not _is_finer(groups, labelled.labels):
        groups, more = None, (_NOT_FINER,)
    units = units_of(labelled, groups)
    # Half of a checksum is enough here: it only draws which units are held out. Copies are told by
    # the whole one, in `units_of`.
    identities = None if labelled.checksums is None else labelled.checksums[:, 0]
    kept, held_out, alone = stratified_group_split(labelled.labels, units, identities=identities)
    if not len(held_out):
        raise ImagesError(
            f"none of the {len(images.classes)} classes has two images that differ: one to fit on "
            "and one to measure on are wanted. Add images, or give --test PATH."
        )
    remarks += more
    if len(alone):
        names = [images.classes[number] for number in alone]
        what = "groups of images" if groups is not None else "images"
        remarks += (f"Fitted on only, with too few {what} for both sides: {listed(names)}.",)
    train, test = labelled.select(kept), labelled.select(held_out)
    parts = None if groups is None else (groups[kept], groups[held_out])
    assert train.labels is not None
    assert test.labels is not None
    return Labelled(
        train=train,
        train_labels=torch.from_numpy(train.labels),
        test=test,
        test_labels=torch.from_numpy(test.labels),
        classes=images.classes,
        groups=parts,
        shared=_shared(parts),
        units=None if units is None else units[kept],
        whole=labelled.select(np.concatenate([kept, held_out])),
        left_out=left_out,
        remarks=remarks,
        **compared_parts(train, test, seen),
    )


def _shared(groups: tuple[NDArray[np.int64], NDArray[np.int64]] | None) -> ImageMask:
    """Whether the group of each test image is one of the training images' too."""
    return None if groups is None else np.isin(groups[1], groups[0])


_NOT_FINER: Final = (
    "By images.group_by each class is one group, so groups lie on both sides: what it says of the "
    "images is no more than their class."
)


def _is_finer(groups: NDArray[np.int64], labels: NDArray[np.int64]) -> bool:
    """Whether some class has two groups: else no group can be kept on one side."""
    pairs = np.unique(np.stack([groups, labels]), axis=1)
    return len(np.unique(pairs[1])) < pairs.shape[1]


def _with_label(images: ImageSet, what: str) -> tuple[ImageSet, tuple[LeftOut, ...]]:
    """The images that have one, and what is left out."""
    assert images.labels is not None
    left_out = unusable(images, what)
    without = np.flatnonzero(images.labels < 0)
    if not len(without):
        return images, left_out
    names = tuple(images.names[index] for index in without[:_NAMED])
    left_out += (LeftOut(len(without), what, "without a label", names),)
    return images.select(np.flatnonzero(images.labels >= 0)), left_out


def unusable(images: ImageSet, what: str) -> tuple[LeftOut, ...]:
    """The images of a set that cannot be read, if there are any."""
    if not images.skipped:
        return ()
    names = tuple(one.name for one in images.skipped[:_NAMED])
    return (LeftOut(len(images.skipped), what, "that cannot be used", names),)


def _matched(images: ImageSet, classes: Sequence[str]) -> NDArray[np.int64]:
    """Labels as positions among other classes, by name; -1 for one that is not among them."""
    assert images.labels is not None
    position = {name: index for index, name in enumerate(classes)}
    table = np.array([position.get(name, -1) for name in images.classes], dtype=np.int64)
    # No label is -1 here, which would take the last class: images without one are gone.
    matched: NDArray[np.int64] = table[images.labels]
    return matched


def _slips(test: ImageSet, train: ImageSet) -> str:
    """Names of classes that are nearly the same in both parts, as a hint."""
    lower = {name.casefold(): name for name in train.classes}
    found = []
    for name in test.classes:
        if name not in train.classes:
            near = difflib.get_close_matches(name.casefold(), lower, n=1, cutoff=_ALIKE)
            found += [f"{name!r} and {lower[one]!r}" for one in near]
    return f" Nearly alike: {listed(found)}." if found else ""
