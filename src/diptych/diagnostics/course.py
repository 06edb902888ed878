"""What the training of a run says of it, without labels."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from diptych.diagnostics.symptoms import LEAST_STEPS, WEAKER_VIEWS
from diptych.logging.metrics import TaskAccuracy, chance_of, has_choice, task_accuracy

LEAST_ACCURACY: Final = 0.1
"""At its training task, of a run that has learned it; most reach a third and more."""
TIMES_CHANCE: Final = 10.0
RISING: Final = 0.02  # of the accuracy, from one quarter of a run to the next
MORE_STABLE: Final = 1.3
"""Times the agreement of views before training, and by raw pixels, of features that are of use."""
LEAST_RANK: Final = 0.5  # of the effective rank before training


class Course(NamedTuple):
    """A judgement of a run by its training alone, and the reasons for it."""

    headline: str
    reasons: tuple[str, ...] = ()


def course_of(metrics: Sequence[Mapping[str, Any]]) -> Course:
    """Judges a run by its training, which can go as it should without a use for the features.

    - Fewer than ``LEAST_STEPS`` steps: too short to tell.
    - Over the last quarter of its lines the accuracy is below ``LEAST_ACCURACY`` or
      ``TIMES_CHANCE`` times chance (where choices are few, half of the way from chance to 100%):
      too short to tell while it rises by ``RISING`` from one quarter to the next, else the task is
      not learned.
    - Learned, from weights: whether the encoder is better than they were is not known.
    - Learned, from random weights: it looks healthy where ``_doubts`` finds nothing either.
    """
    # Not the first lines of an empty queue, where the only candidate is the right one.
    lines = [line for line in metrics if has_choice(line)]
    task = task_accuracy(lines[-1]) if lines else None
    if task is None:
        return Course("Of training there is nothing to judge by.")
    steps, chance = lines[-1]["step"], chance_of(lines[-1], task.name)
    quarter = max(1, len(lines) // 4)
    late = _mean(lines[-quarter:], task)
    before = _mean(lines[-2 * quarter : -quarter], task) if len(lines) > quarter else late
    words = (
        f"After {steps:,} step{'s' * (steps > 1)} it {task.does} {late:.1%} of its views, where "
        f"guessing does {chance:.1%}"
    )
    if steps < LEAST_STEPS:
        return Course(
            "Too short to tell.",
            (f"{words}: of fewer than {LEAST_STEPS:,} steps nothing can be said. Train longer.",),
        )
    # Where choices are few, ten times chance is more than 100%.
    wanted = min(max(LEAST_ACCURACY, TIMES_CHANCE * chance), 0.5 * (1.0 + chance))
    if late >= wanted:
        return _of_a_learned_task(metrics, words)
    if late > before + RISING:
        reason = f"{words}, {100 * (late - before):.1f} points more than before. Train longer."
        return Course("Too short to tell.", (reason,))
    return Course(
        "The run has not learned its task.",
        (
            f"{words}, and it no longer gets better. Try another --optimizer.learning-rate, or "
            f"{WEAKER_VIEWS}.",
        ),
    )


def _of_a_learned_task(metrics: Sequence[Mapping[str, Any]], words: str) -> Course:
    """Whether a run that learned its task may have learned something of use."""
    kept = next((x["start_neighbours"] for x in reversed(metrics) if "start_neighbours" in x), None)
    if kept is not None:
        return Course(
            "Training went as it should, but whether the encoder is better than the start weights "
            "is not known.",
            (
                f"{words}. Of the nearest neighbours by the start weights it kept {kept:.0%}, "
                "which does not say whether it is better.",
            ),
        )
    doubts = _doubts([line for line in metrics if "effective_rank" in line])
    if doubts:
        return Course(
            "The training task is learned, but the features may be of little use.", doubts
        )
    return Course("Training looks healthy.")


def _doubts(health: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """What speaks against a run although it learned its task."""
    if len(health) < 2:
        return ()
    first, last, found = health[0], health[-1], []
    if "stability" in last:
        stability, other = last["stability"], max(first["stability"], last["pixel_stability"])
        # Near 1, as where few images are looked among, there is no room for so much more.
        if stability < min(MORE_STABLE * other, 0.5 * (1.0 + other)):
            found.append(
                f"Two views of an image agree on {stability:.0%} of its nearest neighbours; before "
                f"training on {first['stability']:.0%}, by raw pixels on "
                f"{last['pixel_stability']:.0%}. Features that are of use agree on more. Try other "
                "views, as those of the recipe, or train longer."
            )
    if last["effective_rank"] < LEAST_RANK * first["effective_rank"]:
        found.append(
            f"The features use {last['effective_rank']:.1f} directions, and used "
            f"{first['effective_rank']:.1f} before training. Try a lower --optimizer.learning-rate."
        )
    return tuple(found)


def _mean(lines: Sequence[Mapping[str, Any]], task: TaskAccuracy) -> float:
    return fmean(line[task.name] for line in lines)
