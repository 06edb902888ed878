"""A classifier on a tiny run: fitted, kept, read again whatever lies there, and used."""

import csv
import json
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.special import softmax
from torch.utils.data import Dataset

import diptych
from conftest import striped
from diptych.classification import predict
from diptych.classification.classifier import (
    ENCODER,
    MANIFEST,
    PAGE,
    PREDICTIONS,
    WEIGHTS,
    ImageClassifier,
    LinearHead,
    NearestImages,
    load_classifier,
)
from diptych.classification.classifier_page import headline
from diptych.classification.fit import fit_classifier
from diptych.classification.predict import classify_vectors, predict_images
from diptych.cli.main import main
from diptych.embeddings.vectors import read_vectors
from diptych.errors import (
    ClassifierError,
    ConfigError,
    FeaturesError,
    ImagesError,
    RunFolderError,
)
from diptych.evaluation.linear import LinearClassifier
from evaluated_runs import finished_run


def fill(root: Path, count: int, seed: int) -> Path:
    rng = np.random.default_rng(seed)
    for label, name in enumerate(("<b>", "ü$_{", "class2")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.fromarray(striped(label, rng)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, 24 images each."""
    return fill(tmp_path_factory.mktemp("labelled") / "images", 24, 8)


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(images, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def fitted(run: Path, images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("models") / "model"
    assert main(["classify", "fit", str(run), str(images), "-o", str(out), "--threads", "1"]) == 0
    return out


@pytest.fixture
def model(fitted: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(fitted, tmp_path / "model"))


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_copies_of_an_image_say_no_more_than_one(run: Path, images: Path, tmp_path: Path) -> None:
    """With six of each test image the intervals are as wide as with one."""
    few = fill(tmp_path / "few", 4, 3)
    many = Path(shutil.copytree(few, tmp_path / "many"))
    for file in sorted(few.rglob("*.png")):
        for copy in range(5):
            shutil.copy(file, many / file.parent.name / f"{file.stem}-{copy}.png")
    found = []
    for name in ("few", "many"):
        test, out = tmp_path / name, tmp_path / f"of-{name}"
        fit_classifier(run, images, out, test=test, kind="knn", threads=1)
        found.append(json.loads((out / MANIFEST).read_text())["about"])
    assert [one["figures"]["images"] for one in found] == [12, 72]
    assert [one["split"]["test_units"] for one in found] == [12, 12]
    assert found[0]["figures"]["accuracy"] == pytest.approx(found[1]["figures"]["accuracy"])
    assert "as one: 12 of these 72 images" in found[1]["split"]["words"]


def test_the_folder_holds_what_is_promised(fitted: Path) -> None:
    assert {one.name for one in fitted.iterdir()} == {
        ENCODER,
        WEIGHTS,
        MANIFEST,
        PAGE,
        PREDICTIONS,
    }
    manifest = json.loads((fitted / MANIFEST).read_text())
    assert manifest["classes"] == ["<b>", "class2", "ü$_{"]
    assert manifest["about"]["fitted_on_all"]
    figures, rows = manifest["about"]["figures"], rows_of(fitted / PREDICTIONS)
    assert figures["images"] == len(rows) == 15  # a fifth of each class
    right = np.mean([row["label"] == row["predicted"] for row in rows])
    assert figures["accuracy"]["value"] == pytest.approx(right)
    assert figures["accuracy"]["value"] > 0.6
    for row in rows:
        chances = {key[2:-1]: float(one) for key, one in row.items() if key.startswith("p(")}
        assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
        assert chances[row["predicted"]] == max(chances.values()) == float(row["probability"])


def test_the_page_opens_offline_and_escapes_names(fitted: Path) -> None:
    page = (fitted / PAGE).read_text()
    HTMLParser().feed(page)
    assert "<b></td>" not in page
    assert "&lt;b&gt;" in page
    assert 'src="http' not in page
    assert "<script" not in page
    for heading in ("Where it is wrong", "Class by class", "How far to trust"):
        assert heading in page


def test_probabilities_are_those_of_the_formula(fitted: Path, images: Path) -> None:
    classifier = load_classifier(fitted)
    assert isinstance(classifier.head, LinearHead)
    features = diptych.extract_features(classifier.encoder, images, threads=1)
    weight, bias, mean, scale, _ = (
        np.asarray(one, dtype=np.float64) for one in classifier.head.fitted
    )
    standard = np.clip((features.numpy() - mean) * scale, -10, 10)
    wanted = softmax((standard @ weight.T + bias) / classifier.temperature, axis=1)
    said = predict_images(fitted, images, threads=1)
    np.testing.assert_allclose(classifier.probabilities(features), wanted, atol=1e-5)
    np.testing.assert_allclose(said.predictions.probability, wanted.max(axis=1), atol=1e-5)


def test_others_are_classified_with_their_labels_and_what_cannot_be_read(
    fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = fill(tmp_path / "photos", 10, 9)
    shutil.move(photos / "class2", photos / "unknown")
    broken = [f"<b>/broken{number}.png" for number in range(20)]  # far more than a run would take
    for name in broken:
        (photos / name).write_bytes(b"junk")
    out = tmp_path / "out" / "p.csv"
    assert main(["classify", "predict", str(fitted), str(photos), "-o", str(out)]) == 0
    rows = rows_of(out)
    assert len(rows) == 30
    assert {row["label"] for row in rows} == {"<b>", "ü$_{", ""}
    skipped = rows_of(out.with_suffix(".skipped.csv"))
    assert sorted(row["name"] for row in skipped) == sorted(broken)
    printed = capsys.readouterr().out
    assert "Of the 20 that have a label" in printed
    assert "20 cannot be read" in printed
    flat = tmp_path / "flat"
    shutil.copytree(photos / "unknown", flat)
    assert main(["classify", "predict", str(fitted), str(flat), "-o", str(out)]) == 0
    assert not out.with_suffix(".skipped.csv").exists()
    assert {row["label"] for row in rows_of(out)} == {""}
    junk = tmp_path / "junk"
    junk.mkdir()
    (junk / "a.png").write_bytes(b"junk")
    assert main(["classify", "predict", str(fitted), str(junk), "-o", str(out)]) == 2
    assert "1 of 1 images in" in (said := capsys.readouterr().err)
    assert "--images" not in said


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ({"p.csv": "name,notes\n"}, "no table of this command"),
        ({"p.npy": ""}, r"the table of names of p\.npy"),
        ({"p.skipped.csv": "frame,why\n"}, "no list of this command"),
        ({"p.parquet": "", "p.skipped.csv": "name,reason\n"}, r"may belong to p\.parquet"),
    ],
    ids=lambda one: " ".join(one) if isinstance(one, dict) else "",
)
def test_predictions_replace_nothing_of_others(
    there: dict[str, str], words: str, fitted: Path, images: Path, tmp_path: Path
) -> None:
    for name, content in there.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=words):
        predict_images(fitted, images, tmp_path / "p.csv", threads=1)
    assert {one.name: one.read_text() for one in tmp_path.iterdir()} == there


def test_images_in_parts_are_all_classified(fitted: Path, tmp_path: Path) -> None:
    fill(tmp_path / "set" / "train", 3, 1)
    fill(tmp_path / "set" / "test", 2, 2)
    fill(tmp_path / "set" / "val", 1, 3)
    (tmp_path / "set" / "train" / "<b>" / "notes.docx").write_bytes(b"x")
    found = predict_images(fitted, tmp_path / "set", threads=1)
    assert len(found.predictions) == 18
    # Each part numbers its images anew.
    assert len(set(found.predictions.names)) == 18
    assert {name.partition("/")[0] for name in found.predictions.names} == {"train", "test", "val"}
    assert any("docx" in sentence for sentence in found.left_out)


class Named(Dataset[Any]):
    """Stripes of three classes, whose names are given."""

    def __init__(self, *classes: str) -> None:
        self.classes, rng = classes, np.random.default_rng(4)
        self.items = [(striped(number % 3, rng), number % 3) for number in range(24)]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


@pytest.mark.parametrize(
    ("classes", "words"),
    [(("a", "b", "a"), "have the name 'a' 2 times among their 3"), (("a", "", "b"), "empty name")],
)
def test_classes_of_one_name_are_refused_before_fitting(
    classes: tuple[str, ...], words: str, run: Path, tmp_path: Path
) -> None:
    with pytest.raises(ImagesError, match=words):
        fit_classifier(run, Named(*classes), tmp_path / "m", threads=1)
    assert not (tmp_path / "m").exists()


def test_no_more_probabilities_are_held_than_a_table_has(
    fitted: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = predict_images(fitted, images, tmp_path / "whole.csv", threads=1).predictions
    shapes, original = list[tuple[int, ...]](), ImageClassifier.probabilities

    def probabilities(self: ImageClassifier, features: torch.Tensor) -> NDArray[np.float64]:
        found = original(self, features)
        shapes.append(found.shape)
        return found

    monkeypatch.setattr(ImageClassifier, "probabilities", probabilities)
    monkeypatch.setattr(predict, "_MOST_NUMBERS", 31)
    cut = predict_images(fitted, images, tmp_path / "cut.csv", threads=1).predictions
    assert shapes == [(10, 3)] * 7 + [(2, 3)]
    assert list(cut.names) == list(whole.names)
    for name in ("labels", "predicted", "label_rank"):
        np.testing.assert_array_equal(getattr(cut, name), getattr(whole, name))
    for name in ("probability", "label_probability"):
        np.testing.assert_allclose(getattr(cut, name), getattr(whole, name), atol=1e-6)
    assert rows_of(tmp_path / "cut.csv")[0].keys() == rows_of(tmp_path / "whole.csv")[0].keys()
    given = list[Any]()
    monkeypatch.setattr(predict, "MOST_COLUMNS", 2)
    monkeypatch.setattr(predict, "write_predictions", lambda *all_of_it: given.extend(all_of_it))
    predict_images(fitted, images, tmp_path / "cut.csv", threads=1)
    assert given[2] is None


def test_a_classifier_that_was_fitted_on_its_test_images_says_no_less(
    run: Path, images: Path, tmp_path: Path
) -> None:
    found = fit_classifier(run, images, tmp_path / "m", test=images, threads=1)
    assert headline(found.about).endswith("images right.")


def test_neighbours_vote_as_in_a_plain_loop(run: Path, images: Path, tmp_path: Path) -> None:
    held_out = fill(tmp_path / "test", 6, 10)
    found = fit_classifier(
        run, images, tmp_path / "knn", test=held_out, kind="knn", neighbours=5, threads=1
    )
    assert not found.about["fitted_on_all"]
    again = load_classifier(tmp_path / "knn")
    assert isinstance(again.head, NearestImages)
    ours = diptych.extract_features(again.encoder, held_out, threads=1)
    bank = again.head.features.double().numpy()
    bank /= np.linalg.norm(bank, axis=1, keepdims=True)
    wanted = []
    for one in ours.double().numpy():
        cosine = bank @ (one / np.linalg.norm(one))
        near = np.argsort(-cosine)[:5]
        votes = np.full(3, 1 / 3)
        for row in near:
            votes[again.head.labels[row]] += np.exp((cosine[row] - cosine[near[0]]) / 0.07)
        wanted.append(softmax(np.log(votes) / again.temperature))
    np.testing.assert_allclose(again.probabilities(ours), wanted, atol=1e-4)


def test_fine_tuning_keeps_the_encoder_that_it_tuned(
    run: Path, images: Path, tmp_path: Path
) -> None:
    found = fit_classifier(run, images, tmp_path / "m", kind="finetune", epochs=2, threads=1)
    assert not torch.equal(
        load_file(run / "encoder.safetensors")["conv1.weight"],
        load_file(tmp_path / "m" / ENCODER)["conv1.weight"],
    )
    held_out = {row["name"]: row for row in rows_of(tmp_path / "m" / PREDICTIONS)}
    said = predict_images(tmp_path / "m", images, threads=1).predictions
    for name, probability in zip(said.names, said.probability, strict=True):
        if name in held_out:
            assert float(held_out[name]["probability"]) == pytest.approx(probability, abs=1e-4)
    assert found.about["calibrated_on"] > 0


def test_a_feature_that_hardly_varied_does_not_decide_alone() -> None:
    ones = torch.ones(2)
    head = LinearClassifier(torch.eye(2), torch.zeros(2), 0 * ones, 1000 * ones, 0.1)
    far = torch.tensor([[5.0, 0.0]])
    assert LinearHead(head).scores(far).tolist() == [[10.0, 0.0]]
    assert LinearHead(head, None).scores(far).tolist() == [[5000.0, 0.0]]


def test_the_most_uncertain_are_those_of_the_same_encoder(
    fitted: Path, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--by", "uncertain", "--budget", "4", "-o", str(tmp_path / "s.csv")]
    for number, source in enumerate((run, fitted / ENCODER)):
        vectors = tmp_path / f"v{number}"
        diptych.embed(source, images, vectors, threads=1)
        assert main(["subset", str(vectors), "--model", str(fitted), *flags]) == 0
    chances = load_classifier(fitted).probabilities(
        diptych.extract_features(diptych.load_encoder(run), images, threads=1)
    )
    chances.sort(axis=1)
    least = np.sort(chances[:, -1] - chances[:, -2])[:4]
    scores = [float(row["score"]) for row in rows_of(tmp_path / "s.csv")]
    assert scores == pytest.approx((1 - least).tolist(), abs=1e-4)
    other = tmp_path / "other.safetensors"
    tensors = load_file(run / "encoder.safetensors")
    with safe_open(run / "encoder.safetensors", "pt") as file:
        header = file.metadata()
    save_file({name: 2 * one for name, one in tensors.items()}, other, header)
    diptych.embed(other, images, tmp_path / "v2", threads=1)
    assert main(["subset", str(tmp_path / "v2"), "--model", str(fitted), *flags]) == 2
    assert "another encoder" in capsys.readouterr().err
    diptych.embed(run, images, tmp_path / "v3", threads=1, crops="five")
    assert main(["subset", str(tmp_path / "v3"), "--model", str(fitted), *flags]) == 2
    assert "seen otherwise (crops: five there, center now)" in capsys.readouterr().err
    seen = read_vectors(tmp_path / "v0")
    assert seen.settings is not None
    views = seen.settings["views"]
    for name, value in (("side_pixels", 224), ("pixel_mean", [0.5] * 3), ("bits", 16)):
        other_views = replace(seen, settings={**seen.settings, "views": {**views, name: value}})
        with pytest.raises(ClassifierError, match=rf"seen otherwise \({name}: "):
            classify_vectors(fitted, other_views)


def changed(model: Path, **values: Any) -> None:
    manifest = json.loads((model / MANIFEST).read_text())
    (model / MANIFEST).write_text(json.dumps(manifest | values))


def with_tensor(model: Path, name: str, value: NDArray[Any] | torch.Tensor) -> None:
    tensors = load_file(model / WEIGHTS)
    save_file(tensors | {name: torch.as_tensor(value)}, model / WEIGHTS)


@pytest.mark.parametrize(
    "damage",
    [
        {"classes": ["a", "a", "b"]},
        {"classes": ["a", "b"]},
        {"classes": "abc"},
        {"classes": [1, 2, 3]},
        {"temperature": 0},
        {"temperature": "1"},
        {"temperature": float("nan")},
        {"kind": "pickle"},
        {"kind": "knn"},
        {"crops": "../.."},
        {"farthest": -1},
        {"format": 2},
    ],
)
def test_a_manifest_that_means_nothing_is_refused(damage: dict[str, Any], model: Path) -> None:
    changed(model, **damage)
    with pytest.raises(ClassifierError):
        load_classifier(model)


def test_damaged_files_are_refused(model: Path, tmp_path: Path) -> None:
    good = (model / WEIGHTS).read_bytes()
    weight = load_file(model / WEIGHTS)["weight"]
    for value in (weight[:, :-1], weight.double(), weight * torch.nan, weight[:2]):
        with_tensor(model, "weight", value.contiguous())
        with pytest.raises(ClassifierError):
            load_classifier(model)
        (model / WEIGHTS).write_bytes(good)
    (model / WEIGHTS).write_bytes(good[:-10])
    with pytest.raises(ClassifierError):
        load_classifier(model)
    (model / WEIGHTS).write_bytes(good)
    load_classifier(model)
    for text in ("", "[]", "[" * 100_000):
        (model / MANIFEST).write_text(text)
        with pytest.raises(ClassifierError):
            load_classifier(model)
    with pytest.raises(ClassifierError, match="no folder of a classifier"):
        load_classifier(tmp_path)


def test_a_missing_encoder_and_other_features_are_refused(model: Path) -> None:
    classifier = load_classifier(model)
    with pytest.raises(ClassifierError, match="takes features"):
        classifier.probabilities(torch.zeros(2, classifier.dim + 1))
    with pytest.raises(FeaturesError):
        classifier.probabilities(torch.full((2, classifier.dim), torch.nan))
    (model / ENCODER).unlink()
    with pytest.raises(RunFolderError):
        load_classifier(model)


def test_what_is_there_is_not_replaced(
    run: Path,
    images: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("1")
    with pytest.raises(ConfigError, match=r"holds something else too, as thesis\.tex"):
        fit_classifier(run, images, tmp_path / "mine", threads=1)
    (tmp_path / "mine" / "thesis.tex").rename(tmp_path / "thesis.tex")
    # As other programs call theirs.
    (tmp_path / "mine" / "model.json").write_text('{"learner": {}}')
    with pytest.raises(ClassifierError, match="is not of a classifier"):
        fit_classifier(run, images, tmp_path / "mine", threads=1)
    assert (tmp_path / "mine" / "model.json").exists()
    (tmp_path / "alone").mkdir()
    shutil.copy(run / ENCODER, tmp_path / "alone")
    with pytest.raises(ConfigError, match=r"holds encoder\.safetensors and no model\.json"):
        fit_classifier(run, images, tmp_path / "alone", threads=1)
    assert (tmp_path / "alone" / ENCODER).exists()
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(ConfigError, match="the folder that you are in"):
        fit_classifier(run, images, ".", threads=1)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"ends in \.csv"):
        predict_images(tmp_path, images, tmp_path / "mine")
    assert main(["classify", "predict", "m", "p", "-o", "p.csv", "--kind", "knn"]) == 2
    assert "go with `diptych classify fit`" in capsys.readouterr().err
