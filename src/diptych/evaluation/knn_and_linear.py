"""Protocols on frozen features: kNN, a linear classifier by L-BFGS, and transfer to other tasks.

A task of transfer is anything that ``pretrain`` takes, with a folder for each class; or a folder of
images that may have several labels each, listed in its ``labels.csv``. The held-out images of the
task are measured, or a fifth that is cut from it.
"""

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import ImagesError
from diptych.escaping import readable, unescaped
from diptych.evaluation.confidence import (
    BootstrapEstimate,
    Statistic,
    accuracy_of,
    estimate,
    macro_auc,
    macro_auc_of_classes,
    macro_f1,
    macro_f1_of_classes,
    mean_per_class,
    share_of_answers,
)
from diptych.evaluation.knn import accuracy, knn_predict, leave_one_out
from diptych.evaluation.labelled import labelled_parts, unusable
from diptych.evaluation.linear import L2_SWEEPS, LinearClassifier, fit_linear, fit_multilabel
from diptych.evaluation.predictions import PREDICTIONS, Predictions, softmax
from diptych.evaluation.split import Split, groups_of_parts, units_of, unlabelled_split
from diptych.evaluation.subject import TRAINED, Subject
from diptych.images.collection import Collection, ImageSet
from diptych.images.groups import stratified_group_split
from diptych.images.open import open_images
from diptych.images.splits import TEST_NAMES, TRAIN_NAMES
from diptych.models.weights import TrainedOn

_CELLS: Final = 4_000_000  # scores held at once


def measure_knn(subject: Subject) -> dict[str, Any]:
    """Weighted kNN (InstDisc, section 3.4), for every encoder and for pixels.

    Where there is one set of labelled images without groups, ``knn_leave_one_out`` classifies each
    of them by all the others as well.
    """
    labelled, options = subject.labelled, subject.options
    how = {"k": options.neighbours, "temperature": options.knn_temperature}
    predicted = {
        name: knn_predict(train, labelled.train_labels, test, **how)  # type: ignore[arg-type]
        for name, (train, test) in subject.features.items()
    }
    found, metrics = compared(predicted, labelled.test_labels, labelled.test_units)
    split = labelled.as_resampled()
    settings = common_settings(subject) | {
        "knn_neighbours": min(options.neighbours, len(labelled.train)),
        "knn_temperature": options.knn_temperature,
    }
    result: dict[str, Any] = {
        "knn": found,
        "protocol": settings,
        "details": {"knn": {"settings": settings, "metrics": metrics, "split": split}},
    }
    # Not with groups: an image's nearest others would be those of its own group.
    if labelled.whole is not None and labelled.shared is None:
        result["knn_leave_one_out"] = _left_out(subject)
        split = _all_by_others(subject, labelled.whole).as_dict()
        own = {"knn_neighbours": min(options.neighbours, len(labelled.whole) - 1)}
        result["details"]["knn_leave_one_out"] = {"settings": settings | own, "split": split}
    return result


def measure_linear(subject: Subject) -> dict[str, Any]:
    """Multinomial logistic regression by L-BFGS (SimCLR, appendix B.8)."""
    labelled, sweep = subject.labelled, L2_SWEEPS[subject.options.l2_sweep]
    truth = labelled.test_labels.numpy()
    predicted, strengths = {}, {}
    for name, (train, test) in subject.features.items():
        classifier = fit_linear(
            train, labelled.train_labels, strengths=sweep, groups=labelled.units
        )
        predicted[name] = torch.cat([one.argmax(dim=1) for one in _scores(classifier, test)])
        strengths[name] = classifier.l2
        if name == TRAINED:
            # No column for last classes that no image is of that was fitted on.
            missing = len(labelled.classes) - len(classifier.weight)
            answers = (
                np.pad(softmax(one.double().numpy()), ((0, 0), (0, missing)))
                for one in _scores(classifier, test)
            )
            said = Predictions.of_blocks(labelled.test.names, labelled.classes, truth, answers)
    found, metrics = compared(predicted, labelled.test_labels, labelled.test_units)
    split = labelled.as_resampled()
    settings = common_settings(subject) | {"linear_l2": strengths}
    return {
        "linear": found,
        PREDICTIONS: said,
        "protocol": settings,
        "details": {"linear": {"settings": settings, "metrics": metrics, "split": split}},
    }


