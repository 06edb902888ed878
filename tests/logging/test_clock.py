"""The time of day may be wrong or jump: training does not ask for it.

That a run ends with the same bits then is in test_resume.py.
"""

import ast
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

import diptych
from diptych import pretraining

SOURCES = Path(diptych.__file__).parent
ASKED_FOR = {
    "training/events.py": "the time of day that TensorBoard shows, and names that sort anyway",
    "launch.py": "a mark that torchrun wants beside an error",
    "pretraining.py": "names of run folders, which are made to differ anyway",
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
    files = [
        *(SOURCES / "training").glob("*.py"), *(SOURCES / "optimization").glob("*.py"),
        *(SOURCES / name for name in ("pretraining.py", "peers.py", "distributed.py")),
        *(SOURCES / name for name in ("run_folder.py", "resolve.py", "launch.py")),
    ]  # fmt: skip
    found = {str(path.relative_to(SOURCES)) for path in files if asks_for_the_time(path)}
    assert found == set(ASKED_FOR)


def test_two_runs_in_the_same_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Stopped":
            return cls(2026, 1, 2, 3, 4, 5)

    monkeypatch.setattr(pretraining, "datetime", Stopped)
    monkeypatch.chdir(tmp_path)
    made = [pretraining._locate(None, False, "simclr").path for _ in range(1)]
    for _ in range(2):
        made[-1].mkdir(parents=True)
        made.append(pretraining._locate(None, False, "simclr").path)
    names = ["20260102-030405-simclr", "20260102-030405-simclr-2", "20260102-030405-simclr-3"]
    assert [path.name for path in made] == names
