"""What a classifier says of images, how sure it is, and how often it is right; as a table on disk.

Probabilities are calibrated by one number, the temperature that scores are divided by (Guo et al.
2017, *On Calibration of Modern Neural Networks*, 1706.04599, section 4.2): it changes no answer,
and makes what is said to be 80% sure right in about 80% of the cases.
"""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.errors import RunFolderError
from diptych.escaping import HANDLER, escaped, unescaped
from diptych.evaluation.confidence import Interval, accuracy_of, estimate, mean_per_class
from diptych.runs.atomic import atomic_write

PREDICTIONS: Final = "predictions"
"""Under which a protocol of ``evaluate`` gives its own, which go to a table beside the figures."""

TOP: Final = 5
"""Answers of which one must be right, for the figure of that name."""

MANY_CLASSES: Final = 2 * TOP
"""From which on that figure says something."""

COLUMNS: Final = ("name", "label", "predicted", "probability", "label_probability", "label_rank")
"""Of a table of predictions; behind them, of few classes, one for the probability of each."""

MOST_COLUMNS: Final = 100
"""Classes, above which a table has no column for each."""

_BINS: Final = 10
_SHARPEST: Final = 100.0  # times, by which scores may be multiplied or divided


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers on images, with their labels where these are known.

    Attributes:
        names: of the images.
        classes: names of the classes.
        labels: int64 (images,), positions in ``classes``; -1 where none is known.
        predicted: int64 (images,), the most probable class.
        probability: (images,), of that class.
        label_probability: (images,), of the labels; NaN where none is known.
        label_rank: int64 (images,), how many classes are at least as probable as the label, itself
            included: 1 where the answer is right; 0 where no label is known.
    """

    names: Sequence[str]
    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    probability: NDArray[np.float64]
    label_probability: NDArray[np.float64]
    label_rank: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        classes: tuple[str, ...],
        labels: NDArray[np.int64],
        probabilities: NDArray[np.float64],
    ) -> "Predictions":
        """From the probability of every class, (images, classes); labels may be -1."""
        return cls.of_blocks(names, classes, labels, [probabilities])

    @classmethod
    def of_blocks(
        cls,
        names: Sequence[str],
        classes: tuple[str, ...],
        labels: NDArray[np.int64],
        blocks: Iterable[NDArray[np.float64]],
    ) -> "Predictions":
        """The same, where only the probabilities of some images, (some, classes), are held at once.

        Args:
            names: of all images.
            classes: names of the classes.
            labels: (images,), or -1.
            blocks: the probabilities of the first images, then of the next ones.
        """
        found, done = list[tuple[NDArray[Any], ...]](), 0
        for probabilities in blocks:
            found.append(_answers(labels[done : done + len(probabilities)], probabilities))
            done += len(probabilities)
        return cls(names, classes, labels, *map(np.concatenate, zip(*found, strict=True)))

    def __len__(self) -> int:
        return len(self.labels)

    def labelled(self) -> "Predictions":
        """Those of images whose label is known."""
        rows = np.flatnonzero(self.labels >= 0)
        return self if len(rows) == len(self) else self.select(rows)

    def select(self, rows: NDArray[np.int64]) -> "Predictions":
        """Some of them."""
        return Predictions(
            [self.names[row] for row in rows],
            self.classes,
            self.labels[rows],
            self.predicted[rows],
            self.probability[rows],
            self.label_probability[rows],
            self.label_rank[rows],
        )

    @property
    def right(self) -> NDArray[np.bool_]:
        """(images,), whether each answer is the label."""
        return self.predicted == self.labels

    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes): images of the class of the row that are taken for the column's."""
        count = len(self.classes)
        places = self.labels * count + self.predicted
        return np.bincount(places, minlength=count * count).reshape(count, count)

    def worst(self, most: int) -> NDArray[np.int64]:
        """Rows of wrong answers, the surest first; at most so many."""
        wrong = np.flatnonzero(~self.right)
        order = np.argsort(-self.probability[wrong], kind="stable")
        return wrong[order[:most]]


