"""What metrics say of time: means by hand, and a sentence where something waits."""

from typing import Any

import pytest

from diptych.diagnostics.time_symptoms import time_symptoms
from diptych.logging.times import time_in_words, times_of


def line(step: int, slowest: int | None = None, **parts: Any) -> dict[str, Any]:
    """A line of metrics with `forward=30` or, with several processes, `forward=(30, 40, 30)`."""
    parts = {"other": 1.0 if slowest is None else (1.0, 1.0, 1.0), **parts}
    if slowest is None:
        return {"step": step, **{f"milliseconds/{part}": value for part, value in parts.items()}}
    columns = zip(
        ("milliseconds", "slowest_milliseconds", "usual_milliseconds"),
        zip(*parts.values(), strict=True),
        strict=True,
    )
    found = {
        f"{prefix}/{part}": value
        for prefix, values in columns
        for part, value in zip(parts, values, strict=True)
    }
    return {"step": step, "slowest_process": slowest, **found}


def names(*lines: dict[str, Any]) -> list[str]:
    return [symptom.name for symptom in time_symptoms(lines)]


def test_means_are_weighed_by_steps() -> None:
    lines = [
        line(1, forward=9000.0),
        line(11, forward=10.0),
        line(31, forward=40.0, momentum_encoder=3.0),
    ]
    times = times_of(lines)
    assert times is not None
    assert times.own == {
        "forward": pytest.approx(30),
        "momentum_encoder": pytest.approx(2),
        "other": 1,
    }
    assert (
        time_in_words(times)
        == "A step took 33 ms on average: 91% forward, 6% momentum encoder, 3% other."
    )
    only = times_of(lines[:1])
    assert only is not None
    assert only.own["forward"] == 9000


def test_runs_that_did_not_say() -> None:
    assert times_of([]) is None
    assert times_of([{"step": 1, "loss": 2.0}]) is None
    assert time_symptoms([{"step": 1, "loss": 2.0}]) == []


def test_a_late_process_is_named_with_its_part() -> None:
    first = line(1, 2, forward=(10.0, 10.0, 10.0))
    late = line(
        11,
        2,
        views=(4.0, 9.0, 4.0),
        forward=(10.0, 11.0, 10.0),
        communication=(9.0, 1.0, 9.0),
    )
    (symptom,) = time_symptoms([first, late])
    assert symptom.name == "late_process"
    assert "wait for process 2: its own work takes 21 ms a step, theirs 15 ms" in symptom.sentence
    assert "most of the difference is in views" in symptom.sentence


def test_lines_of_a_process_alone_do_not_make_others_late() -> None:
    """A run that went on with more processes: of its first lines there is no median."""
    alone = [line(1 + 10 * number, forward=20.0) for number in range(4)]
    together = line(41, 1, forward=(10.0, 10.0, 10.0))
    times = times_of([*alone, together])
    assert times is not None
    assert times.usual == times.slowest == {"forward": 10.0, "other": 1.0}
    assert names(*alone, together) == []


def test_what_only_the_first_process_does_makes_it_not_late() -> None:
    first = line(1, 0, forward=(10.0, 10.0, 10.0))
    measured = line(
        11, 0, forward=(10.0, 10.0, 10.0), measuring=(50.0, 50.0, 0.1), checkpoint=(9.0, 9.0, 0.1)
    )
    assert names(first, measured) == []


def test_what_dominates_is_said() -> None:
    first, even = line(1, forward=10.0), line(11, views=4.0, forward=5.0, backward=9.0)
    assert names(first, even) == []
    assert names(first) == []  # the first line alone is of a step that compiles
    assert names(first, line(11, data_wait=8.0, forward=9.0)) == ["data_wait"]
    assert names(first, line(11, views=11.0, forward=9.0)) == ["mostly_views"]
    assert names(first, line(11, communication=8.0, forward=9.0)) == ["communication"]
    waiting = time_symptoms([first, line(11, data_wait=8.0, forward=7.0)])[0]
    assert waiting.sentence.startswith("50% of a step is spent waiting for images")


def test_only_how_it_goes_now_is_judged() -> None:
    early = [line(1 + 10 * n, data_wait=90.0) for n in range(3)]
    late = [line(31 + 10 * n, data_wait=1.0, forward=9.0) for n in range(6)]
    assert names(*early) == ["data_wait"]
    assert names(*early, *late) == []
