"""Protocols on a tiny run: what they add to evaluation.json, their rivals, and the page of it."""

import copy
import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file
from sklearn.metrics import f1_score, roc_auc_score

import diptych
from diptych.config.model import NormConfig
from diptych.errors import ConfigError, FeaturesError, ImagesError, RunFolderError, TrainingError
from diptych.evaluation import supervised_encoder
from diptych.evaluation.knn_and_linear import _judge_classes, _judge_labels, find_tags
from diptych.evaluation.labelled import open_labelled
from diptych.evaluation.predictions import read_predictions
from diptych.evaluation.protocols import PROTOCOLS, evaluate, merged
from diptych.evaluation.sgd import finetune
from diptych.evaluation.sgd.finetune import FineTuningSchedule, baseline_schedule, fine_tune
from diptych.evaluation.sgd.linear_sgd import SGD_PROBES, fit_linear_sgd
from diptych.evaluation.subject import Subject
from diptych.evaluation.train_on_labels import Classifier, predict
from diptych.images.open import open_images
from diptych.models.encoders import count_features
from diptych.models.final_features import IntermediateLayer, Whitening
from diptych.models.resnets import SmallResNet
from diptych.models.weights import PretrainedEncoder, load_encoder, untrained_encoder
from diptych.report.charts import chart_groups
from diptych.report.page import verdict_of, write_report
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime
from evaluated_runs import SETTINGS, finished_run, three_classes

