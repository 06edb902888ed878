"""Runs of so many minutes: how long they are, by a clock of the tests' own, and what is chosen."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.files import load_run_config, nest
from diptych.config.method import SIAMESE
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.diagnostics import keep_encoder
from diptych.diagnostics.candidates import SHARES
from diptych.errors import ConfigError, Interrupted
from diptych.images.collection import Collection, ImageSet
from diptych.images.open import from_array
from diptych.logging.metrics import read_metrics
from diptych.logging.progress import Watcher
from diptych.methods.build import NOTHING_OWN
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.pretraining import run_pretraining
from diptych.resolve import overrides_of
from diptych.training import budget as budget_module
from diptych.training.budget import Speed, choose_for_minutes, evaluation_limits
from diptych.training.clock import TimeBudget, length_in_words
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
TINY: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 8,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 16,
    "training.threads": 1,
    "training.keep.kind": "last",
    "probe.images": 16,
    "probe.health_every_epochs": 100,
}


MINUTES = 0.345  # of which saving takes half a second: 20 steps of a second


class Clock:
    """Moves only where a step is taken."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Notes(Watcher):
    def __init__(self) -> None:
        self.said: list[str] = []
        self.plans: list[int] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)

    def begin(self, *, step: int, total_steps: int) -> None:
        self.plans.append(total_steps)

    def planned(self, total_steps: int) -> None:
        self.plans.append(total_steps)


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A second a step, as was measured."""
    clock = Clock()
    original = ViewBatches.at

    def at(self: ViewBatches, step: int) -> Batch:
        clock.seconds += 1.0
        return original(self, step)

    monkeypatch.setattr(ViewBatches, "at", at)
    _measure_as(monkeypatch, lambda config: Speed(1 / config.training.batch_size, 0.0))
    return clock


def _measure_as(monkeypatch: pytest.MonkeyPatch, speed: Callable[[RunConfig], Speed]) -> None:
    for place in ("diptych.training.budget.measure_speed", "diptych.pretraining.measure_speed"):
        monkeypatch.setattr(place, lambda config, *_: speed(config))


def run(
    images: Path, out: Path, clock: Callable[[], float], *, resume: bool = False, **more: Any
) -> Notes:
    notes = Notes()
    settings = {"images.path": str(images), "training.minutes": MINUTES, **TINY, **more}
    run_pretraining(
        nest(settings), out=out, config_file=None, resume=resume, watcher=notes, now=clock
    )
    return notes


def final_state(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    return load_checkpoint(list_checkpoints(out / "checkpoints")[0])


def test_a_run_takes_its_minutes_and_its_rate_ends_with_them(
    images: Path, tmp_path: Path, clock: Clock
) -> None:
    begun = clock.seconds
    notes = run(images, tmp_path / "run", clock)
    assert clock.seconds - begun == 20
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["step"] == clock.seconds - begun
    assert lines[-1]["learning_rate"] < 0.02 * max(line["learning_rate"] for line in lines)
    config = load_run_config(tmp_path / "run" / "config.toml")
    assert (config.training.minutes, config.training.epochs) == (MINUTES, 5)  # of 4 steps
    first = next(said for said in notes.said if said.startswith("0.345 minutes on 1 thread"))
    assert "small_resnet on 16 pixels, batch 16, about 5.0 epochs of 64 images, ending at" in first
    last = notes.said[-1]
    assert f"--config {tmp_path / 'run' / 'config.toml'} --epochs 5." in last


def test_a_run_that_is_interrupted_ends_with_the_same_steps_and_bits(
    images: Path, tmp_path: Path, clock: Clock
) -> None:
    run(images, tmp_path / "unbroken", clock)
    counted = ViewBatches.at
    with pytest.MonkeyPatch.context() as patch:

        def at(self: ViewBatches, step: int) -> Batch:
            if step == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            return counted(self, step)

        patch.setattr(ViewBatches, "at", at)
        with pytest.raises(Interrupted, match="saved after step 8"):
            run(images, tmp_path / "broken", clock)
    _, scalars = final_state(tmp_path / "broken")
    assert scalars["minutes"] == {"total_steps": 20, "spent_seconds": 8.0}
    clock.seconds += 1e6  # until somebody goes on
    run(images, tmp_path / "broken", clock, resume=True)
    (ours, of_ours), (theirs, of_theirs) = map(
        final_state, (tmp_path / "unbroken", tmp_path / "broken")
    )
    assert of_ours["step"] == of_theirs["step"]
    assert all(bool((value == theirs[name]).all()) for name, value in ours.items())


@pytest.mark.parametrize(("later", "ends"), [(0.5, 900), (1.5, 850), (3.0, 800)])
def test_the_steps_are_planned_anew_when_the_pace_changes(later: float, ends: int) -> None:
    # What follows the last step gets slower as the steps do, up to twice; and is not hurried.
    clock = Clock()
    budget = TimeBudget(1000.0, 100.0, 1.0, clock(), now=clock)
    step, total = 0, budget.begin(0, earlier_seconds=0.0)
    assert total == 900
    while step < total:
        clock.seconds += 1.0 if clock() < 1400 else later
        step += 1
        planned = budget.planned_after(step)
        total = planned if planned is not None and step < total else total
    assert clock() - 1000 == pytest.approx(ends, rel=0.02)
    assert step == pytest.approx(400 + (ends - 400) / later, rel=0.05)


def test_a_run_of_minutes_that_begins_on_smaller_views_takes_its_minutes(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of the steps take half as long as the others, and the mean of all is a second.
    clock, sides, original = Clock(), list[int](), ViewBatches.at

    def at(self: ViewBatches, step: int) -> Batch:
        sides.append(self.config.side_pixels)
        clock.seconds += 4 / 3 if sides[-1] == 16 else 2 / 3
        return original(self, step)

    monkeypatch.setattr(ViewBatches, "at", at)
    _measure_as(
        monkeypatch, lambda config: Speed(1 / config.training.batch_size, 0, early_cost=0.5)
    )
    begun = clock.seconds
    early: dict[str, Any] = {"views.early_side": 0.5, "views.early_share": 0.5}
    notes = run(images, tmp_path / "run", clock, **early)
    assert clock.seconds - begun == pytest.approx(20, abs=4 / 3)
    assert sides == [8] * 10 + [16] * (len(sides) - 10)
    assert len(sides) in (19, 20, 21)
    assert any("on 16 pixels (8 at first), batch 16" in said for said in notes.said)
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert lines[-1]["learning_rate"] < 0.02 * max(line["learning_rate"] for line in lines)


@pytest.mark.parametrize("cost", [0.4, 0.6])
@pytest.mark.parametrize("pace", [1.0, 1.3])
def test_steps_that_are_faster_at_first_are_planned_so(cost: float, pace: float) -> None:
    # Three quarters of the steps take `cost` of a later one; the mean of all is a second.
    clock, share = Clock(), 0.75
    later = 1 / (cost * share + 1 - share)
    budget = TimeBudget(
        *(1000.0, 100.0, 1.0, clock()), early_share=share, early_cost=cost, now=clock
    )
    step, total, plans, early = 0, budget.begin(0, earlier_seconds=0.0), [900], 0
    assert total == 900
    while step < total:
        is_early = step < share * total
        early += is_early
        clock.seconds += pace * later * (cost if is_early else 1.0)
        step += 1
        planned = budget.planned_after(step)
        if planned is not None and step < total:
            total = planned
            plans.append(total)
    assert early == pytest.approx(share * step, abs=2)
    # What follows the last step gets slower as steps do, and has its time.
    assert step == pytest.approx((1000 - 100 * pace) / pace, rel=0.01)
    assert pace != 1.0 or max(plans) - min(plans) <= 2  # faster steps are no change of pace


def test_when_the_time_is_over_the_next_step_is_the_last() -> None:
    clock = Clock()
    budget = TimeBudget(60.0, 10.0, 1.0, clock(), now=clock)
    assert budget.begin(7, earlier_seconds=20.0) == 7 + 30
    clock.seconds += 1.0
    assert budget.planned_after(8) is None
    clock.seconds += 29.0
    assert budget.planned_after(9) == 10


def test_a_run_that_resumes_after_its_time_takes_one_step(
    images: Path, tmp_path: Path, clock: Clock
) -> None:
    counted = ViewBatches.at

    def slow(self: ViewBatches, step: int) -> Batch:
        clock.seconds += 100.0 * (step == 3)
        return counted(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewBatches, "at", slow)
        notes = run(images, tmp_path / "run", clock)
    assert notes.plans[-1] == 5
    assert final_state(tmp_path / "run")[1]["step"] == 5


# What is chosen.


def photographs(count: int, side: int) -> Collection:
    """So many labelled images, all of them the same one, of which none is looked at."""
    array = np.zeros((1, 8, 8, 3), dtype=np.uint8)
    one = from_array(array, None, ImagesConfig(path="x"))
    sides, zeros = np.full(count, side, dtype=np.int64), np.zeros(count, dtype=np.int64)
    images: ImageSet = replace(one.select(zeros), heights=sides, widths=sides, labels=zeros)
    return Collection(images, None, "")


def by_pixels(config: RunConfig) -> Speed:
    """Images cost a millionth of a second for each thousand pixels and square of channels."""
    width = config.encoder.width if config.encoder.name == "small_resnet" else 128
    return Speed(1e-9 * config.views.side_pixels**2 * width**2, 1e-4)


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    executor: Executor,
    minutes: float,
    collection: Collection,
    **settings: Any,
) -> dict[str, Any]:
    """What is chosen where views cost by their pixels."""
    _measure_as(monkeypatch, by_pixels)
    return chosen_as_measured(executor, minutes, collection, settings)


def chosen_as_measured(
    executor: Executor, minutes: float, collection: Collection, settings: Mapping[str, Any]
) -> dict[str, Any]:
    layers = overrides_of(nest({"images.path": "x", "training.minutes": minutes, **settings}), None)
    clock = Clock()
    budget = TimeBudget(60 * minutes, 0.0, 1.0, clock(), now=clock)
    whole, _ = choose_for_minutes(layers, collection, executor, NOTHING_OWN, budget, evaluates=True)
    return dict(whole[0][0])


def test_more_minutes_give_larger_networks_on_larger_views(
    monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    set_of = photographs(2000, 256)
    found = [chosen(monkeypatch, executor, minutes, set_of) for minutes in (0.3, 2, 10, 60, 1e5)]
    asked = [(one["views"]["side_pixels"], *one["encoder"].values()) for one in found]
    assert asked[0] == (32, "small_resnet", 16)
    assert asked[1] == (64, "small_resnet", 16)
    assert asked[2] == (64, "small_resnet", 32)
    assert asked[3] == (64, "small_resnet", 64)
    assert asked[4] == (128, "resnet18")
    small = chosen(monkeypatch, executor, 1e5, photographs(2000, 32))
    assert small["views"]["side_pixels"] == 32
    assert small["encoder"] == {"name": "resnet18"}


def test_a_bank_needs_time_for_two_passes(
    monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    bank = {"method.dictionary.kind": "bank", "method.dictionary.bank.negatives": 16}
    with pytest.raises(ConfigError, match=r"leaves time for 0\.0 passes .*or take .*kind queue"):
        chosen(monkeypatch, executor, 1, photographs(10**7, 32), **bank)
    large, minutes = photographs(10**6, 32), 10
    assert chosen(monkeypatch, executor, minutes, large, **bank)["training"]["epochs"] == 2
    assert chosen(monkeypatch, executor, 1, photographs(10**7, 32))["training"]["epochs"] == 1


@pytest.fixture
def start(tmp_path: Path) -> dict[str, Any]:
    """Weights to begin from."""
    source, file = RunConfig(encoder=EncoderConfig(width=4)), tmp_path / "start.safetensors"
    save_encoder(file, untrained_encoder(source), source)
    return {"encoder.weights": str(file)}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", SIAMESE)
def test_every_method_without_negatives_takes_minutes_from_weights(
    recipe: str, images: Path, tmp_path: Path, clock: Clock, start: dict[str, Any]
) -> None:
    out, begun = tmp_path / "run", clock.seconds
    network: dict[str, Any] = {"encoder.stage_blocks": (1, 1, 1)}  # of the weights
    run(images, out, clock, recipe=recipe, **start, **network)
    assert clock.seconds - begun == 20
    lines = read_metrics(out / "metrics.jsonl")
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert lines[-1]["learning_rate"] < 0.02 * max(line["learning_rate"] for line in lines)
    # Not at once: the start's norms use statistics that came with it, those of a run its batch's.
    assert 0 < lines[0]["anchor_distance"] < 2
    before = load_encoder(out / "start.safetensors").network.state_dict()
    after = load_encoder(out).network.state_dict()
    frozen = load_run_config(out / "config.toml").encoder.frozen_parts
    assert frozen == 2  # of four parts: the stem and the first stage
    for name, weight in after.items():
        if "running" in name or "tracked" in name:
            continue
        stays = name.startswith(("conv1.", "bn1.", "blocks.0."))
        assert torch.equal(weight, before[name]) == stays, name


def test_weights_are_given_large_views_whatever_the_number_of_images(
    monkeypatch: pytest.MonkeyPatch, executor: Executor, start: dict[str, Any]
) -> None:
    _measure_as(monkeypatch, lambda config: Speed(4e-6 * config.views.side_pixels**2, 1e-4))
    expected = ((0.5, 64), (4, 96), (8, 96), (11, 128), (16, 160), (22, 192), (1e3, 224))
    for minutes, side in expected:
        found = chosen_as_measured(executor, minutes, photographs(2000, 256), start)
        assert found["views"] == {"side_pixels": side}, minutes
    found = chosen_as_measured(executor, 1e3, photographs(200_000, 256), start)
    assert found["views"] == {"side_pixels": 224}
    # Enlarged further, small images would show nothing more.
    found = chosen_as_measured(executor, 1e3, photographs(2000, 32), start)
    assert found["views"] == {"side_pixels": 160}


def test_sides_that_are_surely_too_small_are_not_measured(
    monkeypatch: pytest.MonkeyPatch, executor: Executor, start: dict[str, Any]
) -> None:
    measured = list[int]()

    def speed(config: RunConfig) -> Speed:
        measured.append(config.views.side_pixels)
        return Speed(1e-6 * config.views.side_pixels**2, 1e-4)

    _measure_as(monkeypatch, speed)
    found = chosen_as_measured(executor, 5.0, photographs(2000, 256), start)
    assert found["views"] == {"side_pixels": 160}
    assert measured == [64, 160, 192]  # the last one is the first that does not fit


@pytest.mark.parametrize("exponent", [1.6, 2.0])
def test_more_minutes_give_no_smaller_views_of_a_network_with_weights(
    monkeypatch: pytest.MonkeyPatch, executor: Executor, start: dict[str, Any], exponent: float
) -> None:
    def speed(config: RunConfig) -> Speed:
        encode = 2.5e-7 * 64**2 * (config.views.side_pixels / 64) ** exponent
        return Speed(5 * encode, encode)

    _measure_as(monkeypatch, speed)
    found = [
        chosen_as_measured(executor, minutes, photographs(1340, 256), start)["views"]["side_pixels"]
        for minutes in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20)
    ]
    assert found == sorted(found)
    assert set(found) > {64, 224}


def test_what_measuring_takes_too_long_for_is_estimated(
    monkeypatch: pytest.MonkeyPatch, executor: Executor, start: dict[str, Any]
) -> None:
    clock = Clock()

    def speed(config: RunConfig) -> Speed:
        encode = 2.5e-7 * config.views.side_pixels**2.4  # worse than the area, so that it misses
        clock.seconds += 30.0 * (config.views.side_pixels > 64)
        return Speed(5 * encode / 10, encode / 10)

    _measure_as(monkeypatch, speed)
    settings = {"images.path": "x", "training.minutes": 5.0, **start}
    budget = TimeBudget(300.0, 0.0, 1.0, clock(), now=clock)
    layers = overrides_of(nest(settings), None)
    whole, _ = choose_for_minutes(
        layers, photographs(1340, 256), executor, NOTHING_OWN, budget, evaluates=True
    )
    assert dict(whole[0][0])["views"]["side_pixels"] > 64


def test_vision_transformers_are_given_whole_patches(
    monkeypatch: pytest.MonkeyPatch, executor: Executor, tmp_path: Path
) -> None:
    views = ViewsConfig(side_pixels=56)
    source = RunConfig(
        encoder=EncoderConfig("vit_small_patch14_dinov2", stem="imagenet"), views=views
    )
    file = tmp_path / "vit.safetensors"
    save_encoder(file, untrained_encoder(source), source)
    _measure_as(monkeypatch, by_pixels)
    settings = {"encoder.weights": str(file)}
    found = chosen_as_measured(executor, 1.0, photographs(2000, 256), settings)
    assert found["views"]["side_pixels"] % 14 == 0


def test_without_labels_no_time_is_kept_for_classifiers() -> None:
    config = replace(RunConfig(), training=TrainingConfig(minutes=5.0))
    labelled = photographs(2000, 64)
    without = replace(labelled, train=replace(labelled.train, labels=None))
    speed = Speed(1e-3, 1e-3)
    found, less = (
        budget_module.reserve_seconds(config, speed, one, evaluates=True)
        for one in (labelled, without)
    )
    assert less < found


@pytest.mark.slow
def test_what_is_chosen_has_features_of_cells_and_is_whitened(
    images: Path, tmp_path: Path, clock: Clock
) -> None:
    few = {name: value for name, value in TINY.items() if not name.startswith("encoder.")}
    del few["training.keep.kind"]
    settings = {"images.path": str(images), "training.minutes": 2.0, **few}
    run_pretraining(
        nest(settings),
        out=tmp_path / "run",
        config_file=None,
        resume=False,
        watcher=Notes(),
        now=clock,
    )
    config = load_run_config(tmp_path / "run" / "config.toml")
    assert (config.encoder.name, config.encoder.pool) == ("small_resnet", 2)  # at 16 pixels
    assert config.training.keep.kind == "best"


def test_what_is_asked_for_is_not_chosen(
    monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    set_of = photographs(2000, 256)
    by = {"encoder.name": "resnet50"}
    found = chosen(monkeypatch, executor, 1e5, set_of, **by)
    assert "encoder" not in found
    assert found["views"] == {"side_pixels": 128}
    found = chosen(monkeypatch, executor, 1e5, set_of, **{"views.side_pixels": 48})
    assert "views" not in found
    assert found["encoder"] == {"name": "resnet18"}
    found = chosen(monkeypatch, executor, 1e5, set_of, scale="tiny")
    assert found.keys() == {"training", "probe"}
    found = chosen(monkeypatch, executor, 0.5, set_of, **{"training.batch_size": 100})
    assert found["training"]["batch_size"] == 100


def test_a_short_run_has_small_batches_and_a_long_one_no_more_measurements_of_health(
    monkeypatch: pytest.MonkeyPatch, executor: Executor
) -> None:
    set_of = photographs(2000, 256)
    short, long = (chosen(monkeypatch, executor, one, set_of) for one in (0.35, 1e3))
    assert short["training"]["batch_size"] == 64
    assert long["training"]["batch_size"] == 128
    assert short["probe"]["health_every_epochs"] == 5  # of 1,024 images each
    epochs = long["training"]["epochs"]
    assert 25 <= epochs / long["probe"]["health_every_epochs"] <= 35


def test_measuring_takes_real_steps_and_leaves_no_trace(
    images: Path, tmp_path: Path, executor: Executor
) -> None:
    from diptych.images.open import open_images
    from diptych.resolve import resolve

    settings = {"images.path": str(images), "images.cache_folder": str(tmp_path / "cache"), **TINY}
    config, _ = resolve(
        overrides_of(nest(settings), None), image_count=64, median_side_pixels=32, channels=3
    )
    collection = open_images(config.images, executor)
    before = sorted(tmp_path.rglob("*"))
    speed = budget_module.measure_speed(config, collection, executor, NOTHING_OWN)
    assert 0 < speed.encode_seconds < speed.image_seconds < 1
    assert speed.features == 2 * config.encoder.width * config.encoder.pool**2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_step_is_measured_on_the_views_of_both_parts_of_a_run(
    images: Path, executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diptych.images.open import open_images
    from diptych.resolve import resolve

    sides, original = list[int](), ViewBatches.at

    def at(self: ViewBatches, step: int) -> Batch:
        sides.append(self.config.side_pixels)
        return original(self, step)

    def by_side(work: Callable[[], object]) -> float:
        before = len(sides)
        work()
        return float(sides[-1]) if len(sides) > before else 1.0

    monkeypatch.setattr(ViewBatches, "at", at)
    monkeypatch.setattr(budget_module, "_seconds_of", by_side)
    settings = {"images.path": str(images), "images.cache": "none", **TINY}
    settings |= {"views.early_side": 0.5, "views.early_share": 0.25}
    config, _ = resolve(
        overrides_of(nest(settings), None), image_count=64, median_side_pixels=32, channels=3
    )
    collection = open_images(config.images, executor)
    speed = budget_module.measure_speed(config, collection, executor, NOTHING_OWN)
    assert sides == [16, 8]
    assert speed.early_cost == 0.5
    batch = config.training.batch_size
    assert speed.image_seconds == pytest.approx((0.25 * 8 + 0.75 * 16) / batch)


def test_evaluation_leaves_time_to_train_whatever_the_number_of_images() -> None:
    def reserved(count: int, minutes: float | None, features: int = 512) -> float:
        images = photographs(count, 32).train
        config = RunConfig(training=TrainingConfig(minutes=minutes))
        collection = Collection(images, images, "")
        speed = Speed(1.0, 0.01, features=features)
        return budget_module.reserve_seconds(config, speed, collection, evaluates=True)

    assert evaluation_limits(10.0) == {"fit_images": 5000, "test_images": 2000}
    assert evaluation_limits(0.5) == {"fit_images": 1000, "test_images": 500}
    assert evaluation_limits(None) == {}
    assert reserved(5_000, 10.0) == reserved(100_000, 10.0) < reserved(5_000, 20.0) < 300
    assert reserved(100_000, None) > 10 * reserved(100_000, 10.0)
    assert reserved(5_000, 10.0) + 10 < reserved(5_000, 10.0, features=2048) < 300


def test_epochs_and_minutes_exclude_each_other(tmp_path: Path) -> None:
    both = {"images": {"path": "photographs"}, "training": {"epochs": 3, "minutes": 2.0}}
    with pytest.raises(ConfigError, match=r"the command: training\.epochs = 3 and .* Leave one"):
        overrides_of(both, None)
    file = tmp_path / "both.toml"
    file.write_text("[training]\nepochs = 3\nminutes = 2.0\n")
    with pytest.raises(ConfigError, match=r"both\.toml: .* exclude each other"):
        overrides_of({"images": {"path": "photographs"}}, file)
    # What repeats a run of some minutes by its length, as it says at its end.
    stronger = {"images": {"path": "photographs"}, "training": {"epochs": 5}}
    weak, strong = overrides_of(stronger, file)
    assert weak[0]["training"] == {}
    assert strong[0]["training"] == {"epochs": 5}


def test_minutes_do_not_go_with_a_beginning_of_another_run(
    images: Path, tmp_path: Path, clock: Clock
) -> None:
    run(images, tmp_path / "first", clock)
    begin = {"images.path": str(images), "training.begin_from": str(tmp_path / "first")}
    for more, said in (
        ({"training.minutes": 1.0}, "does not go with training.begin_from"),
        ({}, "nothing is left to learn"),
    ):
        with pytest.raises(ConfigError, match=said):
            run_pretraining(
                nest({**begin, **more}),
                out=tmp_path / "second",
                config_file=None,
                resume=False,
                watcher=Notes(),
            )
    notes = Notes()
    run_pretraining(
        nest({**begin, "training.epochs": 6}),
        out=tmp_path / "second",
        config_file=None,
        resume=False,
        watcher=notes,
    )
    assert final_state(tmp_path / "second")[1]["step"] == 24
    assert "minutes" not in final_state(tmp_path / "second")[1]


@pytest.mark.slow
def test_a_fifth_of_a_minute_takes_twelve_seconds(images: Path, tmp_path: Path) -> None:
    begun, more = time.monotonic(), dict[str, Any]({"training.minutes": 0.2})
    run(images, tmp_path / "run", time.monotonic, **more)
    assert 0.5 * 12 < time.monotonic() - begun < 1.2 * 12  # others may slow what it measures


@pytest.mark.slow
def test_two_processes_end_together(images: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diptych", "launch", "--nproc-per-node", "2", "--", "pretrain"]
    command += [str(images), "--minutes", "0.5", "--out", str(tmp_path / "run"), "--no-report"]
    command += ["--training.threads", "2", "--scale", "tiny"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    steps = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
    assert final_state(tmp_path / "run")[1]["minutes"]["total_steps"] == steps


def test_what_the_choice_of_an_encoder_sees_is_counted() -> None:
    assert len(SHARES) == budget_module.COMPARED_WEIGHTS
    assert keep_encoder.WHITENED_BY * keep_encoder.VIEWS == budget_module.COMPARED_VIEWS


def test_a_measurement_of_health_is_not_the_pace_of_steps() -> None:
    clock = Clock()
    budget = TimeBudget(1000.0, 100.0, 1.0, clock(), now=clock)
    assert budget.begin(0, earlier_seconds=0.0) == 900
    with budget.pausing():
        clock.seconds += 300.0
    clock.seconds += 60.0  # for 60 steps
    assert budget.planned_after(60) == 60 + (900 - 360 - 300)  # the last step has another


class EndOfTest(Exception):
    """Ends a long run once it has said how long it is."""


class Listener(Notes):
    def say(self, sentence: str) -> None:
        super().say(sentence)
        if "which take about" in sentence:
            raise EndOfTest


FIRST = " at the pace of the first epoch, in which images are decoded"


@pytest.mark.parametrize(
    ("more", "told_at", "words"),
    [
        # Of the line at step 10 some steps are of the first epoch, of the next one none.
        ({}, 20, "500 epochs are 2,000 steps, which take about 33 minutes"),
        ({"images.cache": "none"}, 10, "500 epochs are 2,000 steps, which take about 33 minutes"),
        # A second a step, of which a quarter are on 16 pixels and cost four times as much as on 8.
        ({"views.early_side": 0.5}, 20, "500 epochs are 2,000 steps, which take about 58 minutes"),
        # An epoch of 32 steps, in which half a minute passes.
        (
            {"training.batch_size": 2},
            40,
            f"63 epochs are 2,016 steps, which take about 34 minutes{FIRST}",
        ),
    ],
)
def test_how_long_a_run_is_that_nobody_gave_a_length_is_told_by_its_first_steps(
    more: dict[str, Any],
    told_at: int,
    words: str,
    images: Path,
    tmp_path: Path,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def measured(config: RunConfig) -> Speed:
        raise AssertionError("a start does not wait for steps that are only measured")

    _measure_as(monkeypatch, measured)
    monkeypatch.setattr("diptych.training.loop.time", SimpleNamespace(monotonic=clock))
    settings = {"images.path": str(images), **TINY, **more}
    notes = Listener()
    with pytest.raises(EndOfTest):
        run_pretraining(
            nest(settings), out=tmp_path / "run", config_file=None, resume=False, watcher=notes
        )
    assert notes.said[-1] == f"{words}; --epochs or --minutes asks for another length."
    assert clock.seconds == 1000.0 + told_at


def test_of_a_run_with_a_length_that_was_asked_for_nothing_is_told(
    images: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("diptych.training.loop.time", SimpleNamespace(monotonic=clock))
    settings = {"images.path": str(images), **TINY, "training.epochs": 2}
    run_pretraining(
        nest(settings), out=tmp_path / "run", config_file=None, resume=False, watcher=Listener()
    )


@pytest.mark.parametrize(
    ("steps", "seconds", "words"),
    [(100, 0.5, "about 50 seconds"), (100, 1.2, "about 2 minutes"), (30_000, 7.0, "3,500 minutes")],
)
def test_short_lengths_are_in_seconds_and_long_ones_in_minutes(
    steps: int, seconds: float, words: str
) -> None:
    assert words in length_in_words(RunConfig(), steps, seconds)
