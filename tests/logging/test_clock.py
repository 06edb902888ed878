"""The time of day may be wrong or jump: training does not ask for it.

That a run ends with the same bits then is in test_resume.py.
"""

import ast
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych.training import open_run

SOURCES = Path(diptych.__file__).parent
ASKED_FOR = {
    "logging/metrics.py": "the time of day that TensorBoard shows, and names that sort anyway",
    "logging/trackers.py": "the time of day that MLflow wants with every figure",
    "runtime/world.py": "a mark that torchrun wants beside an error",
    "training/clock.py": "the time of day at which a run of some minutes will end, for people",
    "training/open_run.py": "names of run folders, which are made to differ anyway",
}


def asks_for_the_time(path: Path) -> bool:
    names = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    words = ("time.time", "time.time_ns", "time.localtime", "time.strftime", "datetime.now")
    return bool(names.intersection(words)) or "st_mtime" in path.read_text()


def test_who_asks_for_the_time_of_day() -> None:
    rooms = ("checkpoints", "logging", "optimization", "runs", "runtime", "training")
    files = [path for room in rooms for path in (SOURCES / room).glob("*.py")]
    files += [SOURCES / "pretraining.py", SOURCES / "resolve.py"]
    found = {str(path.relative_to(SOURCES)) for path in files if asks_for_the_time(path)}
    assert found == set(ASKED_FOR)


def test_two_runs_in_the_same_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(open_run, "datetime", Stopped)
    monkeypatch.chdir(tmp_path)
    made = [open_run._folder_at(None, False, "simclr").path for _ in range(1)]
    for _ in range(2):
        made[-1].mkdir(parents=True)
        made.append(open_run._folder_at(None, False, "simclr").path)
    names = ["20260102-030405-simclr", "20260102-030405-simclr-2", "20260102-030405-simclr-3"]
    assert [path.name for path in made] == names