class ClassFigures(NamedTuple):
    """How well one class is told.

    Attributes:
        name: of the class.
        images: of it.
        found: share of them that are taken for it (recall).
        meant: share of the images taken for it that are of it (precision); None for none.
    """

    name: str
    images: int
    found: float
    meant: float | None


class Reliability(NamedTuple):
    """How often answers of about the same probability are right.

    Attributes:
        probability: mean of each bin with images.
        accuracy: share of its answers that are right.
        images: in it.
        error: the mean gap, weighted by images (expected calibration error; Guo et al., section 2).
    """

    probability: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    images: NDArray[np.int64]
    error: float


def _answers(
    labels: NDArray[np.int64], probabilities: NDArray[np.float64]
) -> tuple[NDArray[Any], ...]:
    """The columns of ``Predictions`` behind the labels, (images,) each."""
    rows, known = np.arange(len(labels)), labels >= 0
    of_label = np.where(known, probabilities[rows, np.maximum(labels, 0)], np.nan)
    predicted = probabilities.argmax(axis=1)
    above = (probabilities >= np.nan_to_num(of_label, nan=2.0)[:, None]).sum(axis=1)
    # The first of several that are equally probable is the answer, and is right.
    rank = np.where(known, np.where(predicted == labels, 1, np.maximum(above, 2)), 0)
    return predicted, probabilities[rows, predicted], of_label, rank


def accuracy_interval(predictions: Predictions, units: NDArray[np.int64] | None = None) -> Interval:
    """Share of right answers, with the range over resampled images.

    Args:
        predictions: with labels.
        units: (images,), of images that are drawn together; see ``estimate``.
    """
    return estimate(accuracy_of(predictions.right), len(predictions), units=units).interval()


def mean_per_class_interval(
    predictions: Predictions, units: NDArray[np.int64] | None = None
) -> Interval:
    """Mean over classes of the share that is found; as ``accuracy_interval``."""
    figure = mean_per_class(predictions.predicted, predictions.labels)
    return estimate(figure, len(predictions), units=units).interval()


def figures_of(predictions: Predictions, units: NDArray[np.int64] | None = None) -> dict[str, Any]:
    """Accuracy, mean per class and of five answers, and the calibration error, for JSON.

    Args:
        predictions: with labels.
        units: (images,), of images that are drawn together; see ``estimate``.
    """
    found: dict[str, Any] = {
        "images": len(predictions),
        "accuracy": accuracy_interval(predictions, units).as_dict(),
        "mean_per_class": mean_per_class_interval(predictions, units).as_dict(),
        "calibration_error": reliability(predictions).error,
    }
    if len(predictions.classes) >= MANY_CLASSES:
        found[f"top_{TOP}"] = float((predictions.label_rank <= TOP).mean())
    return found


def per_class(predictions: Predictions) -> list[ClassFigures]:
    """Of each class that images are of."""
    labels, count = predictions.labels, len(predictions.classes)
    # Not from the confusion matrix, which is classes times classes.
    images, taken, right = (
        np.bincount(some, minlength=count)
        for some in (labels, predictions.predicted, labels[predictions.right])
    )
    return [
        ClassFigures(
            name,
            int(images[row]),
            float(right[row] / images[row]),
            float(right[row] / taken[row]) if taken[row] else None,
        )
        for row, name in enumerate(predictions.classes)
        if images[row]
    ]


def reliability(predictions: Predictions, bins: int = _BINS) -> Reliability:
    """By the probability of the answers, in bins of equal width."""
    place = np.minimum((predictions.probability * bins).astype(np.int64), bins - 1)
    images = np.bincount(place, minlength=bins)
    full = images > 0
    said, right = (
        np.bincount(place, weights=values, minlength=bins)[full] / images[full]
        for values in (predictions.probability, predictions.right.astype(np.float64))
    )
    error = float((images[full] * np.abs(said - right)).sum() / len(predictions))
    return Reliability(said, right, images[full], error)


