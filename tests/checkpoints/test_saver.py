"""Checkpoints written beside training: the same bits, one at a time, and trouble survived."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch
from torch import nn

from diptych.checkpoints import saver as saver_module
from diptych.checkpoints.save_and_load import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    steps_in,
)
from diptych.checkpoints.saver import HostCopy, Saver
from diptych.checkpoints.state import RunState
from diptych.checkpoints.stores import LocalStore
from diptych.config.run import CheckpointConfig
from diptych.errors import NotSaved, TrainingError
from diptych.runs.folder import Identity

Write = Callable[..., None]
WAIT_SECONDS = 60.0

RUN = Identity("0" * 32, "runs/test")


@pytest.fixture
def state() -> RunState:
    torch.manual_seed(2)
    network: Any = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Flatten(), nn.Linear(5, 2)
    )
    network.to(memory_format=torch.channels_last)
    found = RunState(network, torch.optim.AdamW(network.parameters()))
    advance(found)
    return found


def advance(state: RunState) -> None:
    """A step that moves every tensor."""
    method: Any = state.method
    state.optimizer.zero_grad()
    method(torch.randn(4, 3, 3, 3)).square().sum().backward()
    state.optimizer.step()
    state.step += 1


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Event]:
    """Writing waits until it is opened."""
    opened, write = Event(), LocalStore.write

    def slow(self: LocalStore, *arguments: Any) -> None:
        assert opened.wait(WAIT_SECONDS)
        write(self, *arguments)

    monkeypatch.setattr(LocalStore, "write", slow)
    yield opened
    opened.set()


class FailingDisk:
    """Raises what it is told to instead of writing."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.error: BaseException | None = None
        self.tries = 0
        write: Write = LocalStore.write

        def failing(store: LocalStore, *arguments: Any) -> None:
            self.tries += 1
            if self.error is not None:
                raise self.error
            write(store, *arguments)

        patch.setattr(LocalStore, "write", failing)
        patch.setattr(saver_module, "LAST_PAUSES", (0.0, 0.0))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    return FailingDisk(monkeypatch)


def full() -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO))


def settled(saver: Saver) -> None:
    """Looks until nothing is on its way."""
    while saver.is_writing:
        saver.look()


def test_beside_and_in_between_the_bytes_are_the_same(state: RunState, tmp_path: Path) -> None:
    for name in ("beside", "between", "last"):
        config = CheckpointConfig(asynchronous=name == "beside")
        with Saver(tmp_path / name, RUN, config, print) as saver:
            (saver.finish if name == "last" else saver.begin)(state, images="x")
    files = [
        {file.name: file.read_bytes() for file in list_checkpoints(tmp_path / name)[0].iterdir()}
        for name in ("beside", "between", "last")
    ]
    assert len(files[0]) == 3
    assert files[0] == files[1] == files[2]


def test_what_is_written_is_the_state_of_that_step(
    state: RunState, tmp_path: Path, gate: Event
) -> None:
    with Saver(tmp_path, RUN, CheckpointConfig(every_seconds=0.0), print) as saver:
        assert saver.is_due()
        before = {name: value.clone() for name, value in state.tensors().items()}
        saver.begin(state)
        for _ in range(3):
            advance(state)
            assert not saver.is_due()  # one at a time
        assert list_checkpoints(tmp_path) == []
        gate.set()
        settled(saver)
        assert saver.is_due()
        tensors, scalars = load_checkpoint(list_checkpoints(tmp_path)[0])
        assert scalars["step"] == 1
        assert tensors.keys() == before.keys()
        for name, value in before.items():
            assert torch.equal(tensors[name], value), name
            assert not torch.equal(value, state.tensors()[name]), name


def test_the_end_waits_for_the_one_before(state: RunState, tmp_path: Path, gate: Event) -> None:
    with Saver(tmp_path, RUN, CheckpointConfig(), print) as saver:
        saver.begin(state)
        advance(state)
        gate.set()
        saver.finish(state)
        assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["2", "1"]


