"""Transfer: the frozen features on other tasks, each with a linear classifier of its own.

A task is what ``pretrain`` takes, with a folder for each class; or a folder of images with several
labels each, see ``tags.py``. Held-out images are those of the task, or one in five.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.errors import ConfigError, ImagesError
from diptych.evaluation.confidence import Statistic
from diptych.evaluation.frozen import with_intervals
from diptych.evaluation.labelled import labelled_parts
from diptych.evaluation.linear import fit_linear, fit_multilabel
from diptych.evaluation.scores import (
    accuracy_of,
    macro_auc,
    macro_f1,
    mean_per_class,
    share_of_answers,
)
from diptych.evaluation.subject import STRENGTHS, Subject
from diptych.evaluation.tags import find_tags
from diptych.images.collection import Collection, ImageSet
from diptych.images.sources import open_images
from diptych.images.splits import TEST_NAMES, TRAIN_NAMES

METRICS: Final = ("accuracy", "mean_per_class", "auc", "f1")


class Task(NamedTuple):
    """Images with what is to be said of them.

    Attributes:
        train, test: the two parts.
        train_targets, test_targets: (images,) classes, or (images, labels) of 0 and 1.
        labels: how many classes or labels there are.
        multilabel: whether an image may have several.
    """

    train: ImageSet
    train_targets: Tensor
    test: ImageSet
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


def open_task(subject: Subject, path: str) -> Task:
    """Opens the images of a task with their labels.

    Raises:
        ImagesError: there are none.
    """
    source = replace(subject.config.images, path=path, limit=None)
    collection = open_images(source, subject.executor)
    if find_tags(Path(path), part=TRAIN_NAMES) is not None:
        return _tagged(Path(path), collection)
    found = labelled_parts(collection)
    if found is None:
        raise ImagesError(
            f"--transfer {path} has no labels: put the images of each class into a folder of its "
            "own, or add labels.csv with the columns name, LABEL, LABEL, .."
        )
    classes = len(found.classes)
    return Task(
        found.train, found.train_labels, found.test, found.test_labels, classes, multilabel=False
    )


def _tagged(path: Path, collection: Collection) -> Task:
    train, test = collection.train, collection.test
    tags = find_tags(path, part=TRAIN_NAMES)
    assert tags is not None
    if test is None:
        placed = replace(collection, train=replace(train, labels=np.arange(len(train))))
        parts = labelled_parts(placed)
        assert parts is not None
        train, test, held_out = parts.train, parts.test, tags
    else:
        found = find_tags(path, part=TEST_NAMES)
        assert found is not None
        held_out = found
        if held_out.names != tags.names:
            raise ImagesError(f"{path}: labels.csv of the test images has other labels.")
    train_targets = torch.from_numpy(tags.of(train.names, str(path)))
    test_targets = torch.from_numpy(held_out.of(test.names, str(path)))
    return Task(train, train_targets, test, test_targets, len(tags.names), multilabel=True)


def _measured(subject: Subject, task: Task) -> dict[str, Any]:
    train, test = subject.features_of(task.train), subject.features_of(task.test)
    sweep = STRENGTHS[subject.options.l2_sweep]
    fit = fit_multilabel if task.multilabel else fit_linear
    scores = {
        name: fit(train[name], task.train_targets, strengths=sweep).scores(test[name])
        for name in train
    }
    return {
        "train_images": len(task.train),
        "test_images": len(task.test),
        "labels": task.labels,
        "multilabel": task.multilabel,
        "metrics": _metrics(scores, task),
    }


def _metrics(scores: Mapping[str, Tensor], task: Task) -> dict[str, Any]:
    judge = _judge_labels if task.multilabel else _judge_classes
    judged = {
        name: judge(one.double().numpy(), task.test_targets.numpy()) for name, one in scores.items()
    }
    metrics = next(iter(judged.values())).keys()
    return {
        metric: with_intervals({name: one[metric] for name, one in judged.items()}, len(task.test))
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
