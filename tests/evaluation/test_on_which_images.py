"""From a folder to the page: every figure says on which images it was measured."""

import json
import shutil
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import diptych
from conftest import striped
from diptych.cli.main import main
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.diagnostics.health import build_health
from diptych.diagnostics.ranking import rank_runs
from diptych.errors import ConfigError, ImagesError
from diptych.evaluation.labelled import open_labelled
from diptych.evaluation.predictions import read_predictions
from diptych.evaluation.protocols import evaluate
from diptych.images.collection import spread_indices
from diptych.images.open import open_images
from diptych.report.charts import chart_groups
from diptych.report.page import write_report
from diptych.runs.folder import RunFolder
from evaluated_runs import SETTINGS, finished_run

RNG = np.random.default_rng(11)


def fill(folder: Path, label: int, names: Iterable[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.fromarray(striped(label, RNG, 24)).save(folder / f"{name}.png")


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/CLASS, and a test part without classes."""
    root = tmp_path_factory.mktemp("flat")
    for label in range(3):
        fill(root / "train" / f"class{label}", label, map(str, range(15)))
    fill(root / "test", 1, map(str, range(6)))
    return root


@pytest.fixture(scope="module")
def finished(flat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(flat, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def words(*texts: str) -> str:
    return " ".join(" ".join(texts).split())


def test_a_fifth_of_what_was_learned_from_is_said_to_be_that(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", str(run), "--threads", "1"]) == 0
    said = words(capsys.readouterr().out)
    assert "measured on 9 images that pretraining saw (without labels), cut from the same" in said
    assert "The 6 held-out images have no labels" in said
    assert "% of 9 images that pretraining saw (without labels) get the right class" in said
    found = json.loads((run / "evaluation.json").read_text())
    for name in ("knn", "linear"):
        split = found["details"][name]["split"]
        assert (split["test_images"], split["test_images_seen"], split["cut"]) == (9, 9, True)
    page = words(write_report(run, threads=1).read_text())
    assert "kNN on 9 images that pretraining saw (without labels). The best" in page
    assert "kNN is measured on 9 images, 9 of which the run learns from." in page
    line = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert (line["knn_images"], line["knn_images_seen"]) == (9, 9)


def test_images_elsewhere_that_were_learned_from_are_counted(
    run: Path, flat: Path, tmp_path: Path
) -> None:
    for label in range(3):
        fill(tmp_path / "val" / f"class{label}", label, ["new", "newer"])
        fitted = flat / "train" / f"class{label}"
        shutil.copytree(fitted, tmp_path / "labelled" / f"class{label}")
    shutil.copy(flat / "train" / "class1" / "3.png", tmp_path / "val" / "class1" / "moved.png")
    found = evaluate(run, ["knn"], threads=1, train=tmp_path / "labelled", test=tmp_path / "val")
    split = found["details"]["knn"]["split"]
    assert (split["test_images"], split["test_images_seen"]) == (7, 1)
    assert split["test_images_in_train"] == 1
    assert "7 images, 1 of which pretraining saw (without labels)" in split["words"]
    RunFolder(run).trained_on.unlink()  # as of a run of before it was kept
    found = evaluate(run, ["knn"], threads=1, train=tmp_path / "labelled", test=tmp_path / "val")
    said = found["details"]["knn"]["split"]["words"]
    assert "7 images (whether pretraining saw them is not known)" in said


def test_figures_on_different_images_have_each_their_caption(run: Path, tmp_path: Path) -> None:
    evaluate(run, ["linear"], threads=1)
    for label in range(3):
        fill(tmp_path / "new" / f"class{label}", label, map(str, range(5)))
    found = evaluate(run, ["knn", "geometry"], threads=1, train=tmp_path / "new")
    (group,) = chart_groups(found)
    captions = {chart.title: chart.images for chart in group.charts}
    assert "12 labelled images" in captions["12 nearest neighbours"]
    assert "did not see" in captions["12 nearest neighbours"]
    assert "36 labelled images" in captions["linear classifier"]
    assert "9 images that pretraining saw" in captions["linear classifier"]
    page = words(write_report(run, threads=1).read_text())
    assert all(words(caption) in page for caption in captions.values())
    assert "Measured on 6 images that pretraining did not see." in page  # the geometry
    assert "on other images, so the two cannot be compared" in page


def test_fewer_images_are_fitted_and_measured_on_where_that_is_asked(
    run: Path, flat: Path, tmp_path: Path
) -> None:
    """The same as a folder of these images alone."""
    few: Any = {"fit_images": 18, "test_images": 12}
    for label in range(3):
        fill(tmp_path / "test" / f"class{label}", label, [f"{n:02}" for n in range(8)])
    given: Any = {"train": flat / "train", "test": tmp_path / "test", "threads": 1}
    found = evaluate(run, ["knn", "linear"], **given, **few)
    split = found["details"]["knn"]["split"]
    assert (split["train_images"], split["test_images"]) == (18, 12)
    assert "Of 45 images 18 are fitted on, spread over all." in split["words"]
    assert "Of 24 images 12 are measured on, spread over all." in split["words"]
    for part, folder, count, most in (
        ("a", flat / "train", 45, 18),
        ("b", tmp_path / "test", 24, 12),
    ):
        files = sorted(folder.rglob("*.png"))
        assert len(files) == count
        for row in range(most):
            file = files[row * (count - 1) // (most - 1)]
            (tmp_path / part / file.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(file, tmp_path / part / file.parent.name)
    given |= {"train": tmp_path / "a", "test": tmp_path / "b"}
    alone = evaluate(run, ["knn", "linear"], **given)
    assert alone["knn"] == found["knn"]
    assert alone["linear"] == found["linear"]
    with pytest.raises(ConfigError, match="--test-images must be 10 or more; got 3"):
        evaluate(run, ["knn"], threads=1, test_images=3)


def test_a_class_of_which_no_image_is_fitted_on_is_never_answered(
    run: Path, tmp_path: Path, rng: np.random.Generator
) -> None:
    # Of 60 images in no order 10 are fitted on, none of them of the last class.
    images = rng.integers(0, 256, (60, 9, 9, 3), dtype=np.uint8)
    labels = np.arange(60) % 5
    chosen = spread_indices(60, 10)
    labels[chosen] %= 4
    labels[np.setdiff1d(np.arange(60), chosen)[:6]] = 4
    np.savez(tmp_path / "train.npz", images=images, labels=labels)
    np.savez(tmp_path / "test.npz", images=images[::2], labels=np.arange(30) % 5)
    given: Any = {"train": tmp_path / "train.npz", "test": tmp_path / "test.npz", "threads": 1}
    found = evaluate(run, ["knn", "linear"], **given, fit_images=10)
    assert 0 <= found["linear"]["trained"] < 1
    said = read_predictions(run / "predictions.csv")
    assert said is not None
    assert 4 in said.labels
    assert 4 not in said.predicted


def test_of_a_set_that_is_cut_each_image_is_counted_once(run: Path) -> None:
    found = evaluate(run, ["knn"], threads=1, fit_images=20)
    split = found["details"]["knn"]["split"]
    assert (split["train_images"], split["test_images"], split["cut"]) == (20, 9, True)
    assert found["details"]["knn_leave_one_out"]["split"]["test_images"] == 29


def test_what_lies_beside_given_images_is_said(tmp_path: Path) -> None:
    for part in ("one/train", "one/val", "two/train", "two/test"):
        for label in range(2):
            fill(tmp_path / part / f"class{label}", label, "abc")
    (tmp_path / "one/train/class0/x.jxl").write_bytes(b"?")
    (tmp_path / "two/test/class1/x.tga").write_bytes(b"?")
    with ThreadPoolExecutor(1) as executor:
        one, two = tmp_path / "one", tmp_path / "two"
        said = open_labelled(ImagesConfig(), executor, train=one, test=two).words
    assert f"In {one}: Left out in train: train/class0/x.jxl, .jxl is not read here;" in said
    assert f"In {two}: Left out in test: test/class1/x.tga, .tga is not read here;" in said
    assert f"Of {one}, the part val is not used, as there is --test." in said
    assert f"Of {two}, the part test is measured on." in said


def test_classes_that_differ_are_no_verdict(run: Path, flat: Path, tmp_path: Path) -> None:
    fill(tmp_path / "val" / "Class0", 0, "ab")
    fill(tmp_path / "val" / "other", 1, "ab")
    with pytest.raises(ImagesError, match=r"none in common.*'Class0' and 'class0'"):
        evaluate(run, ["knn"], threads=1, train=flat / "train", test=tmp_path / "val")
    assert not (run / "evaluation.json").exists()
    with pytest.raises(ImagesError, match=r"--test .*has no labels"):
        evaluate(run, ["knn"], threads=1, train=flat / "train", test=flat / "test")


def test_a_table_of_labels_for_one_part_only_is_refused(run: Path, tmp_path: Path) -> None:
    names = "abcdefghijk"
    fill(tmp_path / "train", 0, names)
    fill(tmp_path / "val", 1, "xy")
    rows = [f"{name}.png,{number % 2},1" for number, name in enumerate(names)]
    (tmp_path / "train" / "labels.csv").write_text("\n".join(["name,red,round", *rows, ""]))
    with pytest.raises(ImagesError, match="none of the 2 held-out ones"):
        evaluate(run, ["transfer"], threads=1, transfer=(tmp_path,))
    (tmp_path / "val" / "labels.csv").write_text("name,red,round\nx.png,1,0\ny.png,0,1\n")
    found = evaluate(run, ["transfer"], threads=1, transfer=(tmp_path,))
    task = found["details"]["transfer"]["tasks"][str(tmp_path)]
    assert task["split"]["test_images_seen"] == 0
    assert task["split"]["left_out"] == []
    (tmp_path / "train" / "broken.png").write_bytes(b"junk")
    damaged = evaluate(run, ["transfer"], threads=1, transfer=(tmp_path,))
    words = damaged["details"]["transfer"]["tasks"][str(tmp_path)]["split"]["words"]
    assert "1 training images that cannot be used (broken.png)" in words
    assert "did not see" in chart_groups(found)[0].text


def test_training_goes_on_where_classes_differ(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    for part, names in (("train", ("a", "b")), ("val", ("A", "z"))):
        for label, name in enumerate(names):
            fill(tmp_path / part / name, label, "stuv")
    collection = open_images(ImagesConfig(path=str(tmp_path)), executor)
    probe = build_health(collection, ViewsConfig(side_pixels=16), executor, image_count=16)
    assert probe.labelled is None
    assert "kNN is not measured while the run trains: the test images are of" in probe.words


def test_a_ranking_says_on_which_images(run: Path, flat: Path) -> None:
    found = rank_runs([run], images=flat / "train", labels=True, threads=1)
    assert found.splits[str(run)].words == (
        "Measured on 45 images that pretraining saw (without labels)."
    )
    assert found.as_dict()["splits"][str(run)]["test_images_seen"] == 45
    assert "cut from the same set" in found.labelled[str(run)].words
    assert (
        "6 images that pretraining did not see"
        in rank_runs([run], threads=1).splits[str(run)].words
    )


def test_a_student_saw_what_its_teacher_saw(run: Path, flat: Path, tmp_path: Path) -> None:
    fill(tmp_path / "more", 1, map(str, range(20)))
    student = diptych.pretrain(
        tmp_path / "more",
        out=tmp_path / "student",
        quiet=True,
        **(SETTINGS | {"distillation.teacher": str(run), "distillation.labelled": str(flat)}),
    )
    found = evaluate(student, ["knn"], threads=1, train=flat / "train")
    assert found["details"]["knn"]["split"]["labels_used"]
    assert (
        "9 images that pretraining saw (with labels)" in (found["details"]["knn"]["split"]["words"])
    )
