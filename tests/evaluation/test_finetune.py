"""Fine-tuning: what is kept of it, how labels alone get their schedule, and how sure it is."""

import copy
import hashlib
import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from scipy import stats

from diptych.errors import FeaturesError, TrainingError
from diptych.evaluation.labelled import Labelled, open_labelled
from diptych.evaluation.protocols import evaluate
from diptych.evaluation.sgd import finetune, linear_sgd
from diptych.evaluation.sgd.finetune import (
    FineTuningSchedule,
    _Tuned,
    _with_intervals,
    baseline_schedule,
)
from diptych.evaluation.subject import Subject
from diptych.images.open import open_images
from diptych.models.weights import load_encoder
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime
from evaluated_runs import finished_run, three_classes

GIVEN: Any = {"threads": 1, "finetune_epochs": 1}
FEW: Any = {**GIVEN, "finetune_shares": (0.1,)}  # two images of each class: no schedule is tried


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


# --- what is kept ---------------------------------------------------------------------------------


class Trainings:
    """Counts the classifiers that are trained, and ends the command before one of them."""

    def __init__(self, patch: pytest.MonkeyPatch, module: ModuleType, name: str) -> None:
        self.count = 0
        self.last: int | None = None
        self.original = getattr(module, name)
        patch.setattr(module, name, self)

    def __call__(self, *given: Any, **named: Any) -> Any:
        if self.count == self.last:
            raise KeyboardInterrupt
        self.count += 1
        return self.original(*given, **named)

    def of(self, call: Callable[[], Any]) -> int:
        """How many a call needs."""
        self.count = 0
        call()
        return self.count


def test_an_interrupted_command_given_again_gives_the_same_figures(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    trainings = Trainings(monkeypatch, finetune, "fine_tune")
    given = {**GIVEN, "seeds": 2, "finetune_shares": (1.0, 0.1)}
    whole = evaluate(other, ["finetune"], **given)
    assert trainings.count == 11  # two encoders with two seeds on each share; three schedules
    trainings.count, trainings.last = 0, 9
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, ["finetune"], **given)
    kept = json.loads((run / "evaluation.json").read_text())
    assert kept["finetune"] == {"1": whole["finetune"]["1"]}
    trainings.last = None
    assert evaluate(run, ["finetune"], **given) == whole
    assert trainings.count == 11
    assert json.loads((run / "evaluation.json").read_text()) == whole


