"""Symptoms in the metrics of a run: plain sentences on what is wrong, or only looks wrong."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

from diptych.diagnostics.candidates import NEIGHBOURS_KEPT
from diptych.diagnostics.collapsed_prototypes import collapsed_prototypes
from diptych.logging.metrics import (
    PRETEXT_ACCURACY,
    RETRIEVAL_ACCURACY,
    chance_of,
    task_accuracy,
)
from diptych.logging.progress import Symptom

COLLAPSES: Final = frozenset({"collapse", "projections_collapsed", "prototypes_collapsed"})
"""Symptoms by which all images look alike to some part of the network."""
LEAST_STEPS: Final = 500
"""Before, a loss at chance proves nothing: warm-up and the filling of a queue take their time."""
COLLAPSED_RANK: Final = 2.0
COLLAPSED_STD: Final = 0.4
"""Of the spread of projections at the start of a run, below which they have collapsed."""
COLLAPSED_DIRECTIONS: Final = 1.8
"""Of projections, below which they have where their spread is below ``FALLEN_STD`` of the start."""
FALLEN_STD: Final = 0.7
_LINES_OF_COLLAPSE: Final = 2  # whose mean counts: one batch may be spread less than the next
_FEW_CONTENTS: Final = 0.5  # of the images; below, most of them are copies
AT_CHANCE: Final = 0.02  # of the chance level
OVER_CHANCE: Final = 3.0
"""Times the chance level, below which a retrieval accuracy is no better than guessing."""
_LINES_OF_RETRIEVAL: Final = 5  # whose mean counts: of one batch chance finds a few
_CANDIDATES: Final = 32  # fewer, and thrice the chance level is no low accuracy
SHORTCUT_ACCURACY: Final = 0.98
WEAKER_VIEWS: Final = (
    "weaker views: larger crops, or half the run's views.strength (config.toml has both)"
)
NO_ROOM: Final = 0.98
"""kNN accuracy before training above which hardly anything is left to gain."""
_CLEARLY_BETTER: Final = 0.02  # of kNN accuracy, on the few hundred images of a measurement


def find_symptoms(
    metrics: Sequence[Mapping[str, Any]], *, dictionary_size: int | None
) -> list[Symptom]:
    """Reads the metrics so far, oldest first.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        dictionary_size: keys that a query meets once queue or bank is full; None for a batch.
    """
    if not metrics:
        return []
    last = metrics[-1]
    health = [line for line in metrics if "effective_rank" in line]
    return [
        *_copies(health),
        *_filling(last, dictionary_size),
        *(_collapsed_projections(metrics) or _retrieves_at_chance(metrics)),
        *collapsed_prototypes(metrics),
        *(_collapsed_features(health) or _at_chance(last)),
        *_lost_start(health),
        *_shortcut(last, health),
    ]


def _copies(health: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    if not health or not _are_copies(health[-1]):
        return []
    return [
        Symptom(
            "copies",
            True,
            f"Of {health[-1]['rank_images']:,.0f} images that were looked at, only "
            f"{health[-1]['rank_contents']:,.0f} differ: the others are copies, which the "
            "training task asks to tell from each other. Remove them, or give other images.",
        )
    ]


def _filling(last: Mapping[str, Any], dictionary_size: int | None) -> list[Symptom]:
    keys = last.get("candidates", 1) - 1
    if dictionary_size is None or keys >= dictionary_size:
        return []
    return [
        Symptom(
            "dictionary_filling",
            False,
            f"The dictionary is filling ({keys:,.0f} of {dictionary_size:,} "
            "keys): loss and chance level rise together until it is full. This is normal.",
        )
    ]


def _collapsed_features(health: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    if not health or _are_copies(health[-1]) or not _is_collapsed(health[-1]):
        return []
    return [
        Symptom(
            "collapse",
            True,
            f"The features have collapsed: their effective rank is "
            f"{health[-1]['effective_rank']:.1f}, so all images look alike to the encoder. Try "
            "a lower --optimizer.learning-rate or a longer --schedule.warmup-epochs.",
        )
    ]


def _at_chance(last: Mapping[str, Any]) -> list[Symptom]:
    if last["epoch"] < 1 or last["step"] < LEAST_STEPS or not _is_at_chance(last):
        return []
    return [
        Symptom(
            "at_chance",
            True,
            f"The loss ({last['loss']:.2f}) is still at chance ({last['chance_loss']:.2f}): "
            "the encoder cannot tell one image from another. Try another "
            f"--optimizer.learning-rate, or {WEAKER_VIEWS}.",
        )
    ]


def _retrieves_at_chance(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Of a method without negatives, whose loss has no level of chance.

    In the study `negatives` runs that learn find the other view 5 times as often as chance and more
    after 300 steps; a network whose projections differ in one or two directions never learns to.
    """
    name = RETRIEVAL_ACCURACY.name
    lines = [line for line in metrics if name in line and line["step"] >= LEAST_STEPS]
    lines = lines[-_LINES_OF_RETRIEVAL:]
    if len(lines) < _LINES_OF_RETRIEVAL or lines[0]["epoch"] < 1:
        return []
    found = statistics.fmean(line[name] for line in lines)
    chance = chance_of(lines[-1], name)
    if chance > 1 / _CANDIDATES or found >= OVER_CHANCE * chance:
        return []
    return [
        Symptom(
            "retrieval_at_chance",
            True,
            f"The other view of an image is found for {found:.1%} of them, where guessing finds "
            f"{chance:.1%}: the encoder does not tell images apart. Try a smaller --batch-size, "
            "for more steps in an epoch, with a lower --optimizer.learning-rate, or a method with "
            "negatives (--recipe simclr).",
        )
    ]


