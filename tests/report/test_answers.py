"""What a classifier answers, as a part of a page."""

import tracemalloc
from collections import Counter
from concurrent.futures import Executor

import numpy as np
import pytest

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.evaluation.predictions import Predictions
from diptych.images.collection import ImageSet
from diptych.images.open import from_array
from diptych.report.answers import Pair, _pairs, answers_of
from diptych.report.page import template

VIEWS = ViewsConfig(side_pixels=16)


def images(classes: int, each: int, rng: np.random.Generator) -> ImageSet:
    pixels = rng.integers(0, 256, (classes * each, 20, 24, 3), dtype=np.uint8)
    labels = np.repeat(np.arange(classes), each)
    return from_array(pixels, labels, ImagesConfig())


def said_of(shown: ImageSet, answers: list[int], sure: list[float]) -> Predictions:
    count, labels = len(shown.classes), shown.labels
    assert labels is not None
    chances = np.full((len(shown), count), 0.0)
    for row, (answer, probability) in enumerate(zip(answers, sure, strict=True)):
        chances[row] = (1 - probability) / (count - 1)
        chances[row, answer] = probability
    return Predictions.of(list(shown.names), shown.classes, labels, chances)


def test_counts_pairs_and_mistakes_with_their_pictures(
    rng: np.random.Generator, executor: Executor
) -> None:
    shown = images(3, 2, rng)
    said = said_of(shown, [0, 1, 1, 1, 0, 0], [0.9, 0.6, 0.8, 0.7, 0.5, 0.95])
    found = answers_of(said, [shown], VIEWS, executor)
    assert (found.images, found.wrong, found.top) == (6, 3, None)
    assert [[cell.images for cell in cells] for _, cells in found.confusion] == [
        [1, 1, 0],
        [0, 2, 0],
        [2, 0, 0],
    ]
    assert [one.name for one in found.classes] == ["2", "0", "1"]  # the worst first
    assert found.classes[0].meant is None
    assert (found.pairs[0].label, found.pairs[0].predicted, found.pairs[0].images) == ("2", "0", 2)
    assert [one.name for one in found.mistakes] == ["5", "1", "4"]  # the surest first
    assert len({one.uri for one in found.mistakes}) == 3
    assert all(one.uri is not None for one in found.mistakes)
    # Of a set without the images, and of one where another class has the names, no picture.
    for other in ([], [images(2, 1, rng)]):
        again = answers_of(said, other, VIEWS, executor)
        assert {one.uri for one in again.mistakes if one.name in ("4", "5")} == {None}


def test_the_pairs_confused_most_are_counted_without_a_matrix(rng: np.random.Generator) -> None:
    count, classes = 6000, tuple(map(str, range(2000)))
    labels = (2000 * rng.random(count) ** 6).astype(np.int64)
    predicted = np.where(
        rng.random(count) < 0.4, labels, (2000 * rng.random(count) ** 6).astype(int)
    )
    sure = np.ones(count)
    said = Predictions([""] * count, classes, labels, predicted, sure, sure, sure.astype(np.int64))
    tracemalloc.start()
    found = _pairs(said)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < len(classes) ** 2  # bytes
    both = [(a, b) for a, b in zip(labels.tolist(), predicted.tolist(), strict=True) if a != b]
    times, images = Counter(both), Counter(labels.tolist())
    most = sorted(times, key=lambda pair: (-times[pair], pair))[:10]
    assert times[most[0]] > times[most[9]]
    assert found == [
        Pair(classes[a], classes[b], times[a, b], times[a, b] / images[a]) for a, b in most
    ]
    assert _pairs(said.select(np.flatnonzero(said.right))) == []


@pytest.mark.parametrize("classes", [3, 40])
def test_the_part_escapes_names_and_has_no_table_that_is_too_large(
    classes: int, rng: np.random.Generator, executor: Executor
) -> None:
    shown = images(classes, 1, rng)
    answers = [(row + 1) % classes for row in range(classes)]
    said = said_of(shown, answers, [0.9] * classes)
    named = Predictions(
        said.names,
        tuple(f"<u>{name}" for name in said.classes),
        said.labels,
        said.predicted,
        said.probability,
        said.label_probability,
        said.label_rank,
    )
    found = answers_of(named, [], VIEWS, executor)
    page = template("answers.html.jinja").render(
        answers=found, answers_title="", answers_calibration=""
    )
    assert "<u>2" not in page
    assert "&lt;u&gt;2" in page
    assert ('class="confusion"' in page) == (classes == 3)
    assert ("confused most" in page) == (classes == 40)
    assert ("five most probable" in page) == (classes == 40)
