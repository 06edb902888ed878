"""A tiny study from end to end: run, cut, resumed, in processes, as commands."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from conftest import write_class_folder
from diptych.cli.main import main
from diptych.errors import EXIT_USER, ConfigError, Interrupted, RunFolderError
from diptych.pretraining import run_pretraining
from diptych.runs.folder import RunFolder
from diptych.studies.cell_results import RESULT_NAME, from_table
from diptych.studies.run_cells import (
    EXTRA,
    TrainedRun,
    final_pretext_accuracy,
    run_cells,
    write_commands,
)
from diptych.studies.study_page import write_study
from diptych.studies.study_run import STUDIES, CellRun, StudyRun, study_run
from studies.made_up import TINY

CELLS = "diptych.studies.run_cells"


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.outside: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            local = value is None or value.startswith(("data:", "#"))
            if name in ("src", "href", "xlink:href") and not local:
                self.outside.append(str(value))


def planned(data: Path, out: Path, **given: int) -> StudyRun:
    return study_run(TINY, data=str(data), out=out, threads=1, **{"seeds": 2, **given})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> StudyRun:
    """A tiny study on striped images, run to its end."""
    root = tmp_path_factory.mktemp("study")
    plan = planned(write_class_folder(root / "images"), root / "out")
    said: list[str] = []
    run_cells(plan, say=said.append)
    assert len(said) == 4
    assert said[0].startswith("[1/4] crop, seed 0: kNN")
    write_study(plan)
    return plan


def test_a_study_leaves_a_table_a_figure_and_pages(finished: StudyRun) -> None:
    for name in ("table.csv", "figure.svg", "figure.png", "index.md", "index.html"):
        assert (finished.out / name).stat().st_size > 200, name
    rows = from_table((finished.out / "table.csv").read_text())
    assert sorted(rows, key=str) == sorted(finished.results().all, key=str)
    assert {(row.cell, row.seed) for row in rows} == {
        (cell, seed) for cell in ("crop", "still") for seed in (0, 1)
    }
    assert all({"knn", "pretext", "effective_rank"} <= row.measures.keys() for row in rows)
    assert {row.cell for row in rows if "untrained" in row.measures} == {"crop"}
    page = (finished.out / "index.html").read_text()
    assert "a crop &lt;teach&gt; anything" in page
    assert "<script" not in page
    links = _Links()
    links.feed(page)
    assert links.outside == []
    assert page.index('class="verdict"') < page.index("<svg")
    markdown = (finished.out / "index.md").read_text()
    assert "Crops beat nothing (the paper: of course)" in markdown
    assert "figure.svg" in markdown


def test_a_result_is_what_the_run_itself_says(finished: StudyRun) -> None:
    task = finished.cell_runs()[0]
    found = task.result()
    assert found is not None
    lines = [json.loads(line) for line in (task.folder / "metrics.jsonl").read_text().splitlines()]
    assert (
        found.measures["pretext"] == lines[-1]["pretext_accuracy"]
    )  # two steps: a tenth is one line
    evaluated = main(["evaluate", str(task.folder), "--threads", "1"])
    assert evaluated == 0
    evaluation = json.loads((task.folder / "evaluation.json").read_text())
    assert found.measures["knn"] == pytest.approx(evaluation["knn"]["trained"])
    assert found.measures["untrained"] == pytest.approx(evaluation["knn"]["untrained"])


def test_the_last_tenth_is_what_counts_of_the_pretext_accuracy() -> None:
    lines = [{"pretext_accuracy": float(step)} for step in range(40)]
    assert final_pretext_accuracy(lines) == (36 + 37 + 38 + 39) / 4


def test_the_first_alarm_of_a_run_that_collapsed_is_told(tmp_path: Path) -> None:
    def found(spreads: list[float]) -> dict[str, float]:
        lines = [
            {"step": 10 * at, "epoch": 0, "seconds": 6.0 * at, "loss": 1.0,
             "projection_std": spread, "projection_rank": 5.0}
            for at, spread in enumerate(spreads, start=1)
        ]  # fmt: skip
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
        run = TrainedRun(RunFolder(tmp_path), images=None)  # type: ignore[arg-type]
        assert EXTRA["minutes"](run) == {"minutes": pytest.approx(0.1 * len(spreads))}
        return EXTRA["collapse"](run)

    assert found([0.9, 0.8, 0.9, 0.8]) == {"alarm": 0.0}
    assert found([0.9, 0.8, 0.1, 0.8]) == {"alarm": 0.0}
    assert found([0.9, 0.8, 0.1, 0.1]) == {"alarm": 1.0, "alarm_at": 1.0}
    assert found([0.9, 0.1, 0.1, 0.9]) == {"alarm": 1.0, "alarm_at": 0.75}


def test_cells_that_are_done_are_skipped(
    finished: StudyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(f"{CELLS}.run_pretraining", lambda *a, **k: pytest.fail("trained again"))
    said: list[str] = []
    run_cells(finished, say=said.append)
    assert said == []
    assert write_commands(finished, finished.out / "commands.txt") == 0
    # A result alone is missing: the cell is measured again, and not trained.
    task = finished.cell_runs()[1]
    before = task.result()
    (task.folder / RESULT_NAME).unlink()
    run_cells(finished, say=said.append)
    assert len(said) == 1
    assert task.result() == before


def copied(finished: StudyRun, out: Path, *measures: str) -> StudyRun:
    """The finished study in another folder, of which more measures are asked."""
    shutil.copytree(finished.out, out)
    return replace(finished, out=out, study=replace(TINY, measures=measures))


def change(task: CellRun, **measures: float | None) -> None:
    """Gives a result other measures, or takes some away, as if they had not been asked for."""
    file = task.folder / RESULT_NAME
    kept = json.loads(file.read_text())
    asked = kept["protocol"]["measures"]
    kept["protocol"]["measures"] = [one for one in asked if measures.get(one, 0.0) is not None]
    there = {**kept["measures"], **measures}
    kept["measures"] = {name: value for name, value in there.items() if value is not None}
    file.write_text(json.dumps(kept))


def measures_of(task: CellRun) -> dict[str, float]:
    found = task.result()
    assert found is not None
    return dict(found.measures)


def test_only_the_measures_that_a_result_lacks_are_added(
    finished: StudyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = copied(finished, tmp_path / "out", "supervised", "supervised_linear")
    task = plan.cell_runs()[0]
    untrained = measures_of(task)["untrained"]
    change(task, untrained=None, knn=0.123)  # which no measurement gives
    assert [run.is_done() for run in plan.cell_runs()] == [False] * 4
    assert write_commands(plan, tmp_path / "commands.txt") == 4
    assert "4 of 4 runs lack what the same command adds: untrained, " in write_study(plan)[0]
    table = from_table((plan.out / "table.csv").read_text())
    assert len(table) == 4

    monkeypatch.setattr(f"{CELLS}.run_pretraining", lambda *a, **k: pytest.fail("trained again"))
    run_cells(plan, say=lambda _: None)

    assert all(run.is_done() for run in plan.cell_runs())
    assert write_commands(plan, tmp_path / "commands.txt") == 0
    found = measures_of(task)
    assert (found["knn"], found["untrained"]) == (0.123, untrained)
    assert main(["evaluate", str(task.folder), "--supervised", "--threads", "1"]) == 0
    evaluation = json.loads((task.folder / "evaluation.json").read_text())
    assert found["supervised"] == pytest.approx(evaluation["knn"]["supervised"])
    assert found["supervised_linear"] == pytest.approx(evaluation["linear"]["supervised"])
    assert "lack" not in write_study(plan)[0]


def test_a_reference_without_its_untrained_encoder_is_not_done(
    finished: StudyRun, tmp_path: Path
) -> None:
    plan = copied(finished, tmp_path / "out")
    for task in plan.cell_runs():
        change(task, untrained=None)
    assert [run.is_done() for run in plan.cell_runs()] == [False, True, False, True]


def test_a_result_without_its_encoder_is_measured_anew(finished: StudyRun, tmp_path: Path) -> None:
    plan = copied(finished, tmp_path / "out")
    task = plan.cell_runs()[0]
    before = measures_of(task)
    change(task, untrained=None, knn=0.123)
    for path in task.folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != RESULT_NAME:
            path.unlink()
    run_cells(plan, say=lambda _: None)
    assert measures_of(task) == before  # the same run, so all of it is measured again


def test_commands_are_of_the_threads_that_runs_were_trained_with(
    finished: StudyRun, tmp_path: Path
) -> None:
    plan = replace(copied(finished, tmp_path / "out"), threads=2)
    task = plan.cell_runs()[1]
    (task.folder / RESULT_NAME).unlink()
    run_cells(plan, say=lambda _: None)
    found = task.result()
    assert found is not None
    assert found.settings["training.threads"] == 1
    assert "--training.threads 1 " in found.command
    write_study(plan)
    for name in ("index.md", "index.html"):
        page = (plan.out / name).read_text()
        assert re.search(r"diptych study tiny .* --seeds 2 --threads 1\b", page)
        assert "--training.threads 1 " in page
        assert "--training.threads 2 " not in page


def test_other_settings_are_refused_by_name(finished: StudyRun) -> None:
    other = replace(finished, budget=type(TINY.budget)(images=None, epochs=3))
    with pytest.raises(RunFolderError, match=r"training\.epochs was 1 and is 3"):
        run_cells(other)
    threads = replace(finished, threads=2)  # how fast, not what
    assert len(threads.results().all) == 4


def test_an_interrupted_study_goes_on_to_the_same_result(
    finished: StudyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(Path(finished.data), tmp_path / "out", seeds=1)
    steps = 0

    class Cut:
        """Sends a signal to the run at its second line of metrics."""

        def begin(self, *, step: int, total_steps: int) -> None: ...
        def symptom(self, symptom: object) -> None: ...
        def say(self, sentence: str) -> None: ...
        def metrics(self, line: dict[str, object]) -> None:
            nonlocal steps
            steps += 1
            if steps == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(f"{CELLS}.Silent", Cut)
    with pytest.raises(Interrupted, match="same command goes on") as interruption:
        run_cells(plan, say=lambda _: None)
    assert interruption.value.signal_number == signal.SIGTERM
    assert plan.results().all == []
    monkeypatch.undo()
    said: list[str] = []
    run_cells(plan, say=said.append)
    assert len(said) == 2
    for ours, theirs in zip(plan.cell_runs(), finished.cell_runs(), strict=False):
        one, other = ours.result(), theirs.result()
        assert one is not None
        assert other is not None
        assert (one.cell, one.measures) == (other.cell, other.measures)


def test_a_cell_that_another_process_works_on_is_left_to_it(
    finished: StudyRun, tmp_path: Path
) -> None:
    import fcntl

    plan = planned(Path(finished.data), tmp_path / "out", seeds=1)
    first, second = plan.cell_runs()
    first.folder.mkdir(parents=True)
    said: list[str] = []
    with open(first.folder / ".claim", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        run_cells(plan, say=said.append)
    assert [line.split(": ")[0] for line in said] == ["[1/2] still, seed 0"]
    assert first.result() is None
    assert second.result() is not None


def test_a_run_that_fails_is_a_result_that_says_so(
    finished: StudyRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diptych.errors import TrainingError

    def fail(*arguments: object, **named: object) -> None:
        run_pretraining(*arguments, **named)  # type: ignore[arg-type]
        raise TrainingError("the loss is nan")

    monkeypatch.setattr(f"{CELLS}.run_pretraining", fail)
    plan = planned(Path(finished.data), tmp_path / "out", seeds=1)
    said: list[str] = []
    run_cells(plan, cell="still/seed-0", say=said.append)
    assert said == ["[1/2] still, seed 0: failed: the loss is nan"]
    assert plan.results().values("still") == []
    write_study(plan)
    text = (plan.out / "index.md").read_text()
    assert "the loss is nan" in text
    assert "1 of 2 runs are done" in text
    assert "- Seed 0." in text


def test_a_page_says_how_many_runs_there_are_where_cells_have_other_numbers_of_seeds(
    finished: StudyRun, tmp_path: Path
) -> None:
    plan = planned(Path(finished.data), tmp_path / "out", seeds=2)
    for cell in ("still/seed-0", "still/seed-1", "crop/seed-0"):
        run_cells(plan, cell=cell)
    write_study(plan)
    text = (plan.out / "index.md").read_text()
    assert "3 of 4 runs are done." in text
    assert (
        "- Seeds 0 to 1; 3 of 4 runs, as many seeds of each cell as the table below says." in text
    )
    run_cells(plan)
    write_study(plan)
    assert "- Seeds 0 to 1; 4 runs." in (plan.out / "index.md").read_text()


def test_wrong_numbers_and_cells_are_refused(finished: StudyRun) -> None:
    with pytest.raises(ConfigError, match="--seeds must be 1 or more; got 0"):
        study_run(TINY, data="images", seeds=0)
    with pytest.raises(ConfigError, match=r"no cell 'crops'; wanted CELL/seed-K.*crop, still"):
        run_cells(finished, cell="crops")


@pytest.fixture
def in_the_catalog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diptych.studies.study_run.STUDIES", {"tiny": TINY})


@pytest.mark.usefixtures("in_the_catalog")
def test_a_file_of_commands_does_the_same_one_by_one(
    finished: StudyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = tmp_path / "commands.txt", tmp_path / "out"
    given = ["study", "tiny", "--data", finished.data, "--out", str(out), "--seeds", "1"]
    assert main([*given, "--threads", "1", "--write-commands", str(file)]) == 0
    assert "2 commands" in capsys.readouterr().out
    lines = file.read_text().splitlines()
    assert len(lines) == 2
    for line in lines:
        program, *arguments = shlex.split(line)
        assert program == "diptych"
        assert main(arguments) == 0
    assert not (out / "index.md").exists()
    assert main([*given, "--only-report"]) == 0
    assert (out / "index.md").exists()
    assert (
        finished.results().of("still")[0].measures
        == from_table((out / "table.csv").read_text())[1].measures
    )


def test_the_command_lists_studies_and_says_what_is_missing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["study"]) == 0
    listed = capsys.readouterr().out
    assert all(f"{study.name} " in listed for study in STUDIES.values())
    assert main(["study", "moment", "--data", "x"]) == EXIT_USER
    assert "no study 'moment'" in capsys.readouterr().err
    assert main(["study", "momentum"]) == EXIT_USER
    assert "give --data PATH" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_share_the_cells_and_end_by_one_signal(
    finished: StudyRun, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diptych", "study", "momentum", "--data", finished.data]
    command += ["--out", str(out), "--seeds", "1", "--jobs", "2", "--images", "48", "--epochs"]
    begun = subprocess.Popen([*command, "400"], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(out.glob("cells/*/seed-0/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    begun.send_signal(signal.SIGINT)
    _, said = begun.communicate(timeout=120)
    assert begun.returncode == 128 + signal.SIGINT
    assert "The same command goes on" in said
    ended = subprocess.run(
        [*command[:7], "--out", str(tmp_path / "short"), *command[9:], "1"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "[5/5]" in ended.stdout
    assert (tmp_path / "short" / "index.html").is_file()


def test_the_example_of_a_job_array_is_one(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "docs" / "studies" / "slurm.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    commands = tmp_path / "commands.txt"
    commands.write_text("echo first\necho second 'of two'\n")
    fake = tmp_path / "sbatch"
    fake.write_text('#!/bin/bash\necho "$@" > "$(dirname "$0")/asked"\n')
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["bash", str(script), str(commands)], check=True, env=environment)
    assert "--array=1-2" in (tmp_path / "asked").read_text().split()
    found = subprocess.run(
        ["bash", str(script), str(commands)],
        check=True, capture_output=True, text=True,
        env={**environment, "SLURM_ARRAY_TASK_ID": "2"},
    )  # fmt: skip
    assert found.stdout == "second of two\n"
