"""Plain sentences on what the curves of a run show: what is wrong, and what only looks so."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final, NamedTuple

from diptych.runtime.stopwatch import PARTS

LEAST_STEPS: Final = 500
"""Warm-up, the filling of a queue and the way of a momentum encoder take some hundred steps by
themselves."""
COLLAPSED_RANK: Final = 2.0
AT_CHANCE: Final = 0.02  # of the chance level
SHORTCUT_ACCURACY: Final = 0.98
NO_ROOM: Final = 0.98
"""Of the classes right before training: what is left to gain is no more than a slip."""


class Symptom(NamedTuple):
    """One thing to say.

    Attributes:
        name: stable, for programs.
        alarming: whether something is wrong, or it only looks frightening.
        sentence: for people.
    """

    name: str
    alarming: bool
    sentence: str


def chance_accuracy(line: Mapping[str, Any]) -> float:
    """What guessing finds at a line of metrics; one key of the candidates in old lines."""
    return float(line.get("chance_accuracy", 1.0 / line["candidates"]))


def has_choice(line: Mapping[str, Any]) -> bool:
    """Whether queries could choose among keys at a line of metrics.

    At the first step of an empty queue, and in a batch of one class, there are only their own,
    which all find.
    """
    return chance_accuracy(line) < 1.0


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
    if dictionary_size is not None and last["candidates"] < dictionary_size + 1:
        found.append(
            Symptom(
                "dictionary_filling",
                False,
                f"The dictionary is filling ({last['candidates'] - 1:,} of {dictionary_size:,} "
                "keys): loss "
                "and chance level rise together until it is full. This is normal.",
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
                f"The loss ({last['loss']:.2f}) is still at chance ({last['chance']:.2f}): the "
                "encoder cannot tell one image from another. Try another "
                "--optimizer.learning-rate, or weaker views (--views.strength 0.5).",
            )
        )
    if _is_shortcut(last, health):
        found.append(
            Symptom(
                "shortcut",
                True,
                f"Nearly every query finds its key ({last['accuracy']:.0%}), yet kNN accuracy has "
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
    return bool(last["chance"] > 0 and last["loss"] > (1 - AT_CHANCE) * last["chance"])


def _is_shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> bool:
    """Whether views are matched and classes are not; of a kNN accuracy that could have risen."""
    scores = [line["knn"] for line in health if "knn" in line]
    easy = last["accuracy"] >= SHORTCUT_ACCURACY and chance_accuracy(last) < 1 / 64
    return bool(easy and len(scores) >= 2 and scores[-1] <= scores[0] < NO_ROOM)


OWN: Final = "milliseconds/"
SLOWEST: Final = "slowest_milliseconds/"
USUAL: Final = "usual_milliseconds/"
SLOWEST_PROCESS: Final = "slowest_process"
"""Keys, or their beginnings, in a line of metrics; docs/run-folder.md says what they are."""

NOT_WORK: Final = ("communication", "measuring", "checkpoint")
"""Parts in which a process waits for the others, or that are the first one's alone."""

MUCH_WAITING: Final = 0.3  # of a step
MOSTLY_VIEWS: Final = 0.5
LATE: Final = 0.2  # of the usual work of a step, by which a process is behind the others
_NOW_LINES: Final = 5  # that tell how it goes now

Milliseconds = Mapping[str, float]
"""Of a step, by part; parts that take no time may be missing."""


class Times(NamedTuple):
    """Where the time of some steps went, on average.

    Attributes:
        own: of process 0.
        slowest: of the process whose own work takes longest; None with one process.
        usual: the median over all processes; None with one process.
        slowest_process: its number.
    """

    own: Milliseconds
    slowest: Milliseconds | None = None
    usual: Milliseconds | None = None
    slowest_process: int | None = None


def times_of(
    metrics: Sequence[Mapping[str, Any]], *, last_lines: int | None = None
) -> Times | None:
    """The mean over lines of metrics, each weighed by its steps; None where no line has times.

    The first step is left out if there are others: in it kernels are compiled.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
        last_lines: only so many; all when not given.
    """
    pairs = pairwise([{"step": 0}, *metrics])
    timed = [
        (line, line["step"] - before["step"]) for before, line in pairs if f"{OWN}other" in line
    ]
    if len(timed) > 1 and timed[0][0]["step"] == 1:
        timed = timed[1:]
    if not timed:
        return None
    timed = timed[-(last_lines or len(timed)) :]
    own, last = _mean(timed, OWN), timed[-1][0]
    if SLOWEST_PROCESS not in last:
        return Times(own)
    slowest_process = int(last[SLOWEST_PROCESS])
    same = [one for one in timed if one[0].get(SLOWEST_PROCESS) == slowest_process]
    return Times(own, _mean(same, SLOWEST), _mean(timed, USUAL), slowest_process)


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


def time_in_words(times: Times) -> str:
    """A sentence: how long a step takes, and what the most of it is."""
    whole = sum(times.own.values())
    largest = sorted(times.own.items(), key=lambda item: -item[1])[:3]
    shares = [f"{value / whole:.0%} {named(part)}" for part, value in largest]
    return f"A step took {whole:,.3g} ms on average: {', '.join(shares)}."


def named(part: str) -> str:
    """A part as people read it."""
    return part.replace("_", " ")


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
    share = own.get("data_wait", 0.0) / _in_steps(own)
    if share <= MUCH_WAITING:
        return None
    return Symptom(
        "data_wait",
        True,
        f"{share:.0%} of a step is spent waiting for images to be read and decoded. Try more "
        "--training.threads, files of about the size that views need, or --images.cache file.",
    )


def _makes_views(own: Milliseconds) -> Symptom | None:
    share = own.get("views", 0.0) / _in_steps(own)
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
    share = own.get("communication", 0.0) / _in_steps(own)
    if share <= MUCH_WAITING:
        return None
    return Symptom(
        "communication",
        False,
        f"{share:.0%} of a step is spent in communication, and no process is late. A larger "
        "--training.batch-size or fewer processes make it less.",
    )


def _mean(timed: Sequence[tuple[Mapping[str, Any], int]], prefix: str) -> dict[str, float]:
    steps = sum(count for _, count in timed)
    sums = {
        part: sum(line.get(f"{prefix}{part}", 0.0) * count for line, count in timed)
        for part in PARTS
    }
    return {part: total / steps for part, total in sums.items() if total > 0}


def _work(milliseconds: Milliseconds) -> float:
    return sum(value for part, value in milliseconds.items() if part not in NOT_WORK)


def _in_steps(milliseconds: Milliseconds) -> float:
    """All but what is done between steps."""
    return max(_work(milliseconds) + milliseconds.get("communication", 0.0), 1e-9)
