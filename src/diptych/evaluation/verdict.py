"""A run in words: what it learned, how sure that is, what to try next."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from diptych.evaluation.conclusions import (
    conclusions,
    decisive_probe,
    headline,
    without_probe,
)
from diptych.evaluation.symptoms import LEAST_STEPS, chance_accuracy, find_symptoms, has_choice

LEAST_FOUND: Final = 0.1
"""Share of its keys that a run finds which has learned to; most find a third and more."""
TIMES_CHANCE: Final = 10.0
RISING: Final = 0.02  # share of the keys, from one quarter of a run to the next

_UNKNOWN: Final = "Without labels, how useful the features are is not known."


class Verdict(NamedTuple):
    """A headline and a few sentences that explain it."""

    headline: str
    sentences: tuple[str, ...]


def judge(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
) -> Verdict:
    """Says what the figures of a run mean.

    With labels the accuracies decide. Without, the course of training does, see ``Course``.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        evaluation: ``evaluation.json``, or None without labels.
    """
    sentences = [*_about_training(metrics)]
    alarms = [s.sentence for s in find_symptoms(metrics, dictionary_size=None) if s.alarming]
    probe = None if evaluation is None else decisive_probe(evaluation)
    if evaluation is not None and probe is not None:
        explained = conclusions(evaluation, probe)
        head = headline(evaluation, probe)
        return Verdict(head, (explained[0], *alarms, *explained[1:], *sentences))
    known = [] if evaluation is None else without_probe(evaluation)
    course = course_of(metrics)
    head = "Something is wrong with this run." if alarms else course.headline
    if known:
        ask = "To measure the frozen features as well: diptych evaluate RUN --protocol knn linear."
    else:
        head = head if alarms else f"{head} {_UNKNOWN}"
        ask = (
            "To measure the features, give labelled images: diptych evaluate RUN --train PATH "
            "--test PATH."
        )
    return Verdict(head, (*known, *alarms, *course.reasons, *sentences, ask))


class Course(NamedTuple):
    """How training went by itself: what it says of the run, and why."""

    headline: str
    reasons: tuple[str, ...] = ()


def course_of(metrics: Sequence[Mapping[str, Any]]) -> Course:
    """Judges a run by the steps that it took and by how its pretext accuracy went.

    - Fewer than ``LEAST_STEPS`` steps: too short to tell.
    - Over the last quarter of its lines a run finds at least ``LEAST_FOUND`` of its keys and
      ``TIMES_CHANCE`` times what guessing finds, or comes half of the way from guessing to all:
      it has learned its task, and looks healthy.
    - Less, but more than in the quarter before by ``RISING``: too short to tell.
    - Less, and no longer rising: it has not learned its task.
    """
    lines = [line for line in metrics if has_choice(line)]
    if not lines:
        return Course("Of training there is nothing to judge by.")
    steps, chance = lines[-1]["step"], chance_accuracy(lines[-1])
    quarter = max(1, len(lines) // 4)
    late = _found(lines[-quarter:])
    before = _found(lines[-2 * quarter : -quarter]) if len(lines) > quarter else late
    task = "names the teacher's class of" if "classes" in lines[-1] else "finds the key of"
    words = (
        f"After {steps:,} step{'s' * (steps > 1)} it {task} {late:.1%} of its views, where "
        f"guessing does {chance:.1%}"
    )
    if steps < LEAST_STEPS:
        return Course(
            "Too short to tell.",
            (f"{words}: of fewer than {LEAST_STEPS:,} steps nothing can be said. Train longer.",),
        )
    wanted = min(max(LEAST_FOUND, TIMES_CHANCE * chance), 0.5 * (1.0 + chance))
    if late >= wanted:
        return Course("Training looks healthy.")
    if late > before + RISING:
        reason = f"{words}, {100 * (late - before):.1f} points more than before. Train longer."
        return Course("Too short to tell.", (reason,))
    return Course(
        "The run has not learned its task.",
        (
            f"{words}, and it no longer gets better. Try another --optimizer.learning-rate, or "
            "weaker views (--views.strength 0.5).",
        ),
    )


def _found(lines: Sequence[Mapping[str, Any]]) -> float:
    return fmean(line["accuracy"] for line in lines)


def _about_loss(last: Mapping[str, Any]) -> str:
    begin = f"The loss ended at {last['loss']:.2f}, where guessing among "
    if "classes" in last:  # a student's
        return begin + (
            f"{last['classes']:.0f} classes gives {last['chance']:.2f}; on {last['accuracy']:.0%} "
            "of the views student and teacher name the same class."
        )
    if not has_choice(last):
        return f"The loss ended at {last['loss']:.2f}; no query had a choice of keys."
    return begin + (
        f"{last['candidates']:,} candidates gives {last['chance']:.2f}; {last['accuracy']:.0%} of "
        "the queries found their own key first."
    )


def _about_training(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    if not metrics:
        return []
    last = metrics[-1]
    sentences = [_about_loss(last)]
    ranks = [line["effective_rank"] for line in metrics if "effective_rank" in line]
    if len(ranks) >= 2:
        sentences.append(
            f"The features use about {ranks[-1]:.0f} directions ({ranks[0]:.0f} at the first "
            "measurement)."
        )
    halfway = metrics[len(metrics) // 2]
    scores = [(line["step"], line["knn"]) for line in metrics if "knn" in line]
    late = [score for step, score in scores if step >= halfway["step"]]
    if len(late) >= 3 and late[-1] - late[0] > _told_apart(late[-1], last):
        sentences.append("kNN accuracy was still rising at the end: a longer run should gain more.")
    return sentences


def _told_apart(share: float, line: Mapping[str, Any]) -> float:
    """By how much two shares of the images of kNN must differ: 1%, and two standard errors."""
    images = line.get("knn_images", math.inf)
    return max(0.01, 2.0 * math.sqrt(share * (1.0 - share) / images))
