"""Parts of a stretch of time: exclusive of each other, never negative, and the whole together."""

import itertools
import time
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.runtime import stopwatch as module
from diptych.runtime.stopwatch import PARTS, Stopwatch, give, watch


class Clock:
    """Advances only when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_a_part_within_another_is_taken_out_of_it(clock: Clock) -> None:
    with Stopwatch().running() as stopwatch:
        clock.now += 1
        with watch("backward"):
            clock.now += 2
            with watch("communication"):
                clock.now += 4
            clock.now += 8
        clock.now += 16
    found = stopwatch.read()
    assert {part: seconds for part, seconds in found.items() if seconds} == {
        "other": 17.0,
        "backward": 10.0,
        "communication": 4.0,
    }
    clock.now += 32
    assert stopwatch.read() == {**dict.fromkeys(PARTS, 0.0), "other": 32.0}


def test_a_reading_in_the_middle_of_a_part_divides_it(clock: Clock) -> None:
    with Stopwatch().running() as stopwatch, watch("measuring"):
        clock.now += 1
        assert stopwatch.read()["measuring"] == 1
        clock.now += 2
    assert stopwatch.read()["measuring"] == 2


def test_an_error_ends_its_part(clock: Clock) -> None:
    with Stopwatch().running() as stopwatch:
        with suppress(KeyError), watch("forward"):
            clock.now += 1
            raise KeyError
        clock.now += 2
    found = stopwatch.read()
    assert (found["forward"], found["other"]) == (1, 2)


def test_threads_share_a_part(clock: Clock) -> None:
    """What threads do in turns is divided by how long each of them was at it."""
    with Stopwatch().running() as stopwatch:
        clock.now += 1
        with watch("views"):
            clock.now += 8
            give("data_wait", 0.25, of="views")
            clock.now += 1
        with watch("measuring"):
            clock.now += 4
            give("data_wait", 0.25, of="views")  # these are no step's views
    found = stopwatch.read()
    assert (found["data_wait"], found["views"], found["measuring"]) == (2, 7, 4)


steps = st.recursive(
    st.floats(0, 9),
    lambda inner: st.tuples(st.sampled_from(PARTS), st.lists(inner, max_size=4)),
    max_leaves=30,
)


@settings(deadline=None)
@given(st.lists(steps, max_size=6))
def test_parts_are_the_whole(work: list[object]) -> None:
    clock = Clock()

    def do(one: object) -> None:
        if isinstance(one, float):
            clock.now += one
            give("data_wait", 0.3, of="views")
        elif isinstance(one, tuple):
            with watch(one[0]):
                for part in one[1]:
                    do(part)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", clock)
        patch.setattr(module, "_MOST_OPEN", 7)  # turns are added up in between
        with Stopwatch().running() as stopwatch:
            for one in work:
                do(one)
        found = stopwatch.read()
    assert sum(found.values()) == pytest.approx(clock.now - 100.0, abs=1e-9)
    assert all(seconds >= 0 for seconds in found.values())


def test_without_a_stopwatch_nothing_happens() -> None:
    with watch("forward"):
        give("data_wait", 0.5, of="views")
    first, second = watch("forward"), watch("backward")
    assert first is second


def test_on_cuda_the_devices_own_events_are_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """With events that stand in for the device's: what is measured lies between them."""
    numbers = itertools.count()
    waited = []

    class Event:
        def __init__(self) -> None:
            self.number = next(numbers)

        def synchronize(self) -> None:
            waited.append(self.number)

        def elapsed_time(self, later: "Event") -> float:
            return 1000.0 * (later.number - self.number)

    monkeypatch.setattr(module, "_event", Event)
    device = torch.device("cuda")
    with Stopwatch(device).running() as stopwatch, watch("forward"), watch("communication"):
        give("data_wait", 0.5, of="communication")  # threads are at it while the device is busy
    assert waited == []
    found = stopwatch.read()
    assert {part: seconds for part, seconds in found.items() if seconds} == {
        "other": 2.0,
        "forward": 2.0,
        "communication": 1.0,
    }