def test_an_error_in_training_waits_for_the_writer(
    state: RunState, tmp_path: Path, gate: Event
) -> None:
    def fail() -> None:
        with Saver(tmp_path, RUN, CheckpointConfig(), print) as saver:
            saver.begin(state)
            gate.set()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(list_checkpoints(tmp_path)) == 1


def test_trouble_is_told_once_and_tried_again_soon(
    state: RunState, tmp_path: Path, disk: FailingDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    said: list[str] = []
    with Saver(tmp_path / "c", RUN, CheckpointConfig(every_seconds=100.0), said.append) as saver:
        assert not saver.is_due()
        now += 100.0
        assert saver.is_due()
        saver.begin(state)
        settled(saver)
        assert said == []
        disk.error = full()
        for tries in range(5):
            now += 100.0 if tries == 0 else 30.0
            assert saver.is_due()
            advance(state)
            saver.begin(state)
            settled(saver)
            now += 29.0
            assert not saver.is_due()
            now -= 29.0
        (sentence,) = said
        assert "after step 2 could not be written to " in sentence
        assert f"{tmp_path / 'c'}: Input/output error. " in sentence
        assert "step-000000001 is kept. Training goes on" in sentence
        assert "next try comes in 30 seconds" in sentence
        disk.error = OSError(errno.EROFS, os.strerror(errno.EROFS))
        now += 30.0
        saver.begin(state)
        settled(saver)
        assert "Read-only file system" in said[1]
        disk.error = None
        now += 30.0
        assert saver.is_due()
        advance(state)
        saver.begin(state)
        settled(saver)
        assert said[2] == "Checkpoints are written again: The one after step 7 is there."
        now += 99.0
        assert not saver.is_due()
        assert len(said) == 3
    found = load_newest(tmp_path / "c", RUN, print)
    assert found is not None
    assert found[1]["step"] == 7


def test_the_end_of_a_run_tries_again_and_then_is_an_error(
    state: RunState, tmp_path: Path, disk: FailingDisk
) -> None:
    with Saver(tmp_path, RUN, CheckpointConfig(), print) as saver:
        saver.begin(state)
        settled(saver)
        disk.error, disk.tries = full(), 0
        advance(state)
        with pytest.raises(NotSaved, match=r"after step 2, .*Input/output.*000000001 is kept"):
            saver.finish(state)
        assert disk.tries == 3
        disk.error = None
        saver.finish(state)
    assert [path.name[-1] for path in list_checkpoints(tmp_path)] == ["2", "1"]


def test_a_damaged_checkpoint_is_no_spare(state: RunState, tmp_path: Path) -> None:
    """A run that passed one over keeps as many good ones as it would without it."""
    config = CheckpointConfig(keep=2)
    with Saver(tmp_path, RUN, config, print) as saver:
        for _ in range(2):
            saver.finish(state)  # after steps 1 and 2
            advance(state)
    (list_checkpoints(tmp_path)[0] / "tensors.safetensors").write_bytes(b"cut short")
    found = load_newest(tmp_path, RUN, lambda _: None)
    assert found is not None
    assert found[1]["step"] == 1
    state.step = 1
    kept = []
    with Saver(tmp_path, RUN, config, print, resumed_step=1) as saver:
        for step in (3, 4, 5):  # a clock may let no checkpoint come after step 2 again
            state.step = step
            saver.finish(state)
            kept.append(steps_in(list_checkpoints(tmp_path)))
    assert kept == ["1, 2, 3", "3, 4", "4, 5"]


def test_a_vanished_folder_is_made_anew(state: RunState, tmp_path: Path) -> None:
    place = tmp_path / "run" / "checkpoints"
    with Saver(place, RUN, CheckpointConfig(), pytest.fail) as saver:
        saver.begin(state)
        settled(saver)
        (place.parent).rename(tmp_path / "elsewhere")
        saver.begin(state)
    assert len(list_checkpoints(place)) == 1


@pytest.mark.parametrize("asynchronous", [True, False])
def test_other_errors_of_the_thread_reach_training(
    asynchronous: bool, state: RunState, tmp_path: Path, disk: FailingDisk
) -> None:
    disk.error = ZeroDivisionError("by chance")
    config = CheckpointConfig(every_seconds=0.0, asynchronous=asynchronous)
    match = r"before step 2 could not.*no fault of the disk: ZeroDivisionError: by chance"
    with pytest.raises(TrainingError, match=match) as caught:
        begin_and_finish(Saver(tmp_path, RUN, config, print), state)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert not isinstance(caught.value, NotSaved)
    with pytest.raises(TrainingError, match=match):  # also where nobody looks before the end
        begin_and_leave(Saver(tmp_path, RUN, config, print), state)


def begin_and_finish(saver: Saver, state: RunState) -> None:
    with saver:
        saver.begin(state)
        settled(saver)
        assert isinstance(saver.error, ZeroDivisionError)
        saver.is_due()
        saver.finish(state)


def begin_and_leave(saver: Saver, state: RunState) -> None:
    with saver:
        saver.begin(state)


def test_memory_of_the_copy_is_used_again(state: RunState) -> None:
    copy = HostCopy()
    first = copy.take(state.named_tensors())
    places = {name: value.data_ptr() for name, value in first.items()}
    advance(state)
    second = copy.take(state.named_tensors())
    assert {name: value.data_ptr() for name, value in second.items()} == places
    wanted = state.tensors()
    assert all(torch.equal(value, wanted[name]) for name, value in second.items())
    assert all(value.is_contiguous() for value in second.values())
    own = {value.data_ptr() for value in state.named_tensors().values()}
    assert own.isdisjoint(places.values())
    grown = copy.take({"0.weight": torch.ones(7, dtype=torch.float64)})
    assert grown.keys() == {"0.weight"}
    assert torch.equal(grown["0.weight"], torch.ones(7, dtype=torch.float64))


@pytest.mark.parametrize("end", [Saver.begin, Saver.finish])
def test_what_is_gathered_for_it_is_written_without_another_copy(
    state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[..., None]
) -> None:
    written = dict[str, torch.Tensor]()

    def note(
        place: Path, run: Identity, tensors: dict[str, torch.Tensor], *more: Any, **named: Any
    ) -> None:
        written.update(tensors)
        save_checkpoint(place, run, tensors, *more, **named)

    monkeypatch.setattr(saver_module, "save_checkpoint", note)
    whole = {"3.weight": torch.full((7, 5), 3.0)}  # in the place of this process's share of it
    with Saver(tmp_path, RUN, CheckpointConfig(), print) as saver:
        end(saver, state, whole)
    assert written["method/3.weight"].data_ptr() == whole["3.weight"].data_ptr()
    own = {tensor.data_ptr() for tensor in state.named_tensors().values()}
    assert not own & {tensor.data_ptr() for tensor in written.values()}
    loaded, _ = load_checkpoint(list_checkpoints(tmp_path)[0])
    assert torch.equal(loaded["method/3.weight"], whole["3.weight"])
    assert set(loaded) == set(state.named_tensors())


def test_the_last_checkpoint_is_made_in_the_memory_of_those_before(
    state: RunState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    places = list[dict[str, int]]()

    def note(
        place: Path, run: Identity, tensors: dict[str, torch.Tensor], *more: Any, **named: Any
    ) -> None:
        places.append({name: tensor.data_ptr() for name, tensor in tensors.items()})

    monkeypatch.setattr(saver_module, "save_checkpoint", note)
    with Saver(tmp_path, RUN, CheckpointConfig(), print) as saver:
        saver.begin(state)
        saver.finish(state)
    assert len(places) == 2
    assert places[0] == places[1]
