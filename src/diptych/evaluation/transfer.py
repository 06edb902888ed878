"""Transfer: the frozen features on other tasks, each with a linear classifier of its own.

A task is what ``pretrain`` takes, with a folder for each class; or a folder of images with several
labels each, see ``tags.py``. Measured are the held-out images of the task, or a fifth cut from it.
"""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import ConfigError, ImagesError
from diptych.escaping import readable, unescaped
from diptych.evaluation.confidence import (
    Statistic,
    accuracy_of,
    macro_auc,
    macro_f1,
    mean_per_class,
    share_of_answers,
)
from diptych.evaluation.knn_and_linear import with_intervals
from diptych.evaluation.labelled import labelled_parts
from diptych.evaluation.linear import L2_SWEEPS, fit_linear, fit_multilabel
from diptych.evaluation.split import Split, groups_of_parts, units_of, unlabelled_split
from diptych.evaluation.subject import Subject
from diptych.images.collection import Collection, ImageSet
from diptych.images.groups import stratified_group_split
from diptych.images.open import open_images
from diptych.images.splits import TEST_NAMES, TRAIN_NAMES
from diptych.models.weights import TrainedOn

TABLE: Final = "labels.csv"


_FORM: Final = "wanted the columns name, LABEL, LABEL, .. with 0 or 1 below every label"


class Tags(NamedTuple):
    """Which labels each image has.

    Attributes:
        names: of the labels.
        rows: labels of an image by its name, (labels,) of 0 and 1.
    """

    names: tuple[str, ...]
    rows: dict[str, NDArray[np.float32]]

    def of(self, images: Sequence[str], origin: str) -> NDArray[np.float32]:
        """The labels of images in their order, (images, labels).

        Raises:
            ImagesError: the table lacks an image.
        """
        missing = [name for name in images if name not in self.rows]
        if missing:
            raise ImagesError(
                f"{TABLE} of {origin} has no row for {len(missing)} of {len(images)} images, as "
                f"{missing[0]!r}. Add them, with the path below the folder as the name."
            )
        return np.stack([self.rows[name] for name in images])


