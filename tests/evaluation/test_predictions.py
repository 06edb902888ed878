"""Predictions: figures against scikit-learn and hand-made cases, and their table on disk."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_score, recall_score, top_k_accuracy_score

from diptych.errors import RunFolderError
from diptych.evaluation.predictions import (
    Predictions,
    figures_of,
    fit_temperature,
    per_class,
    read_predictions,
    reliability,
    softmax,
    write_predictions,
)

CLASSES = tuple("abcdefghijkl")


def drawn(
    rng: np.random.Generator, count: int, sharpness: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Scores, and labels that are drawn by the probabilities that these mean."""
    scores = rng.normal(0, 2, (count, len(CLASSES)))
    chances = softmax(scores)
    labels = np.array([rng.choice(len(CLASSES), p=one) for one in chances])
    return sharpness * scores, labels


@pytest.fixture
def some(rng: np.random.Generator) -> tuple[Predictions, NDArray[np.float64], NDArray[np.int64]]:
    scores, labels = drawn(rng, 400)
    names = [f"{number}.png" for number in range(400)]
    return Predictions.of(names, CLASSES, labels, softmax(scores)), softmax(scores), labels


def test_figures_equal_scikit_learns(
    some: tuple[Predictions, NDArray[np.float64], NDArray[np.int64]],
) -> None:
    said, chances, labels = some
    answers = chances.argmax(axis=1)
    assert said.confusion().tolist() == confusion_matrix(labels, answers).tolist()
    found = per_class(said)
    recall, precision = (
        figure(labels, answers, average=None) for figure in (recall_score, precision_score)
    )
    assert [one.found for one in found] == pytest.approx(recall)
    assert [one.meant for one in found] == pytest.approx(precision)
    figures = figures_of(said)
    assert figures["accuracy"]["value"] == pytest.approx(float((answers == labels).mean()))
    assert figures["top_5"] == pytest.approx(top_k_accuracy_score(labels, chances, k=5))


def test_in_blocks_it_is_what_it_is_at_once(rng: np.random.Generator) -> None:
    chances = softmax(np.round(rng.normal(size=(90, 12)), 1))  # with ties
    labels = rng.integers(-1, 12, 90)
    names = [""] * 90
    whole = Predictions.of(names, CLASSES, labels, chances)
    parts = (chances[begin : begin + 40] for begin in range(0, 90, 40))
    blocks = Predictions.of_blocks(names, CLASSES, labels, parts)
    for name in ("predicted", "probability", "label_probability", "label_rank"):
        np.testing.assert_array_equal(getattr(blocks, name), getattr(whole, name))


def test_figures_of_frames_have_the_interval_of_their_videos(rng: np.random.Generator) -> None:
    videos, labels = np.repeat(np.arange(50), 8), np.repeat(np.arange(50) % 2, 8)
    right = (rng.random(50) < 0.7)[videos]
    said = np.where(right, labels, 1 - labels)
    frames = Predictions.of([""] * 400, ("a", "b"), labels, np.eye(2)[said])
    once = Predictions.of([""] * 50, ("a", "b"), labels[::8], np.eye(2)[said[::8]])
    for name in ("accuracy", "mean_per_class"):
        assert figures_of(frames, videos)[name] == pytest.approx(figures_of(once)[name])
        assert figures_of(frames)[name]["low"] > figures_of(once)[name]["low"] + 0.05


def test_class_by_class_it_holds_no_matrix_of_classes(rng: np.random.Generator) -> None:
    count = 2000
    classes = tuple(map(str, range(count)))
    labels, sure = rng.integers(0, count, count), rng.random(count)
    predicted = np.where(rng.random(count) < 0.5, labels, rng.integers(0, count, count))
    said = Predictions([""] * count, classes, labels, predicted, sure, sure, sure.astype(np.int64))
    tracemalloc.start()
    found = per_class(said)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < count**2  # bytes; a matrix of counts has eight times as many
    wanted = []
    for row, name in enumerate(classes):
        images, named = labels == row, predicted == row
        if images.any():
            both = int((images & named).sum())
            meant = both / named.sum() if named.any() else None
            wanted.append((name, int(images.sum()), both / images.sum(), meant))
    assert [tuple(one) for one in found] == wanted


def test_reliability_equals_a_plain_loop(
    some: tuple[Predictions, NDArray[np.float64], NDArray[np.int64]],
) -> None:
    said, chances, labels = some
    largest, error = chances.max(axis=1), 0.0
    right = chances.argmax(axis=1) == labels
    for low in np.arange(10) / 10:
        inside = (largest >= low) & ((largest < low + 0.1) | ((low == 0.9) & (largest == 1)))
        if inside.any():
            error += inside.mean() * abs(largest[inside].mean() - right[inside].mean())
    assert reliability(said).error == pytest.approx(error)
    assert reliability(said).images.sum() == len(said)


@pytest.mark.parametrize("sharpness", [0.2, 1.0, 5.0])
def test_the_temperature_undoes_scores_that_are_too_sharp_or_too_flat(
    sharpness: float, rng: np.random.Generator
) -> None:
    scores, labels = drawn(rng, 3000, sharpness)
    temperature = fit_temperature(scores, labels)
    assert temperature == pytest.approx(sharpness, rel=0.08)
    chances = softmax(scores, temperature)
    said = Predictions.of([""] * len(labels), CLASSES, labels, chances)
    assert reliability(said).error < 0.04
    losses = [
        -np.log(softmax(scores, one)[np.arange(len(labels)), labels]).mean()
        for one in (0.98 * temperature, temperature, 1.02 * temperature)
    ]
    assert losses[1] == min(losses)
    assert fit_temperature(scores[:0], labels[:0]) == 1.0


def test_the_worst_mistakes_come_first_and_ties_are_the_answer() -> None:
    chances = np.array([[0.5, 0.5], [0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7]])
    said = Predictions.of(list("vwxyz"), ("a", "b"), np.array([1, 1, 0, 1, -1]), chances)
    assert said.predicted.tolist() == [0, 0, 1, 1, 1]
    assert said.label_rank.tolist() == [2, 2, 2, 1, 0]
    assert np.isnan(said.label_probability[4])
    known = said.labelled()
    assert known.names == ["v", "w", "x", "y"]
    assert known.worst(2).tolist() == [1, 2]
    assert len(said.labelled().labelled()) == 4


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    names = ["a,b.png", "K\udcf6ln.png", "line\nbreak.png"]
    chances = np.array([[0.7, 0.3], [0.25, 0.75], [0.5, 0.5]])
    said = Predictions.of(names, ("=1+1", "ü"), np.array([0, 0, -1]), chances)
    write_predictions(tmp_path / "p.csv", said, chances)
    again = read_predictions(tmp_path / "p.csv")
    assert again is not None
    assert list(again.names) == names
    assert again.classes == said.classes
    for name in ("labels", "predicted", "probability", "label_probability", "label_rank"):
        np.testing.assert_array_equal(getattr(again, name), getattr(said, name))
    assert read_predictions(tmp_path / "none.csv") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name,label\na,b\n",
        "name,label,predicted,probability,label_probability,label_rank\na,b,c,2,0.1,1\n",
        "name,label,predicted,probability,label_probability,label_rank\na,b,c,nan,0.1,1\n",
        "name,label,predicted,probability,label_probability,label_rank\na,b,c,0.5,0.1,inf\n",
        "name,label,predicted,probability,label_probability,label_rank\na,b,c\n",
    ],
)
def test_a_damaged_table_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text(text)
    with pytest.raises(RunFolderError, match="no table of predictions"):
        read_predictions(tmp_path / "p.csv")