def _shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    task = task_accuracy(last)
    if task is None or not _is_shortcut(last, health):
        return []
    return [
        Symptom(
            "shortcut",
            True,
            f"The {task.name.replace('_', ' ')} is {last[task.name]:.0%}, yet kNN accuracy has "
            "not risen: the encoder may match views by a shortcut, such as colour or batch "
            "statistics. Try stronger views: smaller crops, or twice the run's views.strength "
            "(config.toml has both).",
        )
    ]


def _collapsed_projections(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Of a method without negatives: whether the projections of a batch have become alike.

    They do so within some ten steps, long before the features. The spread is compared with that of
    the start: without batch norm a network begins with projections that are hardly spread. In the
    study `negatives` runs that learn keep 0.42 of it and more, SwAV's the least, and runs without
    what keeps images apart are below 0.4 within 70 steps. What is on a line keeps some, with norms.
    """
    start, *lines = [line for line in metrics if "projection_std" in line] or [{}]
    if len(lines) < _LINES_OF_COLLAPSE:
        return []
    before = start["projection_std"]
    std, rank = (
        statistics.fmean(line[name] for line in lines[-_LINES_OF_COLLAPSE:])
        for name in ("projection_std", "projection_rank")
    )
    on_a_line = rank < COLLAPSED_DIRECTIONS and std < FALLEN_STD * before
    if not (std < COLLAPSED_STD * before or on_a_line):
        return []
    return [
        Symptom(
            "projections_collapsed",
            True,
            f"The projections have collapsed: their spread is {std:.2f} (1 where directions are "
            f"even, {before:.2f} at the start) in about {rank:.1f} directions. "
            "What keeps images apart is missing or too weak: a predictor "
            "(--head.predictor-layers 2), the stop-gradient, a variance term; or the learning rate "
            "is too high.",
        )
    ]


def _is_collapsed(line: Mapping[str, Any]) -> bool:
    """Of few images the rank is low anyway: without their mean they span one direction less."""
    most = line.get("rank_images", math.inf) - 1
    return bool(line["effective_rank"] < min(COLLAPSED_RANK, most / 2))


def _are_copies(line: Mapping[str, Any]) -> bool:
    """Whether so many images are copies that the rest says little about the encoder."""
    contents = line.get("rank_contents", line.get("rank_images", 1.0))
    return bool(contents <= _FEW_CONTENTS * line.get("rank_images", 1.0))


def _is_at_chance(last: Mapping[str, Any]) -> bool:
    """Whether the loss is near that of equal scores; where that is 0, nothing can be concluded."""
    chance = last.get("chance_loss", 0.0)
    return bool(chance > 0 and last["loss"] > (1 - AT_CHANCE) * chance)


def _lost_start(health: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Of a run from weights: whether few nearest neighbours are as by these."""
    kept = next((x["start_neighbours"] for x in reversed(health) if "start_neighbours" in x), 1.0)
    scores = [line["knn"] for line in health if "knn" in line]
    better = bool(scores) and scores[-1] >= scores[0] + _CLEARLY_BETTER  # as labels tell
    if kept >= NEIGHBOURS_KEPT or better:
        return []
    return [
        Symptom(
            "start_lost",
            True,
            f"Of the nearest neighbours of an image by the start weights only {kept:.0%} are "
            "left: what they knew may be lost. Try a tenth of --optimizer.learning-rate, or "
            "weaker views, and compare with the start weights by `diptych evaluate`.",
        )
    ]


def _is_shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> bool:
    """Whether views are matched while kNN accuracy, which could have risen, has not."""
    scores = [line["knn"] for line in health if "knn" in line]
    task = task_accuracy(last)
    # Where guessing is right so often, a high accuracy needs no shortcut.
    if task not in (PRETEXT_ACCURACY, RETRIEVAL_ACCURACY) or chance_of(last, task.name) >= 1 / 64:
        return False
    if last[task.name] < SHORTCUT_ACCURACY or len(scores) < 2:
        return False
    return bool(scores[-1] <= scores[0] < NO_ROOM)
