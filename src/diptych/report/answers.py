"""What a classifier answers, as a part of a page: confusion, classes, reliability, mistakes."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from diptych.config.data import ViewsConfig
from diptych.evaluation.predictions import (
    MANY_CLASSES,
    TOP,
    ClassFigures,
    Predictions,
    Reliability,
    per_class,
    reliability,
)
from diptych.images.collection import ImageSet
from diptych.report.figures import ACCENT, FAINT, STYLE, data_uri, svg
from diptych.views.cpu import load_centred, to_pixels
from diptych.views.preview.contact_sheet import to_picture

_MOST_IN_TABLE: Final = 24  # classes of a confusion matrix that a page has room for
_PAIRS: Final = 10
_MISTAKES: Final = 24
_PICTURE_PIXELS: Final = 120


@dataclass(frozen=True)
class Cell:
    """Images of one class that are taken for another, and the share of the class that they are."""

    images: int
    share: float
    right: bool


@dataclass(frozen=True)
class Pair:
    """Two classes of which one is taken for the other."""

    label: str
    predicted: str
    images: int
    share: float


@dataclass(frozen=True)
class Mistake:
    """A wrong answer; the picture is missing where the image is not there any more."""

    name: str
    label: str
    predicted: str
    probability: float
    uri: str | None


@dataclass(frozen=True)
class Answers:
    """What the part of the page shows.

    Attributes:
        images, wrong: how many answers, and how many of them are not right.
        classes: figures of each, the worst first.
        confusion: name of a class and its cells; empty with too many classes for a table.
        columns: names of the classes, in the order of the cells.
        pairs: the classes that are confused most.
        reliability: SVG.
        error: the calibration error.
        top: share of images whose label is among the five most probable; None with few classes.
        mistakes: the wrong answers that are said to be the most probable.
    """

    images: int
    wrong: int
    classes: Sequence[ClassFigures]
    confusion: Sequence[tuple[str, Sequence[Cell]]]
    columns: Sequence[str]
    pairs: Sequence[Pair]
    reliability: Markup
    error: float
    top: float | None
    mistakes: Sequence[Mistake]


def answers_of(
    predictions: Predictions,
    sets: Sequence[ImageSet],
    views: ViewsConfig,
    executor: Executor,
) -> Answers:
    """All figures of labelled predictions, with pictures of the worst mistakes.

    Args:
        predictions: with the labels of all images.
        sets: where the images are looked for, by name and class.
        views: give the normalisation.
        executor: its threads make the pictures.
    """
    found = reliability(predictions)
    classes = sorted(per_class(predictions), key=lambda one: one.found)
    few = len(predictions.classes) <= _MOST_IN_TABLE
    many = len(predictions.classes) >= MANY_CLASSES
    return Answers(
        images=len(predictions),
        wrong=int((~predictions.right).sum()),
        classes=classes,
        confusion=_table(predictions) if few else (),
        columns=predictions.classes,
        pairs=_pairs(predictions),
        reliability=Markup(reliability_curve(found)),
        error=found.error,
        top=float((predictions.label_rank <= TOP).mean()) if many else None,
        mistakes=_mistakes(predictions, sets, views, executor),
    )


def _table(predictions: Predictions) -> list[tuple[str, list[Cell]]]:
    counts = predictions.confusion()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return [
        (
            name,
            [
                Cell(int(count), float(share), right=row == column)
                for column, (count, share) in enumerate(zip(counts[row], shares[row], strict=True))
            ],
        )
        for row, name in enumerate(predictions.classes)
    ]


def _pairs(predictions: Predictions) -> list[Pair]:
    wrong, images = ~predictions.right, np.bincount(predictions.labels)
    # Of the wrong answers alone: a confusion matrix is classes times classes.
    pairs, counts = np.unique(
        np.stack([predictions.labels[wrong], predictions.predicted[wrong]]),
        axis=1,
        return_counts=True,
    )
    order = np.argsort(-counts, kind="stable")[:_PAIRS]
    return [
        Pair(
            predictions.classes[row],
            predictions.classes[column],
            int(count),
            float(count / images[row]),
        )
        for (row, column), count in zip(pairs.T[order], counts[order], strict=True)
    ]


def _mistakes(
    predictions: Predictions, sets: Sequence[ImageSet], views: ViewsConfig, executor: Executor
) -> list[Mistake]:
    worst = predictions.select(predictions.worst(_MISTAKES))
    labels = [predictions.classes[label] for label in worst.labels]
    wanted = dict.fromkeys(zip(worst.names, labels, strict=True))
    pictures = dict[tuple[str, str], str]()
    for images in sets:
        rows = _rows_of(images, wanted.keys() - pictures.keys())
        pictures |= _pictures(images, rows, views, executor)
    return [
        Mistake(
            name,
            label,
            predictions.classes[predicted],
            float(probability),
            pictures.get((name, label)),
        )
        for name, label, predicted, probability in zip(
            worst.names, labels, worst.predicted, worst.probability, strict=True
        )
    ]


def _rows_of(images: ImageSet, wanted: set[tuple[str, str]]) -> dict[tuple[str, str], int]:
    """The first image of each name and class."""
    if images.labels is None or not wanted:
        return {}
    names, found = {name for name, _ in wanted}, dict[tuple[str, str], int]()
    for row, (name, label) in enumerate(zip(images.names, images.labels.tolist(), strict=True)):
        if name in names and label >= 0 and (name, images.classes[label]) in wanted:
            found.setdefault((name, images.classes[label]), row)
    return found


def _pictures(
    images: ImageSet, rows: dict[tuple[str, str], int], views: ViewsConfig, executor: Executor
) -> dict[tuple[str, str], str]:
    if not rows:
        return {}
    # Larger than the encoder's view where that is small: people are to see what is on it.
    larger = replace(views, side_pixels=max(views.side_pixels, _PICTURE_PIXELS))
    centred = load_centred(images, np.array(list(rows.values())), larger, executor)
    shown = to_pixels(centred, larger)
    return {
        key: data_uri(to_picture(view, _PICTURE_PIXELS))
        for key, view in zip(rows, shown, strict=True)
    }


def reliability_curve(found: Reliability) -> str:
    """Share of right answers by their probability, beside the diagonal; SVG."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(4.4, 3.4), layout="constrained")
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=FAINT, ls="--", label="as often as it says")
        largest = found.images.max()
        axes.scatter(
            100 * found.probability,
            100 * found.accuracy,
            s=18 + 140 * found.images / largest,
            color=ACCENT,
            label="answers",
            zorder=3,
        )
        axes.set(
            xlabel="probability of the answer (%)",
            ylabel="right (%)",
            xlim=(0, 102),
            ylim=(-3, 103),
        )
        return svg(figure)