def test_an_interrupted_linear_classifier_by_sgd_leaves_the_others(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path(shutil.copytree(run, tmp_path / "other"))
    trainings = Trainings(monkeypatch, linear_sgd, "fit_linear_sgd")
    whole = evaluate(other, ["linear_sgd"], threads=1, sgd_epochs=2)
    trainings.count, trainings.last = 0, 1
    with pytest.raises(KeyboardInterrupt):
        evaluate(run, ["linear_sgd"], threads=1, sgd_epochs=2)
    trainings.last = None
    assert evaluate(run, ["linear_sgd"], threads=1, sgd_epochs=2) == whole
    assert trainings.count == 2
    for changed in ({"sgd_epochs": 3}, {"sgd_epochs": 2, "sgd": "simclr"}):
        asked = partial(evaluate, run, ["linear_sgd"], threads=1, **changed)
        assert trainings.of(asked) == 2


def test_shares_of_several_commands_stand_side_by_side(run: Path) -> None:
    first = evaluate(run, ["finetune"], **FEW, seeds=1)
    both = evaluate(run, ["finetune"], **GIVEN, seeds=1, finetune_shares=(0.2,))
    assert set(both["finetune"]) == {"0.1", "0.2"}
    assert both["finetune"]["0.1"] == first["finetune"]["0.1"]
    assert set(both["details"]["finetune"]["shares"]) == {"0.1", "0.2"}
    other = evaluate(run, ["finetune"], **GIVEN, seeds=2, finetune_shares=(0.2,))
    assert set(other["finetune"]) == {"0.2"}


def test_only_what_is_new_is_trained(
    run: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(monkeypatch, finetune, "fine_tune")
    asked = partial(evaluate, run, ["finetune"], **FEW)
    assert trainings.of(partial(asked, seeds=1)) == 2
    assert trainings.of(partial(asked, seeds=2)) == 2
    assert trainings.of(partial(asked, seeds=2, train=images)) == 0
    assert trainings.of(partial(asked, seeds=2, finetune_epochs=2)) == 4
    other = Path(shutil.copytree(images, tmp_path / "other"))
    (other / "class0").rename(other / "aside")
    (other / "class1").rename(other / "class0")
    (other / "aside").rename(other / "class1")
    assert trainings.of(partial(asked, seeds=2, train=other)) == 4
    file = run / "encoder.safetensors"
    with safetensors.safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    weights = load_file(file)
    weights["conv1.weight"] *= 1.5
    save_file(weights, file, header)
    assert trainings.of(partial(asked, seeds=2)) == 2  # those of the trained encoder


def damaged(file: Path, others: bytes) -> Iterator[None]:
    """Damages a file in several ways; after each of them it is made anew."""
    # A copy: what is loaded shares the file's bytes, which are written over.
    whole, right = file.read_bytes(), load_file(file)["predicted"].clone()
    with safetensors.safe_open(file, framework="pt") as opened:
        header = opened.metadata()
    for content in (b"junk", b"", whole[:-3], b"\x80\x04K*.", others):
        file.write_bytes(content)
        yield
        assert torch.equal(load_file(file)["predicted"], right)
    wrong = [(right + 1) % 3, right.float(), right[:-1], torch.full_like(right, 99)]
    for number, predicted in enumerate(wrong):
        told = hashlib.sha256(predicted.numpy().tobytes()).hexdigest()
        # Of the first the sum is that of the right ones; of the others it is their own.
        save_file({"predicted": predicted}, file, header | ({"sum": told} if number else {}))
        yield
        assert torch.equal(load_file(file)["predicted"], right)


def test_damaged_answers_are_made_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainings = Trainings(monkeypatch, finetune, "fine_tune")
    asked = partial(evaluate, run, ["finetune"], **FEW, seeds=1)
    whole = asked()
    first, second = sorted((run / "finetune").iterdir())
    for _ in damaged(first, second.read_bytes()):
        trainings.count = 0
        assert asked() == whole
        assert trainings.count == 1
    shutil.rmtree(run / "finetune")
    assert asked() == whole


def test_what_went_astray_is_not_tried_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = load_encoder(run).network.get_parameter("conv1.weight")
    original, lowest, tried = finetune.fine_tune, 0.02, list[float]()

    def fit(encoder: Any, *given: Any, seed: int) -> torch.nn.Module:
        tried.append(given[-1].rate)
        if given[-1].rate > lowest and torch.equal(
            encoder.network.get_parameter("conv1.weight"), trained
        ):
            raise TrainingError("the loss is nan")
        return original(encoder, *given, seed=seed)

    monkeypatch.setattr(finetune, "fine_tune", fit)
    asked = partial(evaluate, run, ["finetune"], **FEW)
    found = asked(seeds=1)
    assert tried == [0.05, 0.0125, 0.2]
    assert asked(seeds=1) == found
    assert len(tried) == 3
    lowest = 0.0
    for _ in range(2):
        with pytest.raises(TrainingError):
            asked(seeds=1, finetune_epochs=2)
    assert tried[3:] == [0.05, 0.0125, 0.003125]


# --- the schedule of labels alone -----------------------------------------------------------------


USUAL = FineTuningSchedule(30, 0.05)


def subject_of(
    run: Path, runtime: Runtime, folder: Path, labelled: Labelled | None = None
) -> Subject:
    """A run whose answers are kept elsewhere, with other labelled images if given."""
    encoder = load_encoder(run)
    images, executor = encoder.config.images, runtime.executor
    given = labelled or open_labelled(images, executor)
    return Subject(
        folder=RunFolder(folder),
        encoder=encoder,
        config=encoder.config,
        runtime=runtime,
        open_images=partial(open_images, images, executor),
        open_labelled=lambda: given,
    )


class Learners:
    """In the place of fine-tuning: which images are learned from and judged, and who is right."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.asked = list[tuple[FineTuningSchedule, NDArray[np.int64]]]()
        self.judged = list[str]()
        self.best = FineTuningSchedule(90, 0.2)
        self.astray: FineTuningSchedule | None = None
        patch.setattr(finetune, "fine_tune", self.fit)
        patch.setattr(finetune, "predict", self.said)

    def fit(self, of: Any, parts: Any, rows: Any, threads: Any, how: Any, *, seed: int) -> Any:
        self.asked.append((how, rows))
        return how

    def said(self, schedule: FineTuningSchedule, images: Any, *rest: Any) -> torch.Tensor:
        self.judged = list(images.names)
        if schedule == self.astray:
            raise FeaturesError("the logits of 3 of 3 images")
        truth = torch.from_numpy(images.labels)
        return truth if schedule == self.best else (truth + 1) % 3


def test_a_schedule_that_overflows_after_its_last_loss_is_passed_over(
    run: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss was finite, its weights are not: that ended all of fine-tuning."""
    learners = Learners(monkeypatch)
    learners.astray, learners.best = FineTuningSchedule(90, 0.2), FineTuningSchedule(90, 0.05)
    found = baseline_schedule(subject_of(run, runtime, tmp_path), 1.0, USUAL)
    assert (found.epochs, found.rate, found.tried) == (90, 0.05, 3)


def test_no_group_is_learned_and_judged(
    run: Path, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learners = Learners(monkeypatch)
    plain = subject_of(run, runtime, tmp_path).labelled
    labels, place = plain.train_labels.numpy(), np.arange(len(plain.train))
    units = 6 * labels + place % 6  # six groups of each class, as of frames of six videos
    grouped = replace(plain, units=units)
    baseline_schedule(subject_of(run, runtime, tmp_path, grouped), 1.0, USUAL)
    names = list(plain.train.names)
    judged = {units[names.index(name)] for name in learners.judged}
    learned = {units[row] for _, rows in learners.asked for row in rows}
    assert len(learners.asked) == 3
    assert {unit // 6 for unit in judged} == {0, 1, 2}
    assert not judged & learned
    learners.asked.clear()
    few = replace(plain, units=3 * labels + place % 3)  # images enough, and three groups of a class
    chosen = baseline_schedule(subject_of(run, runtime, tmp_path, few), 1.0, USUAL)
    assert chosen == FineTuningSchedule(90, 0.2)
    assert not learners.asked


# --- how sure it is -------------------------------------------------------------------------------


def tuned(right: NDArray[np.bool_]) -> list[_Tuned]:
    """From (seeds, images)."""
    return [_Tuned(float(one.mean()), one.astype(np.float64), 0.05) for one in right]


def test_the_same_image_gained_by_every_seed_is_no_gain_to_rely_on() -> None:
    untrained = np.tile(np.arange(40) < 20, (3, 1))
    trained = copy.deepcopy(untrained)
    trained[:, 20] = True
    found = _with_intervals({"trained": tuned(trained), "untrained": tuned(untrained)}, None)
    gain = found["gains"]["untrained"]
    assert gain["value"] == pytest.approx(1 / 40)  # and the same by each seed: +2.5 to +2.5
    assert gain["low"] < 0 < gain["high"]
    assert found["intervals"]["trained"]["low"] < 21 / 40 - 0.1


def oracle(gains: NDArray[np.float64]) -> tuple[float, float]:
    """The interval of (seeds, units), from its formula with SciPy's bootstrap."""
    of_seeds, mean = gains.mean(axis=1), gains.mean()
    reach = stats.t.ppf(0.975, len(gains) - 1) * of_seeds.std(ddof=1) / math.sqrt(len(gains))
    drawn = stats.bootstrap(
        (gains.mean(axis=0),),
        np.mean,
        n_resamples=10_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    below, above = mean - drawn.low, drawn.high - mean
    return mean - math.sqrt(reach**2 + below**2), mean + math.sqrt(reach**2 + above**2)


def test_an_interval_is_over_seeds_and_test_images(rng: np.random.Generator) -> None:
    untrained = rng.random((3, 400)) < np.where(rng.random(400) < 0.5, 0.9, 0.3)
    trained = untrained | (rng.random((3, 400)) < 0.2)
    trained[0] &= rng.random(400) < 0.9  # one seed is worse than the others
    given = {"trained": tuned(trained), "untrained": tuned(untrained)}
    found = _with_intervals(given, None)
    gain = found["gains"]["untrained"]
    wanted = oracle(trained.astype(float) - untrained)
    np.testing.assert_allclose((gain["low"], gain["high"]), wanted, atol=0.003)
    own = found["intervals"]["trained"]
    np.testing.assert_allclose((own["low"], own["high"]), oracle(trained.astype(float)), atol=0.003)
    assert found["over"] == "seeds and test images"
    alone = _with_intervals({name: one[:1] for name, one in given.items()}, None)
    assert alone["gains"]["untrained"]["low"] is None
    assert alone["intervals"]["trained"]["high"] is None


def test_frames_of_one_video_are_drawn_as_one(rng: np.random.Generator) -> None:
    videos = rng.random((2, 3, 60)) < np.array([0.7, 0.5])[:, None, None]
    trained, untrained = np.repeat(videos, 10, axis=2)
    given = {"trained": tuned(trained), "untrained": tuned(untrained)}
    units = np.arange(600) // 10
    gain = _with_intervals(given, units)["gains"]["untrained"]
    wanted = oracle(videos[0].astype(float) - videos[1])
    np.testing.assert_allclose((gain["low"], gain["high"]), wanted, atol=0.02)
    by_image = _with_intervals(given, None)["gains"]["untrained"]
    assert gain["high"] - gain["low"] > by_image["high"] - by_image["low"]
