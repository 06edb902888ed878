"""Every script that `make bench` runs takes --quick and needs nothing else; starts of others."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import start
from peers.environments import ROOT
from start import Mark, measure_starts, start_of

BENCHMARKS = ROOT / "benchmarks"


def run_by_make() -> list[Path]:
    printed = subprocess.run(
        ["make", "-n", "bench"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout
    loop = re.search(r"for script in (.*?); do", printed)
    assert loop is not None
    return [ROOT / name for name in loop[1].split()]


def test_make_bench_runs_what_needs_no_more_than_quick() -> None:
    scripts = run_by_make()

    assert BENCHMARKS / "step_ceiling.py" in scripts
    for script in scripts:
        text = script.read_text()
        assert "required=True" not in text, script.name
        assert not re.search(r"add_argument\(\s*\"[a-z]", text), script.name
        if "__main__" in text:  # and is no part of another
            assert re.search(r"(add|parse)_arguments\(", text), script.name


def test_starts_of_other_libraries_take_turns_and_the_first_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = list[str]()

    def ours(python: str, program: str, images: Path, out: Path, *flags: str) -> list[Mark]:
        begun.append(out.name)
        seconds = 100.0 if out.name.endswith("0") else 2.0
        return [Mark(seconds, seconds), Mark(2 * seconds, seconds)]

    def theirs(name: str, python: str, images: Path, out: Path) -> list[Mark]:
        begun.append(out.name)
        return [Mark(9.0, 8.0)]

    monkeypatch.setattr(start, "fill", lambda *_: None)
    monkeypatch.setattr(start, "start", ours)
    monkeypatch.setattr(start, "start_of", theirs)

    figures = measure_starts(4, 2, {"lightly": "python", "stable-pretraining": "python"})

    assert begun[:4] == ["ours0", "same0", "lightly0", "stable-pretraining0"]
    assert len(begun) == 12
    assert [one.value for one in figures] == [2.0, 4.0, 4.0]
    assert figures[0].unit == "s"
    assert (figures[1].ours, figures[1].others) == (2.0, {"lightly": 8.0})


@pytest.mark.parametrize(
    ("name", "runner"),
    [("lightly", "lightly_loop"), ("stable-pretraining", "stable_pretraining_run")],
)
def test_another_librarys_first_step_is_that_of_its_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, runner: str
) -> None:
    asked = list[tuple[str, ...]]()

    def begin(python: str, program: str, images: Path, out: Path, *flags: str) -> list[Mark]:
        compile(program, name, "exec")
        assert (BENCHMARKS / "peers" / "runners" / f"{flags[0]}.py").exists()
        asked.append(flags)
        return []

    monkeypatch.setattr(start, "start", begin)

    start_of(name, "python", tmp_path / "images", tmp_path / "out")

    ((module, job),) = asked
    assert module == runner
    assert json.loads(job)["network"] == "resnet18"


def test_no_usage_is_sent_by_a_library_that_is_timed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import os; print('mark', 2.0, os.environ['LIGHTLY_TRAIN_EVENTS_DISABLED'])"
    monkeypatch.delenv("LIGHTLY_TRAIN_EVENTS_DISABLED", raising=False)

    (found,) = start.start(sys.executable, program, tmp_path, tmp_path / "out")

    assert found.processor == 1.0
