"""What `benchmarks/course.py` says of a run: each checkpoint kept, on all test images."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import course
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
    with ThreadPoolExecutor(1) as executor:
        *checkpoints, last = course.course_of(run, executor)

    said = diptych.evaluate(run.path, threads=1)

    assert last.knn == pytest.approx(100 * said["knn"]["trained"])
    assert last.linear == pytest.approx(100 * said["linear"]["trained"])
    assert checkpoints[-1][1:] == pytest.approx(last[1:])  # it kept the last one, as it is
    assert last.epochs == 1
    assert 0 < last.minutes < 5


def test_a_run_without_a_test_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    run = RunFolder(finished_run(three_classes(tmp_path / "images"), tmp_path / "run"))

    with ThreadPoolExecutor(1) as executor, pytest.raises(SystemExit, match="test/CLASS"):
        course.course_of(run, executor)


def test_its_drawing_marks_the_last_encoder(tmp_path: Path) -> None:
    points = [course.Point(minutes, minutes, 50 + minutes, 50.0, 51.0) for minutes in range(3)]

    course.draw(points, tmp_path / "course.svg")

    text = (tmp_path / "course.svg").read_text()
    assert "<!-- minutes -->" in text
    assert text.count("linear classifier") == 1