def find_tags(folder: Path, *, part: Sequence[str] = ()) -> Tags | None:
    """The table of the first of a folder's subfolders ``part`` that has one, or the folder's own.

    Names of subfolders are compared without case.

    Raises:
        ImagesError: there is one of another form.
    """
    found = {one.name.lower(): one for one in sorted(folder.glob("*/"))}
    places = [found[name.lower()] / TABLE for name in part if name.lower() in found]
    places.append(folder / TABLE)
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        return None
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            return _read(csv.reader(file), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ImagesError(f"{path} cannot be read: {error}.") from error


def _read(lines: Any, path: Path) -> Tags:
    head: list[str] = next(lines, [])
    if head[:1] != ["name"] or len(head) < 3:
        found = ", ".join(head[:10]) or "nothing"
        raise ImagesError(f"{path}: {_FORM}, two labels or more; its first line has {found}.")
    rows = {}
    for line in lines:
        if not line:
            continue
        if len(line) != len(head) or any(value not in ("0", "1") for value in line[1:]):
            raise ImagesError(f"{path}, line {lines.line_num}: {_FORM}; got {','.join(line)!r}.")
        rows[unescaped(line[0])] = np.array(line[1:], dtype=np.float32)
    return Tags(tuple(head[1:]), rows)


class TransferTask(NamedTuple):
    """Images with what is to be said of them.

    Attributes:
        split: the two parts.
        train_targets, test_targets: (images,) classes, or (images, labels) of 0 and 1.
        labels: how many classes or labels there are.
        multilabel: whether an image may have several.
    """

    split: Split
    train_targets: Tensor
    test_targets: Tensor
    labels: int
    multilabel: bool


def measure_transfer(subject: Subject) -> dict[str, Any]:
    """Accuracy, mean per class, ROC AUC and F1 of a linear classifier, task by task."""
    options = subject.options
    if not options.transfer:
        raise ConfigError("the protocol transfer needs folders: give --transfer PATH PATH ..")
    found = {
        path: _measured(subject, open_task(subject, path)) for path in map(str, options.transfer)
    }
    names = {path: one["metrics"]["accuracy"]["intervals"] for path, one in found.items()}
    short = {
        path: {name: interval["value"] for name, interval in intervals.items()}
        for path, intervals in names.items()
    }
    settings = {"head_layers": options.head_layers, "crops": options.crops}
    return {"transfer": short, "details": {"transfer": {"settings": settings, "tasks": found}}}


def open_task(subject: Subject, path: str) -> TransferTask:
    """Opens the images of a task with their labels.

    Raises:
        ImagesError: there are none, or of one part only.
    """
    source = replace(subject.config.images, path=path, limit=None)
    collection = open_images(
        source, subject.runtime.executor, subject.runtime.counting(f"Reading {readable(path)}")
    )
    group_by = source.group_by
    tags = find_tags(Path(path), part=TRAIN_NAMES)
    if tags is not None:
        return _tagged(Path(path), tags, collection, group_by, subject.seen)
    found = labelled_parts(collection, group_by=group_by, seen=subject.seen)
    if found is None:
        raise ImagesError(
            f"--transfer {path} has no labels: put the images of each class into a folder of its "
            "own, or add labels.csv with the columns name, LABEL, LABEL, .."
        )
    classes = len(found.classes)
    return TransferTask(found, found.train_labels, found.test_labels, classes, multilabel=False)


def _tagged(
    path: Path, tags: Tags, collection: Collection, group_by: str | None, seen: TrainedOn | None
) -> TransferTask:
    if collection.test is None:
        return _cut(tags, collection.train, path, group_by, seen)
    train, test = collection.train, collection.test
    names = (collection.test_part,) if collection.test_part else TEST_NAMES
    others = find_tags(path, part=names)
    if others is None:
        raise ImagesError(
            f"--transfer {path} has a {TABLE} of the images to learn from and none of the "
            f"{len(test):,} held-out ones. Put one beside those too, or one for all of them into "
            f"{path}."
        )
    if others.names != tags.names:
        raise ImagesError(f"{path}: {TABLE} of the test images has other labels.")
    ours, theirs, remarks = groups_of_parts(train, test, group_by)
    split = unlabelled_split(
        train,
        test,
        seen,
        shared=None if ours is None or theirs is None else np.isin(theirs, ours),
        units=units_of(train, ours),
        remarks=remarks,
    )
    return _task(split, tags.of(train.names, str(path)), others.of(test.names, str(path)))


def _cut(
    tags: Tags, images: ImageSet, path: Path, group_by: str | None, seen: TrainedOn | None
) -> TransferTask:
    """A fifth of the images to measure on, of each label its share."""
    targets = tags.of(images.names, str(path))
    groups, _, remarks = groups_of_parts(images, None, group_by)
    units = units_of(images, groups)
    identities = None if images.checksums is None else images.checksums[:, 0]
    kept, held_out, _ = stratified_group_split(targets, units, identities=identities)
    if not len(held_out):
        raise ImagesError(f"--transfer {path}: {len(images)} images are too few for two parts.")
    split = unlabelled_split(
        images.select(kept),
        images.select(held_out),
        seen,
        shared=None if groups is None else np.isin(groups[held_out], groups[kept]),
        units=None if units is None else units[kept],
        whole=images,
        remarks=remarks,
    )
    return _task(split, targets[kept], targets[held_out])


def _task(split: Split, train: NDArray[np.float32], test: NDArray[np.float32]) -> TransferTask:
    targets = torch.from_numpy(train), torch.from_numpy(test)
    return TransferTask(split, *targets, labels=train.shape[1], multilabel=True)


def _measured(subject: Subject, task: TransferTask) -> dict[str, Any]:
    split = task.split
    train, test = subject.features_of(split.train), subject.features_of(split.test)
    sweep = L2_SWEEPS[subject.options.l2_sweep]
    fit = fit_multilabel if task.multilabel else fit_linear
    scores = {
        name: fit(train[name], task.train_targets, strengths=sweep, groups=split.units).scores(
            test[name]
        )
        for name in train
    }
    return {
        "train_images": len(split.train),
        "test_images": len(split.test),
        "labels": task.labels,
        "multilabel": task.multilabel,
        "metrics": _metrics(scores, task),
        "split": split.as_dict(),
    }


def _metrics(scores: Mapping[str, Tensor], task: TransferTask) -> dict[str, Any]:
    judge = _judge_labels if task.multilabel else _judge_classes
    judged = {
        name: judge(one.double().numpy(), task.test_targets.numpy()) for name, one in scores.items()
    }
    metrics = next(iter(judged.values())).keys()
    return {
        metric: with_intervals(
            {name: one[metric] for name, one in judged.items()}, len(task.split.test)
        )
        for metric in metrics
    }


def _judge_classes(scores: NDArray[np.float64], truth: NDArray[np.int64]) -> dict[str, Statistic]:
    """Of the classes that an image can be in, one is said."""
    places = np.arange(scores.shape[1])
    predicted = scores.argmax(axis=1)
    said, wanted = predicted[:, None] == places, truth[:, None] == places
    chances = np.exp(scores - scores.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)  # comparable from image to image
    return {
        "accuracy": accuracy_of(predicted == truth),
        "mean_per_class": mean_per_class(predicted, truth),
        "auc": macro_auc(chances, wanted),
        "f1": macro_f1(said, wanted),
    }


def _judge_labels(scores: NDArray[np.float64], truth: NDArray[np.float32]) -> dict[str, Statistic]:
    """Of each label it is said whether the image has it; accuracy is over all these answers."""
    said, wanted = scores > 0, truth > 0.5
    return {
        "accuracy": share_of_answers(said, wanted),
        "auc": macro_auc(scores, wanted),
        "f1": macro_f1(said, wanted),
    }