OF_NAMED = ("encoder.width", "encoder.stage_blocks")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return three_classes(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_run(images, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy that a test may write to."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def runtime() -> Iterator[Runtime]:
    with Runtime(threads=1) as one:
        yield one


def test_results_are_added_to_what_is_there(run: Path) -> None:
    first = evaluate(run, threads=1)
    assert {"knn", "linear", "protocol", "details", "knn_leave_one_out"} == set(first)
    assert list(first["knn"]) == ["trained", "untrained", "pixels"]
    again = evaluate(run, ["finetune"], threads=1, finetune_epochs=1, seeds=1)
    assert again["knn"] == first["knn"]
    assert set(again["details"]) == {"knn", "linear", "knn_leave_one_out", "finetune"}
    assert set(again["finetune"]) == {"1", "0.1", "0.01"}
    assert again["details"]["finetune"]["shares"]["0.1"]["images"] == 6  # of 57: two of each
    assert json.loads((run / "evaluation.json").read_text()) == again
    assert "NaN" not in (run / "evaluation.json").read_text()  # one seed: no interval, so null


def test_what_is_measured_is_kept_whatever_follows(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(subject: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    monkeypatch.setitem(PROTOCOLS, "geometry", stopped)
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, ["knn", "geometry"], threads=1)
    kept = json.loads((run / "evaluation.json").read_text())
    assert set(kept["details"]) == {"knn", "knn_leave_one_out"}
    measured = list[str]()
    monkeypatch.setitem(PROTOCOLS, "knn", lambda subject: measured.append("knn"))
    with pytest.raises(ConfigError, match="--transfer"):
        evaluate(run, ["knn", "transfer"], threads=1)
    assert not measured


def test_another_encoder_takes_no_place_of_ours(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(run, tmp_path / "others" / "trained")
    monkeypatch.chdir(tmp_path / "others")
    found = evaluate(run, ["knn"], threads=1, against=("trained",))
    assert list(found["knn"]) == ["trained", "untrained", "./trained", "pixels"]


def test_predictions_are_those_of_the_linear_classifier(run: Path) -> None:
    found = evaluate(run, threads=1)
    said = read_predictions(run / "predictions.csv")
    assert said is not None
    assert len(said) == found["protocol"]["test_images"]
    assert said.right.mean() == pytest.approx(found["linear"]["trained"])
    assert found["details"]["linear"]["labelled"] == {"train": None, "test": None}
    assert "predictions" not in found
    assert set(said.names) < {f"class{label}/{n}.png" for label in range(3) for n in range(24)}


def test_an_encoder_file_is_measured_as_the_run_that_it_is_from(
    run: Path, images: Path, tmp_path: Path
) -> None:
    of_run = evaluate(run, train=images, threads=1)
    file = Path(shutil.copy(run / "encoder.safetensors", tmp_path / "own.safetensors"))
    found = evaluate(file, train=images, threads=1)
    assert found["knn"] == of_run["knn"]
    assert found["linear"] == of_run["linear"]
    folder = tmp_path / "own-evaluation"
    assert json.loads((folder / "evaluation.json").read_text()) == found
    assert {one.name for one in tmp_path.iterdir()} == {"run", file.name, folder.name}
    verdict = verdict_of(file)
    assert f"{found['knn']['trained']:.1%} of" in verdict.headline
    assert "train" not in verdict.headline.replace("untrained", "").replace("pretraining", "")
    # The file in the folder of its run is the run.
    assert evaluate(run / "encoder.safetensors", threads=1)["knn"] == of_run["knn"]
    assert not (run / "encoder-evaluation").exists()


def test_results_of_an_encoder_that_was_in_the_file_before_are_not_kept(
    run: Path, images: Path, tmp_path: Path
) -> None:
    file = Path(shutil.copy(run / "encoder.safetensors", tmp_path / "own.safetensors"))
    evaluate(file, train=images, threads=1)
    again = evaluate(file, ["transfer"], transfer=[str(images)], threads=1)  # needs no --train
    assert {"knn", "linear", "transfer"} <= set(again)
    state = load_file(file)
    with safetensors.safe_open(file, "pt") as opened:
        header = opened.metadata()
    state["conv1.weight"] *= 1.5
    save_file(state, file, header)
    other = evaluate(file, ["knn"], train=images, threads=1)
    assert "knn" in other
    assert not {"linear", "transfer"} & set(other)


def test_a_file_of_another_library_is_refused_with_what_makes_it_one(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, error in (("other.pth", ConfigError), ("other.safetensors", RunFolderError)):
        with pytest.raises(error, match="diptych import"):
            evaluate(tmp_path / name, train="x", threads=1)
    assert not list(tmp_path.glob("*-evaluation"))


@pytest.mark.parametrize(
    ("protocols", "more", "wanted"),
    [
        (("knn",), {}, "without images.*--train PATH"),
        (("knn", "geometry"), {"train": "x"}, "geometry needs the head"),
        (("knn",), {"train": "x", "supervised": True}, "Leave it away"),
    ],
)
def test_what_an_encoder_file_cannot_be_measured_by_is_refused(
    run: Path, tmp_path: Path, protocols: Any, more: Any, wanted: str
) -> None:
    file = Path(shutil.copy(run / "encoder.safetensors", tmp_path / "own.safetensors"))
    with pytest.raises(ConfigError, match=wanted):
        evaluate(file, protocols, threads=1, **more)
    assert not (tmp_path / "own-evaluation").exists()


@pytest.mark.slow
def test_mistakes_on_other_images_are_shown_until_these_are_gone(
    run: Path, images: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(images, tmp_path / "other"))
    (other / "class0").rename(other / "aside")  # so that every answer of class1 is wrong
    (other / "class1").rename(other / "class0")
    (other / "aside").rename(other / "class1")
    evaluate(run, threads=1)
    page = write_report(run, threads=1).read_text()
    assert "Where it is wrong" in page
    assert "picture not found" not in page
    evaluate(run, ["linear"], train=images, test=other, threads=1)
    page = write_report(run, threads=1).read_text()
    assert page.count("picture not found") == 0
    assert "taken for" in page
    shutil.rmtree(other)
    assert "picture not found" in write_report(run, threads=1).read_text()
    (run / "predictions.csv").write_text("name")
    with pytest.raises(RunFolderError, match="evaluate again"):
        write_report(run, threads=1)


def test_intervals_hold_the_figure_and_gains_are_differences(run: Path) -> None:
    found = evaluate(run, ["knn"], threads=1)
    accuracy = found["details"]["knn"]["metrics"]["accuracy"]
    for name, interval in accuracy["intervals"].items():
        assert interval["value"] == found["knn"][name]
        assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    gain = accuracy["gains"]["pixels"]
    assert gain["value"] == pytest.approx(found["knn"]["trained"] - found["knn"]["pixels"])
    assert gain["low"] <= gain["value"] <= gain["high"]


def test_results_on_other_images_keep_each_their_own() -> None:
    protocol = {"images": "a", "test_images": 5, "head_layers": 0}
    earlier = {"knn": {"trained": 0.1}, "linear": {"trained": 0.2}, "protocol": protocol}
    same = merged(earlier, {"knn": {"trained": 0.3}, "protocol": {**protocol, "more": 1}})
    assert same["linear"] == {"trained": 0.2}
    assert same["protocol"] == {**protocol, "more": 1}
    other = {"knn": {"trained": 0.3}, "protocol": {"images": "b"}, "details": {"knn": 2}}
    assert merged({**earlier, "details": {"knn": 1, "linear": 1}}, other) == {
        "knn": {"trained": 0.3},
        "linear": {"trained": 0.2},
        "protocol": {"images": "b"},
        "details": {"knn": 2, "linear": 1},
    }
    finetune = {"finetune": {"1": {"trained": 0.4}}, "details": {"finetune": 1}}
    assert merged(earlier, finetune) == {**earlier, **finetune}


@pytest.mark.parametrize(
    ("protocol", "parts", "names"),
    [("finetune", "shares", ("1", "0.1", "0.01")), ("transfer", "tasks", ("birds", "cars", "x"))],
)
def test_parts_stay_beside_others_that_were_measured_alike(
    protocol: str, parts: str, names: tuple[str, str, str]
) -> None:
    def found(name: str, accuracy: float, **settings: Any) -> dict[str, Any]:
        table = {"settings": settings, parts: {name: {"gain": accuracy}}}
        return {protocol: {name: {"trained": accuracy}}, "details": {protocol: table}}

    first, second, third = names
    both = merged(found(first, 0.9, seeds=3), found(second, 0.5, seeds=3))
    assert both[protocol] == {first: {"trained": 0.9}, second: {"trained": 0.5}}
    assert both["details"][protocol][parts] == {first: {"gain": 0.9}, second: {"gain": 0.5}}
    again = merged(both, found(second, 0.6, seeds=3))
    assert again[protocol] == {first: {"trained": 0.9}, second: {"trained": 0.6}}
    assert again["details"][protocol][parts][second] == {"gain": 0.6}
    otherwise = found(third, 0.4, seeds=5)
    assert merged(both, otherwise) == otherwise


def test_each_image_by_all_others_goes_with_the_neighbours_it_was_measured_with() -> None:
    earlier = {
        "knn": {"trained": 0.1},
        "knn_leave_one_out": {"trained": 0.2},
        "details": {"knn": 1, "knn_leave_one_out": 2, "linear": 3},
    }
    later = {"knn": {"trained": 0.3}, "details": {"knn": 4}}
    assert merged(earlier, later) == {
        "knn": {"trained": 0.3},
        "details": {"knn": 4, "linear": 3},
    }
    assert merged(earlier, {"linear": {"trained": 0.5}})["knn_leave_one_out"] == {"trained": 0.2}


def test_rivals_are_measured_beside_the_run(run: Path, finished: Path) -> None:
    encoder = finished / "encoder.safetensors"
    found = evaluate(run, ["knn"], threads=1, against=(finished, encoder))
    assert found["knn"][str(finished)] == found["knn"][str(encoder)] == found["knn"]["trained"]
    gain = found["details"]["knn"]["metrics"]["accuracy"]["gains"][str(encoder)]
    assert gain["value"] == 0.0  # the same encoder, in pairs
    assert gain["low"] == -gain["high"]
    with pytest.raises(RunFolderError, match="does not exist"):
        evaluate(run, ["knn"], threads=1, against=(run / "nothing",))


def test_the_supervised_rival_is_trained_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[int] = []
    original = supervised_encoder.train_supervised

    def counted(*arguments: Any, epochs: int) -> torch.nn.Module:
        trained.append(epochs)
        return original(*arguments, epochs=epochs)

    monkeypatch.setattr(supervised_encoder, "train_supervised", counted)
    first = evaluate(run, ["knn"], threads=1, supervised=True)
    assert evaluate(run, ["knn"], threads=1, supervised=True)["knn"] == first["knn"]
    # The run took 4 steps of 72 images; 57 labelled ones make 3 a pass, so 2 passes.
    assert trained == [2]
    ours, theirs = (
        load_encoder(run / name).network.state_dict()
        for name in ("encoder.safetensors", "supervised.safetensors")
    )
    assert ours.keys() == theirs.keys()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    (run / "supervised.safetensors").write_bytes(b"junk")
    assert evaluate(run, ["knn"], threads=1, supervised=True)["knn"] == first["knn"]
    assert len(trained) == 2


def stem_of(file: Path, own: torch.nn.Module | None = None) -> dict[str, torch.Tensor]:
    state = load_encoder(file, encoder=own).network.state_dict()
    return {name: value for name, value in state.items() if name.startswith(("conv1.", "bn1."))}


def test_the_supervised_rival_begins_with_the_weights_of_the_run_and_freezes_its_parts(
    finished: Path, images: Path, tmp_path: Path
) -> None:
    own = SmallResNet(3, 4, (1, 1), 2)
    named = {"weights": str(finished), "encoder.frozen_epochs": 9.0}
    for name, module, given in (("weights", None, named), ("own", own, {"encoder": own})):
        more = {**SETTINGS, "encoder.frozen_parts": 1, **given}
        if module is not None:
            more = {key: one for key, one in more.items() if key not in OF_NAMED}
        folder = RunFolder(diptych.pretrain(images, out=tmp_path / name, quiet=True, **more))
        evaluate(folder.path, ["knn"], threads=1, supervised=True, encoder=module)
        begun = folder.start if module is None else folder.untrained
        wanted, found = stem_of(begun, module), stem_of(folder.supervised, module)
        assert wanted
        assert all(torch.equal(found[key], value) for key, value in wanted.items())
        weight = "blocks.0.conv1.weight"
        ends = [load_encoder(one, encoder=module).network for one in (begun, folder.supervised)]
        assert not torch.equal(*(one.get_parameter(weight) for one in ends))


def test_the_supervised_rival_sees_whole_groups(run: Path, runtime: Runtime) -> None:
    config = load_encoder(run).config
    norm = NormConfig(kind="split", images_per_group=4)
    config = replace(config, norm=norm, training=replace(config.training, batch_size=64))
    labelled = open_labelled(config.images, runtime.executor)
    assert len(labelled.train) % 4 == 1
    encoder = untrained_encoder(config)
    supervised_encoder.train_supervised(encoder, config, labelled, runtime, epochs=1)
    assert encoder.state_dict()["bn1.num_batches_tracked"] == 2  # one step, two views


def test_sgd_moves_the_classifier_alone(run: Path, runtime: Runtime) -> None:
    encoder = load_encoder(run)
    before = copy.deepcopy(encoder.state_dict())
    labelled = open_labelled(encoder.config.images, runtime.executor)
    probe = SGD_PROBES["simclr"]
    classifier = fit_linear_sgd(encoder, labelled, probe, runtime, epochs=2)
    assert isinstance(classifier, Classifier)
    for name, value in classifier.encoder.state_dict().items():
        assert torch.equal(value, before[name]), name  # statistics of norms too
    assert float(classifier.head.bias.detach().abs().max()) > 0
    assert SGD_PROBES["moco"].rate == 30.0
    assert SGD_PROBES["moco"].schedule.step.drops == (0.6, 0.8)


def test_sgd_measures_the_encoder_that_is_kept(run: Path, runtime: Runtime) -> None:
    plain = load_encoder(run)
    layer = IntermediateLayer("blocks.0", 1)
    features = count_features(
        PretrainedEncoder(plain.network, plain.config, layer=layer), channels=3, side_pixels=16
    )
    whitening = Whitening(torch.randn(features), torch.randn(features, features))
    kept = PretrainedEncoder(plain.network, plain.config, whitening, layer)
    labelled = open_labelled(kept.config.images, runtime.executor)
    classifier = fit_linear_sgd(kept, labelled, SGD_PROBES["simclr"], runtime, epochs=1)
    assert isinstance(classifier, Classifier)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        wanted = kept(images) @ classifier.head.weight.T + classifier.head.bias
        torch.testing.assert_close(classifier(images), wanted)


def test_fine_tuning_moves_a_copy_and_learns(run: Path, runtime: Runtime) -> None:
    encoder = load_encoder(run)
    before = copy.deepcopy(encoder.state_dict())
    labelled = open_labelled(encoder.config.images, runtime.executor)
    rows, schedule = np.arange(len(labelled.train)), FineTuningSchedule(12, 0.05)
    tuned = fine_tune(encoder, labelled, rows, runtime, schedule, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in encoder.state_dict().items())
    assert not any(p.requires_grad for p in encoder.parameters())
    moved = tuned.encoder.state_dict()  # type: ignore[union-attr]
    assert any(not torch.equal(value, before[f"network.{n}"]) for n, value in moved.items())

    said = predict(tuned, labelled.train, encoder.config.views, runtime)
    assert (said == labelled.train_labels).double().mean() > 0.6  # chance is a third


@pytest.mark.parametrize("protocol", ["knn", "linear", "finetune", "geometry"])
def test_an_encoder_of_no_numbers_is_refused_in_one_sentence(run: Path, protocol: str) -> None:
    weights = load_file(run / "encoder.safetensors")
    with safetensors.safe_open(run / "encoder.safetensors", framework="pt") as header:
        about = header.metadata()
    name = next(name for name, value in weights.items() if value.ndim == 4)
    weights[name][0, 0, 0, 0] = torch.nan
    for file in ("encoder.safetensors", "last.safetensors"):  # whose layers geometry is of
        save_file(weights, run / file, metadata=about)
    with pytest.raises((FeaturesError, TrainingError)) as raised:
        evaluate(run, [protocol], threads=1, finetune_epochs=1, seeds=1)
    words = str(raised.value)
    if protocol in ("knn", "linear"):
        begin = r"the features that the trained encoder gives for (\d+) of \1 images"
        assert re.match(begin, words)
    assert "\n" not in words


def test_labels_alone_learn_with_the_schedule_that_serves_them_best(
    run: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load_encoder(run)
    labelled = open_labelled(encoder.config.images, runtime.executor)
    asked = list[tuple[FineTuningSchedule, set[str]]]()

    def fit(
        of: Any, parts: Any, rows: Any, threads: Any, schedule: FineTuningSchedule, *, seed: int
    ) -> Any:
        asked.append((schedule, set(labelled.train.select(rows).names)))
        return schedule

    def said(schedule: Any, images: Any, *rest: Any) -> torch.Tensor:
        judged.update(images.names)
        truth = torch.from_numpy(images.labels)
        return truth if (schedule.epochs, schedule.rate) == best else (truth + 1) % 3

    monkeypatch.setattr(finetune, "fine_tune", fit)
    monkeypatch.setattr(finetune, "predict", said)
    usual = FineTuningSchedule(30, 0.05)
    for number, best in enumerate(((30, 0.05), (90, 0.2), (90, 0.05))):
        asked.clear()
        judged = set[str]()
        subject = Subject(
            folder=RunFolder(tmp_path / str(number)),  # where the answers are kept
            encoder=encoder,
            config=encoder.config,
            runtime=runtime,
            open_images=partial(open_images, encoder.config.images, runtime.executor),
            open_labelled=lambda: labelled,
        )
        found = baseline_schedule(subject, 1.0, usual)
        assert (found.epochs, found.rate, found.tried) == (*best, 3)
        assert {(one.epochs, one.rate) for one, _ in asked} == {(30, 0.05), (90, 0.2), (90, 0.05)}
        for _, learned in asked:  # nothing is judged that was learned, nor a test image seen
            assert not learned & judged
            assert (learned | judged) <= set(labelled.train.names)
    few = baseline_schedule(subject, 0.1, usual)  # two images of each class
    assert few == FineTuningSchedule(90, 0.2)


def test_the_baseline_schedule_is_on_record(run: Path) -> None:
    found = evaluate(
        run, ["finetune"], threads=1, finetune_epochs=2, seeds=1, finetune_shares=(1.0, 0.1)
    )
    shares = found["details"]["finetune"]["shares"]
    assert shares["1"]["untrained_schedule"]["tried"] == 3
    assert shares["0.1"]["untrained_schedule"] == {"epochs": 6, "learning_rate": 0.2, "tried": 1}
    assert found["details"]["finetune"]["settings"]["epochs"] == 2


def test_a_seed_that_goes_astray_is_tried_at_lower_rates_and_counted(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, trained = finetune.fine_tune, load_encoder(run).network.get_parameter("conv1.weight")

    def fit(encoder: Any, *given: Any, seed: int) -> torch.nn.Module:
        rate = given[-1].rate
        of_run = torch.equal(encoder.network.get_parameter("conv1.weight"), trained)
        if of_run and (seed == 2 or (seed == 1 and rate > 0.02)):
            raise TrainingError("the loss is nan")
        return original(encoder, *given, seed=seed)

    monkeypatch.setattr(finetune, "fine_tune", fit)
    given: Any = {"threads": 1, "finetune_epochs": 1, "finetune_shares": (0.1,)}
    found = evaluate(run, ["finetune"], seeds=3, **given)["details"]["finetune"]
    share = found["shares"]["0.1"]
    assert share["learning_rates"] == {"trained": [0.05, 0.0125, None], "untrained": [0.2] * 3}
    assert share["seeds"]["trained"][2] == found["settings"]["chance"]
    assert len(share["seeds"]["trained"]) == 3


def test_transfer_to_classes_and_to_several_labels(run: Path, images: Path, tmp_path: Path) -> None:
    tagged = tmp_path / "tagged"
    shutil.copytree(images, tagged)
    names = sorted(str(path.relative_to(tagged)) for path in tagged.rglob("*.png"))
    lines = [f"{name},{int('class1' in name)},{int('class0' not in name)}" for name in names]
    (tagged / "labels.csv").write_text("\n".join(["name,upright,cold", *lines, ""]))
    found = evaluate(run, ["transfer"], threads=1, transfer=(images, tagged))
    assert set(found["transfer"]) == {str(images), str(tagged)}
    assert found["transfer"][str(tagged)]["pixels"] > 0.9  # stripes and colours are plain to see
    tasks = found["details"]["transfer"]["tasks"]
    assert set(tasks[str(images)]["metrics"]) == {"accuracy", "mean_per_class", "auc", "f1"}
    assert set(tasks[str(tagged)]["metrics"]) == {"accuracy", "auc", "f1"}
    assert tasks[str(tagged)]["multilabel"]


def test_a_task_that_was_measured_is_kept_whatever_follows(
    run: Path, images: Path, tmp_path: Path
) -> None:
    with pytest.raises(ImagesError):
        evaluate(run, ["transfer"], threads=1, transfer=(images, tmp_path / "nothing"))
    first = json.loads((run / "evaluation.json").read_text())
    assert set(first["transfer"]) == {str(images)}
    other = shutil.copytree(images, tmp_path / "other")
    found = evaluate(run, ["transfer"], threads=1, transfer=(other,))
    assert set(found["transfer"]) == {str(images), str(other)}
    assert found["transfer"][str(images)] == first["transfer"][str(images)]
    assert set(found["details"]["transfer"]["tasks"]) == {str(images), str(other)}


def test_metrics_of_transfer_equal_scikit_learn(rng: np.random.Generator) -> None:
    scores = rng.normal(size=(80, 3))
    truth = rng.integers(0, 3, 80)
    one = np.ones((1, 80))
    judged = {name: float(f(one)[0]) for name, f in _judge_classes(scores, truth).items()}
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert judged["auc"] == pytest.approx(roc_auc_score(truth, shares, multi_class="ovr"))
    assert judged["f1"] == pytest.approx(f1_score(truth, scores.argmax(axis=1), average="macro"))
    tags = (rng.random((80, 3)) < 0.3).astype(np.float32)
    labels = {name: float(f(one)[0]) for name, f in _judge_labels(scores, tags).items()}
    assert labels["auc"] == pytest.approx(roc_auc_score(tags, scores, average="macro"))
    assert labels["f1"] == pytest.approx(f1_score(tags, scores > 0, average="macro"))
    assert labels["accuracy"] == pytest.approx(((scores > 0) == tags).mean())


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,a,b\nx.png,0,1\n", "wanted the columns name"),
        ("name,a\nx.png,0\n", "two labels or more"),
        ("name,a,b\nx.png,0,2\n", "line 2"),
        ("name,a,b\nx.png,0\n", "line 2"),
        ("", "its first line has nothing"),
    ],
)
def test_tables_of_labels_of_another_form_are_refused(
    table: str, words: str, tmp_path: Path
) -> None:
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(ImagesError, match=words):
        find_tags(tmp_path)


def test_an_image_without_a_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("name,a,b\nx.png,0,1\n\n")
    tags = find_tags(tmp_path)
    assert tags is not None
    assert tags.of(["x.png"], "here").tolist() == [[0.0, 1.0]]
    with pytest.raises(ImagesError, match=r"'y\.png'"):
        tags.of(["x.png", "y.png"], "here")
    assert find_tags(tmp_path / "elsewhere") is None


def test_what_is_not_known_is_refused(run: Path) -> None:
    with pytest.raises(ConfigError, match="Did you mean linear"):
        evaluate(run, ["liner"])
    with pytest.raises(ConfigError, match="--transfer"):
        evaluate(run, ["transfer"], threads=1)
    for wrong in ({"neighbours": 0}, {"seeds": 0}, {"finetune_shares": (0.0,)}, {"sgd_epochs": 0}):
        with pytest.raises(ConfigError, match="--"):
            evaluate(run, **wrong)


def test_the_page_holds_all_evaluations(run: Path, images: Path) -> None:
    found = evaluate(
        run,
        ["knn", "linear", "finetune", "transfer"],
        threads=1,
        finetune_epochs=1,
        seeds=2,
        finetune_shares=(0.1,),
        transfer=(images,),
    )
    titles = [group.title for group in chart_groups(found)]
    assert titles == [
        "How good the frozen features are",
        "Fine-tuning on few labels",
        f"Transfer to {images}",
    ]
    page = write_report(run, threads=1).read_text()
    for words in (*titles, "20 nearest neighbours", "How sure:", "10% of the labels: 6 images"):
        assert words in page
    bar = chart_groups(found)[0].charts[0].bars[0]
    assert bar.text == f"{found['knn']['trained']:.1%}"
    assert bar.text in page
    assert bar.range in page


def test_files_of_before_there_were_intervals_are_shown() -> None:
    accuracies = {"trained": 0.7, "untrained": 0.5, "pixels": 0.4}
    protocol = {
        "chance": 0.1,
        "knn_neighbours": 7,
        "train_images": 9,
        "test_images": 9,
        "classes": 3,
    }
    (group,) = chart_groups({"knn": accuracies, "linear": accuracies, "protocol": protocol})
    assert [chart.title for chart in group.charts] == ["7 nearest neighbours", "linear classifier"]
    assert [bar.text for bar in group.charts[0].bars] == ["70.0%", "50.0%", "40.0%"]
    assert group.charts[0].bars[0].range == ""
    assert "On images not recorded." in group.text
