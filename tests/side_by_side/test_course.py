"""What `benchmarks/course.py` says of a run: each checkpoint kept, on all test images."""

import shutil
import sys
from pathlib import Path

import course
import matplotlib as mpl
import pytest

import diptych
from diptych.runs.folder import RunFolder
from evaluated_runs import SETTINGS, finished_run, three_classes


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("course")
    for part in ("train", "test"):
        (root / "images" / part).mkdir(parents=True)
        three_classes(root / "images" / part)
    settings = SETTINGS | {"training.keep.kind": "last"}
    run = diptych.pretrain(root / "images", out=root / "run", quiet=True, **settings)
    return RunFolder(run)


def test_a_course_ends_with_what_evaluation_says_of_the_run(run: RunFolder) -> None:
    *checkpoints, last = course.course_of(run)

    said = diptych.evaluate(run.path, threads=1)

    assert last.knn == pytest.approx(100 * said["knn"]["trained"])
    assert last.linear == pytest.approx(100 * said["linear"]["trained"])
    assert checkpoints[-1][1:] == pytest.approx(last[1:])  # it kept the last one, as it is
    assert last.epochs == 1
    assert 0 < last.minutes < 5


def test_a_run_without_a_test_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    run = RunFolder(finished_run(three_classes(tmp_path / "images"), tmp_path / "run"))

    with pytest.raises(RuntimeError, match="test/CLASS"):
        course.course_of(run)


def test_its_drawing_marks_the_last_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mpl.rcParams, "svg.hashsalt", "same")
    points = [course.Point(minutes, minutes, 50 + minutes, 50.0, 51.0) for minutes in range(3)]
    drawn = []
    for knn in (50.5, 50.5, 51.0):
        course.draw([*points, points[-1]._replace(knn=knn)], tmp_path / "course.svg")
        drawn.append((tmp_path / "course.svg").read_text())

    assert "<!-- minutes -->" in drawn[0]
    assert drawn[0] == drawn[1]
    assert drawn[1] != drawn[2]


def test_a_run_that_has_not_ended_is_refused_in_words(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("encoder.*"))
    monkeypatch.setattr(sys, "argv", ["course.py", str(tmp_path / "run")])

    with pytest.raises(SystemExit, match="encoder"):
        course.main()
