"""Symptoms in the times of the last steps: what keeps a run waiting."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from diptych.logging.progress import Symptom
from diptych.logging.times import NOT_WORK, Milliseconds, Times, named, times_of
from diptych.runtime.stopwatch import PARTS

MUCH_WAITING: Final = 0.3  # of a step
MOSTLY_VIEWS: Final = 0.5
LATE: Final = 0.2  # of the usual work of a step, by which a process is behind the others
_LATEST_LINES: Final = 5  # of the metrics, whose times are judged


def time_symptoms(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Symptoms in the times of the last steps: a slow process, or much waiting.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
    """
    times = times_of(metrics, last_lines=_LATEST_LINES)
    if times is None or len(metrics) < 2:  # the first line is of a step that compiles
        return []
    found = [_late(times), _waits_for_data(times.own), _makes_views(times.own)]
    # Waiting for a late process counts as communication too.
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
