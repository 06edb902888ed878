"""Plain sentences on what the curves of a run show: what is wrong, and what only looks so."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

from diptych.logging.metrics import PRETEXT_ACCURACY, chance_of
from diptych.logging.progress import Symptom
from diptych.logging.times import NOT_WORK, Milliseconds, Times, named, times_of
from diptych.runtime.stopwatch import PARTS

LEAST_STEPS: Final = 500
"""Warm-up, the filling of a queue and the way of a momentum encoder take some hundred steps by
themselves."""
COLLAPSED_RANK: Final = 2.0
AT_CHANCE: Final = 0.02  # of the chance level
SHORTCUT_ACCURACY: Final = 0.98
NO_ROOM: Final = 0.98
"""Of the classes right before training: what is left to gain is no more than a slip."""

MUCH_WAITING: Final = 0.3  # of a step
MOSTLY_VIEWS: Final = 0.5
LATE: Final = 0.2  # of the usual work of a step, by which a process is behind the others
_NOW_LINES: Final = 5  # that tell how it goes now


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
    found = []
    keys = last.get("candidates", 1) - 1
    if dictionary_size is not None and keys < dictionary_size:
        found.append(
            Symptom(
                "dictionary_filling",
                False,
                f"The dictionary is filling ({keys:,.0f} of {dictionary_size:,} "
                "keys): loss and chance level rise together until it is full. This is normal.",
            )
        )
    if health and _is_collapsed(health[-1]):
        found.append(
            Symptom(
                "collapse",
                True,
                f"The features have collapsed: their effective rank is "
                f"{health[-1]['effective_rank']:.1f}, so all images look alike to the encoder. Try "
                "a lower --optimizer.learning-rate or a longer --schedule.warmup-epochs.",
            )
        )
    elif last["epoch"] >= 1 and last["step"] >= LEAST_STEPS and _is_at_chance(last):
        found.append(
            Symptom(
                "at_chance",
                True,
                f"The loss ({last['loss']:.2f}) is still at chance ({last['chance_loss']:.2f}): "
                "the encoder cannot tell one image from another. Try another "
                "--optimizer.learning-rate, or weaker views (--views.strength 0.5).",
            )
        )
    if _is_shortcut(last, health):
        found.append(
            Symptom(
                "shortcut",
                True,
                f"The pretext accuracy is {last[PRETEXT_ACCURACY.name]:.0%}, yet kNN accuracy has "
                "not risen: the encoder may match views by a shortcut, such as colour or batch "
                "statistics. Try stronger views (--views.strength 2, or smaller crops).",
            )
        )
    return found


def _is_collapsed(line: Mapping[str, Any]) -> bool:
    """Of few images, which less their mean have one direction less, the rank is low anyway."""
    most = line.get("rank_images", math.inf) - 1
    return bool(line["effective_rank"] < min(COLLAPSED_RANK, most / 2))


def _is_at_chance(last: Mapping[str, Any]) -> bool:
    """Near the loss of equal scores; a loss that is 0 there says nothing."""
    chance = last.get("chance_loss", 0.0)
    return bool(chance > 0 and last["loss"] > (1 - AT_CHANCE) * chance)


def _is_shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> bool:
    """Whether views are matched and classes are not; of a kNN accuracy that could have risen."""
    scores = [line["knn"] for line in health if "knn" in line]
    name = PRETEXT_ACCURACY.name
    if name not in last or chance_of(last, name) >= 1 / 64:
        return False
    return bool(
        last[name] >= SHORTCUT_ACCURACY and len(scores) >= 2 and scores[-1] <= scores[0] < NO_ROOM
    )


def time_symptoms(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """What is to be said of the time of the last steps: one process waits, or all do.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
    """
    times = times_of(metrics, last_lines=_NOW_LINES)
    if times is None or len(metrics) < 2:  # the first line is of a step that compiles
        return []
    found = [_late(times), _waits_for_data(times.own), _makes_views(times.own)]
    if found[0] is None:
        found.append(_talks(times.own))
    return [symptom for symptom in found if symptom is not None]


def _late(times: Times) -> Symptom | None:
    if times.slowest is None or times.usual is None:
        return None
    own, usual = _work(times.slowest), _work(times.usual)
    if own - usual <= LATE * usual:
        return None
    behind = {part: times.slowest.get(part, 0.0) - times.usual.get(part, 0.0) for part in PARTS}
    worst = max((part for part in PARTS if part not in NOT_WORK), key=lambda part: behind[part])
    return Symptom(
        "late_process",
        True,
        f"The other processes wait for process {times.slowest_process}: its own work takes "
        f"{own:,.3g} ms a step, theirs {usual:,.3g} ms, and most of the difference is in "
        f"{named(worst)}. See what else runs on its machine, and that all have the same device and "
        "as many threads.",
    )


def _waits_for_data(own: Milliseconds) -> Symptom | None:
    share = own.get("data_wait", 0.0) / _step_time(own)
    if share <= MUCH_WAITING:
        return None
    return Symptom(
        "data_wait",
        True,
        f"{share:.0%} of a step is spent waiting for images to be read and decoded. Try more "
        "--training.threads, files of about the size that views need, or --images.cache file.",
    )


def _makes_views(own: Milliseconds) -> Symptom | None:
    share = own.get("views", 0.0) / _step_time(own)
    if share <= MOSTLY_VIEWS:
        return None
    return Symptom(
        "mostly_views",
        False,
        f"{share:.0%} of a step is spent making views, more than in the network. A larger network "
        "costs little more time here; more --training.threads or fewer operations in "
        "--views.policy save some.",
    )


def _talks(own: Milliseconds) -> Symptom | None:
    share = own.get("communication", 0.0) / _step_time(own)
    if share <= MUCH_WAITING:
        return None
    return Symptom(
        "communication",
        False,
        f"{share:.0%} of a step is spent in communication, and no process is late. A larger "
        "--training.batch-size or fewer processes make it less.",
    )


def _work(milliseconds: Milliseconds) -> float:
    return sum(value for part, value in milliseconds.items() if part not in NOT_WORK)


def _step_time(milliseconds: Milliseconds) -> float:
    """All but what is done between steps."""
    return max(_work(milliseconds) + milliseconds.get("communication", 0.0), 1e-9)