def _scores(classifier: LinearClassifier, features: Tensor) -> Iterator[Tensor]:
    """The scores of some images, then of the next ones: those of all are images times classes."""
    rows = max(1, _CELLS // len(classifier.weight))
    return map(classifier.scores, torch.split(features, rows))


def common_settings(subject: Subject) -> dict[str, Any]:
    """On which images, and what part of the encoder."""
    labelled, options = subject.labelled, subject.options
    return {
        "images": labelled.fingerprint,
        "train_images": len(labelled.train),
        "test_images": len(labelled.test),
        "classes": len(labelled.classes),
        "chance": labelled.chance,
        "largest_class": labelled.largest_class,
        "measured_classes": labelled.measured_classes,
        "head_layers": options.head_layers,
        "crops": options.crops,
    }


def compared(
    predicted: Mapping[str, Tensor], truth: Tensor, units: NDArray[np.int64] | None = None
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracies by name, and the metrics of them with intervals.

    Args:
        predicted: (images,) for every encoder.
        truth: (images,).
        units: (images,), of images that are drawn together: ``Split.test_units``.
    """
    classes = truth.numpy()
    figures: dict[str, dict[str, Statistic]] = {
        "accuracy": {name: accuracy_of((p == truth).numpy()) for name, p in predicted.items()},
        "mean_per_class": {
            name: mean_per_class(p.numpy(), classes) for name, p in predicted.items()
        },
    }
    metrics = {name: with_intervals(one, len(truth), units) for name, one in figures.items()}
    return {name: accuracy(p, truth) for name, p in predicted.items()}, metrics


def with_intervals(
    figures: Mapping[str, Statistic], images: int, units: NDArray[np.int64] | None = None
) -> dict[str, Any]:
    """Intervals of a figure of every encoder, and of the trained one's gain over each other."""
    return _with_gains(
        {name: estimate(figure, images, units=units) for name, figure in figures.items()}
    )


def _with_gains(found: Mapping[str, BootstrapEstimate]) -> dict[str, Any]:
    # The resamples follow from units and seed alone, so all encoders have the same ones: `minus`
    # takes differences draw by draw and relies on that.
    best = found[TRAINED]
    return {
        "intervals": {name: one.interval().as_dict() for name, one in found.items()},
        "gains": {
            name: best.minus(one).interval().as_dict()
            for name, one in found.items()
            if name != TRAINED
        },
    }


def _all_by_others(subject: Subject, whole: ImageSet) -> Split:
    """The split of each image against all others."""
    # A copy is the nearest of the others and gives the answer away; the split says how many are
    # such.
    contents = units_of(whole, None)
    copies = None if contents is None else np.bincount(contents)[contents] > 1
    return replace(
        unlabelled_split(None, whole, subject.seen),
        repeated=copies,
        left_out=subject.labelled.left_out,
        remarks=("Each of them is classified by all others.",),
    )


def _left_out(subject: Subject) -> dict[str, float]:
    labelled, options = subject.labelled, subject.options
    labels = torch.cat([labelled.train_labels, labelled.test_labels])
    found = {}
    for name, (train, test) in subject.features.items():
        predicted = leave_one_out(
            torch.cat([train, test]),
            labels,
            k=options.neighbours,
            temperature=options.knn_temperature,
        )
        found[name] = accuracy(predicted, labels)
    return found


# --- transfer ------------------------------------------------------------------------------------

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
        # Spreadsheets begin a file with a byte order mark, which would become a part of "name"; and
        # names of files need not be UTF-8.
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
    """A transfer task: images with their classes or labels.

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
    source = subject.config.images.at(path)
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
        groups=None if ours is None or theirs is None else (ours, theirs),
        units=units_of(train, ours),  # for the cut that chooses the strength
        left_out=unusable(train, "training images") + unusable(test, "test images"),
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
        groups=None if groups is None else (groups[kept], groups[held_out]),
        units=None if units is None else units[kept],
        whole=images.select(np.concatenate([kept, held_out])),
        left_out=unusable(images, "images"),
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
    judge = _judge_labels if task.multilabel else _judge_classes
    truth, units = task.test_targets.numpy(), split.test_units
    reached = dict[str, dict[str, BootstrapEstimate]]()
    # One encoder after another, as its scores are images times classes.
    for name in train:
        classifier = fit(train[name], task.train_targets, strengths=sweep, groups=split.units)
        figures = judge(classifier.scores(test[name]).numpy(), truth)
        reached[name] = {
            metric: estimate(figure, len(truth), units=units) for metric, figure in figures.items()
        }
    return {
        "train_images": len(split.train),
        "test_images": len(split.test),
        "labels": task.labels,
        "multilabel": task.multilabel,
        "metrics": {
            metric: _with_gains({name: one[metric] for name, one in reached.items()})
            for metric in reached[TRAINED]
        },
        "split": split.as_resampled(),
    }


def _judge_classes(scores: NDArray[np.floating], truth: NDArray[np.int64]) -> dict[str, Statistic]:
    """Each image is in one class, and the classifier predicts one."""
    predicted = scores.argmax(axis=1)
    return {
        "accuracy": accuracy_of(predicted == truth),
        "mean_per_class": mean_per_class(predicted, truth),
        "auc": macro_auc_of_classes(_chances(scores), truth, scores.shape[1]),
        "f1": macro_f1_of_classes(predicted, truth),
    }


def _chances(scores: NDArray[np.floating]) -> Callable[[int], NDArray[np.float64]]:
    """The probabilities of a class, (images,): unlike scores, comparable from image to image.

    In float64, class by class, of scores that are kept as they are.
    """
    highest, rows = scores.max(axis=1).astype(np.float64), max(1, _CELLS // scores.shape[1])
    blocks = [slice(begin, begin + rows) for begin in range(0, len(scores), rows)]
    total = np.concatenate(
        [np.exp(scores[some] - highest[some, None]).sum(axis=1) for some in blocks]
    )
    return lambda place: np.exp(scores[:, place] - highest) / total


def _judge_labels(scores: NDArray[np.floating], truth: NDArray[np.float32]) -> dict[str, Statistic]:
    """For each label the classifier predicts whether the image has it; all these are answers."""
    # Scores are logits: above 0 the label is more likely than not.
    predicted, wanted = scores > 0, truth > 0.5
    return {
        "accuracy": share_of_answers(predicted, wanted),
        "auc": macro_auc(scores, wanted),
        "f1": macro_f1(predicted, wanted),
    }
