"""Lines of metrics: none is lost or doubled, whatever the disk does; TensorBoard reads the same."""

import errno
import json
import os
import shutil
import time
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diptych.errors import NotSaved
from diptych.logging import metrics as appended
from diptych.logging.metrics import RunLog, read_metrics
from diptych.runs.folder import RunFolder


def line(step: int) -> dict[str, Any]:
    return {"step": step, "seconds": 0.1 * step, "loss": step / 8, "note": 2.0}


def steps(folder: RunFolder) -> list[int]:
    return [json.loads(text)["step"] for text in folder.metrics.read_text().splitlines()]


def shown(folder: RunFolder) -> list[tuple[int, float]]:
    """What TensorBoard shows of the loss."""
    read = EventAccumulator(str(folder.tensorboard))
    read.Reload()
    return [(event.step, event.value) for event in read.Scalars("loss")]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "run").mkdir()
    return RunFolder(tmp_path / "run")


class Disk:
    """Lets through so many bytes, then says that it is full."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.room: float = float("inf")

        class Limited(FileIO):
            def write(file, data: Any) -> int:  # noqa: N805
                some = data[: int(min(len(data), self.room))]
                if data and not some:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self.room -= len(some)
                return super().write(some)

        def opened(path: Path, mode: str, buffering: int) -> FileIO:
            assert (mode, buffering) == ("ab", 0)
            return Limited(path, "a")

        patch.setattr(appended, "open", opened, raising=False)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_lines_and_events(folder: RunFolder) -> None:
    with RunLog(folder, resumed_step=0) as log:
        for step in (1, 2, 3):
            log.write(line(step))
            assert steps(folder)[-1] == step  # at once
    assert read_metrics(folder.metrics) == [line(step) for step in (1, 2, 3)]
    assert shown(folder) == [(1, 0.125), (2, 0.25), (3, 0.375)]


@pytest.mark.parametrize("room", [0, 1, 17, 40, 61, 150, 333])
def test_a_full_disk_loses_and_doubles_nothing(room: int, folder: RunFolder, disk: Disk) -> None:
    said: list[str] = []
    with RunLog(folder, resumed_step=0, say=said.append) as log:
        log.write(line(1))
        disk.room = room
        for step in range(2, 9):
            log.write(line(step))
        assert steps_of_whole_lines(folder)[-1] < 8
        assert len(said) == 1
        assert "No space left on device. Lines are kept" in said[0]
        disk.room = float("inf")
        log.write(line(9))
        assert len(said) == 2
        assert "written again" in said[1]
        log.finish()
    assert read_metrics(folder.metrics) == [line(step) for step in range(1, 10)]
    assert shown(folder) == [(step, step / 8) for step in range(1, 10)]


def steps_of_whole_lines(folder: RunFolder) -> list[int]:
    return [found["step"] for found in read_metrics(folder.metrics)]


def test_lines_that_cannot_be_written_at_the_end_are_an_error(
    folder: RunFolder, disk: Disk
) -> None:
    with RunLog(folder, resumed_step=0) as log:
        log.write(line(1))
        disk.room = 0
        log.write(line(2))
        log.write(line(3))
        with pytest.raises(NotSaved, match=r"last 2 lines of metrics.*No space left.*are lost"):
            log.finish()
        disk.room = float("inf")  # on the way out it is tried once more
    assert steps(folder) == [1, 2, 3]


def test_a_vanished_folder_is_made_anew_with_all_lines(folder: RunFolder) -> None:
    with RunLog(folder, resumed_step=0) as log:
        log.write(line(1))
    with RunLog(folder, resumed_step=1) as log:
        log.write(line(2))
        shutil.rmtree(folder.path)
        log.write(line(3))
        log.write(line(4))
    assert steps(folder) == [1, 2, 3, 4]
    assert shown(folder) == [(2, 0.25), (3, 0.375), (4, 0.5)]


def test_a_folder_that_comes_back_is_written_on(folder: RunFolder) -> None:
    with RunLog(folder, resumed_step=0) as log:
        log.write(line(1))
        folder.path.rename(folder.path.with_name("away"))
        folder.path.write_text("a file is in the way")
        log.write(line(2))
        folder.path.unlink()
        folder.path.with_name("away").rename(folder.path)
        log.write(line(3))
    assert steps(folder) == [1, 2, 3]


def test_a_clock_that_went_back_does_not_mix_up_the_files(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for resumed, clock in ((0, 2e9), (2, 1e9), (4, 3e9), (5, 0.0)):
        monkeypatch.setattr(time, "time", lambda now=clock: now)
        with RunLog(folder, resumed_step=resumed) as log:
            for step in range(resumed + 1, resumed + 4):
                log.write(line(step))
    assert steps(folder) == list(range(1, 9))
    assert shown(folder) == [(step, step / 8) for step in range(1, 9)]