def softmax(scores: NDArray[np.float64], temperature: float = 1.0) -> NDArray[np.float64]:
    """(images, classes) scores to probabilities, in float64."""
    divided = scores / temperature
    found: NDArray[np.float64] = np.exp(divided - divided.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)


def fit_temperature(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The temperature with the least mean negative log-likelihood of labels.

    Args:
        scores: (images, classes), of images that the classifier was not fitted on.
        labels: (images,); with no images the temperature is 1.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import logsumexp

    if not len(labels):
        return 1.0
    rows = np.arange(len(labels))

    # Convex in 1 / temperature, and so with one minimum in its logarithm.
    def loss(log_sharpness: float) -> float:
        scaled = np.exp(log_sharpness) * scores
        return float((logsumexp(scaled, axis=1) - scaled[rows, labels]).mean())

    most = float(np.log(_SHARPEST))
    found = minimize_scalar(loss, bounds=(-most, most), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(-found.x))


def write_predictions(
    path: Path, predictions: Predictions, probabilities: NDArray[np.float64] | None = None
) -> None:
    """Writes a table; with the probability of each class where these are given and few.

    Raises:
        OSError: it cannot be written.
    """
    few = probabilities is not None and len(predictions.classes) <= MOST_COLUMNS
    text = io.StringIO()
    writer = csv.writer(text)
    more = [f"p({name})" for name in predictions.classes] if few else []
    writer.writerow([*COLUMNS, *map(escaped, more)])
    for row in range(len(predictions)):
        cells = _cells(predictions, row)
        if few and probabilities is not None:
            cells += [f"{one:.6f}" for one in probabilities[row]]
        writer.writerow(cells)
    atomic_write(path, text.getvalue().encode(errors=HANDLER))


def _cells(predictions: Predictions, row: int) -> list[str]:
    label = int(predictions.labels[row])
    known = label >= 0
    return [
        escaped(predictions.names[row]),
        escaped(predictions.classes[label]) if known else "",
        escaped(predictions.classes[int(predictions.predicted[row])]),
        f"{predictions.probability[row]:.6f}",
        f"{predictions.label_probability[row]:.6f}" if known else "",
        str(predictions.label_rank[row]) if known else "",
    ]


def read_predictions(path: Path) -> Predictions | None:
    """Reads a table; None where there is none. Classes are those that occur, by name.

    Raises:
        RunFolderError: it is damaged.
    """
    if not path.exists():
        return None
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, strict=True))
        return _of_rows(rows)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise RunFolderError(
            f"{path} is no table of predictions: {error}. Delete it, or evaluate again."
        ) from error


def _of_rows(rows: list[dict[str, str]]) -> Predictions:
    label, predicted = ([unescaped(row[key]) for row in rows] for key in ("label", "predicted"))
    classes = tuple(sorted({*label, *predicted} - {""}))
    number = {name: place for place, name in enumerate(classes)}

    def numbers(key: str) -> NDArray[np.float64]:
        found = np.array([float(row[key] or "nan") for row in rows])
        if ((found < 0) | np.isinf(found)).any():
            raise ValueError(f"the column {key!r} holds numbers that are none of its kind")
        return found

    probability = numbers("probability")
    if not len(rows) or np.isnan(probability).any() or (probability > 1).any():
        raise ValueError("wanted rows with a probability from 0 to 1 each")
    return Predictions(
        [unescaped(row["name"]) for row in rows],
        classes,
        np.array([number.get(name, -1) for name in label], dtype=np.int64),
        np.array([number[name] for name in predicted], dtype=np.int64),
        probability,
        numbers("label_probability"),
        np.nan_to_num(numbers("label_rank")).astype(np.int64),
    )
