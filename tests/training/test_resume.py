"""Killed at any moment and resumed, a run ends with the bits of the one that was not killed."""

import io
import json
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.errors import ConfigError, ImagesError, Interrupted, RunFolderError, TrainingError
from diptych.logging.metrics import read_metrics
from diptych.pretraining import pretrain
from diptych.runtime.devices import require_compiler
from processes import start_command

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

SMALL: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 16,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "views.policy": "crop + flip + color + gray + blur + noise",
    "views.small_views": 1,
    "views.small_side_pixels": 8,
    "training.batch_size": 16,
    "training.threads": 1,
    "probe.images": 32,
    "checkpoint.every_seconds": 0.0,
}
MOCO: dict[str, Any] = {"recipe": "moco_v2", "method.dictionary.queue.size": 50}
SIMCLR: dict[str, Any] = {"recipe": "simclr", "optimizer.kind": "lars", "optimizer.clip_norm": 1.0}
MOCO_V3: dict[str, Any] = {
    "recipe": "moco_v3",
    "optimizer.kind": "adamw",
    "method.loss.learn_temperature": True,
    "training.chunk_size": 8,
}
BANK: dict[str, Any] = {"recipe": "memory_bank", "method.dictionary.bank.negatives": 20}
WINDOWS: dict[str, Any] = {"recipe": "simclr", "images.windows": 2, "training.batch_size": 64}
NNCLR: dict[str, Any] = {"recipe": "nnclr", "method.nnclr.queue_size": 50}
SWAV: dict[str, Any] = {
    "recipe": "swav",
    "method.swav.prototypes": 12,
    "method.swav.queue_size": 50,
    "method.swav.queue_from_epoch": 1.0,
}
# What follows from the epoch changes before the run is stopped, and between that and its end.
DINO: dict[str, Any] = {
    "recipe": "dino",
    "method.dino.prototypes": 12,
    "method.dino.warmup_epochs": 1.5,
    "method.dino.teacher_temperature": 0.07,
}
DENSE: dict[str, Any] = {
    "recipe": "densecl",
    "views.small_views": 0,
    "method.dictionary.queue.size": 50,
    "method.dense.warmup_steps": 3,
}
# Their side changes after the run has been stopped.
EARLY: dict[str, Any] = {"recipe": "simclr", "views.early_side": 0.5, "views.early_share": 0.6}
RECIPES = {
    "simclr": SIMCLR,
    "early": EARLY,
    "moco": MOCO,
    "moco_v3": MOCO_V3,
    "bank": BANK,
    "dense": DENSE,
    "windows": WINDOWS,
    "nnclr": NNCLR,
    "swav": SWAV,
    "dino": DINO,
    "byol": {"recipe": "byol", "training.chunk_size": 8},
    "simsiam": {"recipe": "simsiam"},
    "barlow_twins": {"recipe": "barlow_twins"},
    "vicreg": {"recipe": "vicreg"},
    "lejepa": {"recipe": "lejepa", "training.precision": "bf16"},
}


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def run(images: Path, out: Path, *, resume: bool = False, epochs: int = 3, **more: Any) -> Path:
    settings = {**SMALL, **more}
    return pretrain(images, out=out, resume=resume, quiet=True, epochs=epochs, **settings)


def final_state(out: Path) -> dict[str, torch.Tensor]:
    """Encoder, head, momentum encoder, dictionary with its pointer, optimizer and generators."""
    return load_checkpoint(list_checkpoints(out / "checkpoints")[0])[0]


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = final_state(one), final_state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    ours, theirs = (load_file(out / "encoder.safetensors") for out in (one, other))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def stop_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGTERM) -> None:
    """Sends this process a signal when the views of a step are asked for."""
    from diptych.views.batches import Batch, ViewBatches

    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step:
            os.kill(os.getpid(), number)
        return original(self, wanted)

    monkeypatch.setattr(ViewBatches, "at", at)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_an_interrupted_run_resumes_bit_for_bit(
    number: int, recipe: dict[str, Any], images: Path, tmp_path: Path
) -> None:
    unbroken = run(images, tmp_path / "unbroken", **recipe)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4, number)
        with pytest.raises(Interrupted, match="saved after step 5") as caught:
            run(images, tmp_path / "broken", **{**recipe, "checkpoint.every_seconds": 1e9})
    assert caught.value.signal_number == number
    assert not (tmp_path / "broken" / "encoder.safetensors").exists()
    broken = run(
        images, tmp_path / "broken", resume=True, **{**recipe, "checkpoint.every_seconds": 1e9}
    )
    assert_same_bits(unbroken, broken)
    assert losses(unbroken) == losses(broken)


needs_compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX") or "g++") is None, reason="no C++ compiler is there"
)


@needs_compiler
@pytest.mark.slow
def test_a_compiled_run_is_near_a_plain_one_and_resumes_bit_for_bit(
    images: Path, tmp_path: Path
) -> None:
    few = {"encoder.stage_blocks": (1,), "views.small_views": 0, "optimizer.learning_rate": 0.01}
    compiled = {**SIMCLR, **few, "training.compile": True}
    plain = run(images, tmp_path / "plain", **{**compiled, "training.compile": False})
    unbroken = run(images, tmp_path / "unbroken", **compiled)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "broken", **compiled)
    broken = run(images, tmp_path / "broken", resume=True, **compiled)
    assert_same_bits(unbroken, broken)
    assert losses(unbroken) == losses(broken)
    ours, theirs = (load_file(one / "encoder.safetensors") for one in (unbroken, plain))
    assert any(not torch.equal(value, theirs[name]) for name, value in ours.items())
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("command", ["no-such-compiler", "no-such-cache g++"])
def test_compiling_without_a_compiler_is_refused_before_images_are_opened(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(ConfigError, match=f"{re.escape(repr(command))} is not there. Install"):
        run(tmp_path / "no images", tmp_path / "run", **{"training.compile": True})
    assert not (tmp_path / "run").exists()


def test_a_compiler_may_be_a_command_of_several_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -m compiler")
    require_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    require_compiler(torch.device("cuda"))  # which needs none


@pytest.mark.slow
def test_a_run_of_partners_near_in_time_resumes_bit_for_bit(images: Path, tmp_path: Path) -> None:
    near = {**MOCO, "images.group_by": r"name:^(\d?)\d$", "images.group_within": 3}
    unbroken = run(images, tmp_path / "unbroken", **near)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "broken", **near)
    broken = run(images, tmp_path / "broken", resume=True, **near)
    assert_same_bits(unbroken, broken)
    farther = run(images, tmp_path / "farther", **{**near, "images.group_within": 9})
    assert losses(unbroken) == losses(broken) != losses(farther)


@pytest.mark.parametrize("asynchronous", [True, False])
def test_writing_beside_training_changes_no_bit(
    asynchronous: bool, images: Path, tmp_path: Path
) -> None:
    """Checkpoints are taken all the time in one run, and but one in the other, which is stopped."""
    unbroken = run(images, tmp_path / "unbroken", **MOCO, **{"checkpoint.asynchronous": True})
    seldom = {"checkpoint.asynchronous": asynchronous, "checkpoint.every_seconds": 1e9}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "broken", **{**MOCO, **seldom})
    broken = run(images, tmp_path / "broken", resume=True, **{**MOCO, **seldom})
    assert_same_bits(unbroken, broken)
    assert losses(unbroken) == losses(broken)


def test_a_finished_run_resumes_to_itself(images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "run", epochs=1)
    before = (out / "encoder.safetensors").read_bytes()
    run(images, out, resume=True, epochs=1)
    assert (out / "encoder.safetensors").read_bytes() == before


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_newest_checkpoint_costs_only_its_steps(
    damage: str, images: Path, tmp_path: Path
) -> None:
    unbroken = run(images, tmp_path / "unbroken", **MOCO)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 6)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "broken", **MOCO)
    newest = list_checkpoints(tmp_path / "broken" / "checkpoints")[0] / "tensors.safetensors"
    data = bytearray(newest.read_bytes())
    if damage == "truncate":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 4
    newest.write_bytes(bytes(data))
    broken = run(images, tmp_path / "broken", resume=True, **MOCO)
    assert_same_bits(unbroken, broken)


def test_a_run_with_other_settings_is_refused(images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "run", epochs=1)
    with pytest.raises(RunFolderError, match=r"seed, training\.epochs differ"):
        run(images, out, resume=True, epochs=2, seed=5)
    with pytest.raises(RunFolderError, match="recipe differ"):
        run(images, out, resume=True, epochs=1, recipe="moco_v2")


def test_settings_not_given_again_are_the_runs_own(images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "run", epochs=1)
    assert pretrain(images, out=out, resume=True, quiet=True) == out


def test_a_run_is_never_overwritten(images: Path, tmp_path: Path) -> None:
    out = run(images, tmp_path / "run", epochs=1)
    with pytest.raises(RunFolderError, match=r"never overwritten.*--resume"):
        run(images, out, epochs=1)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(RunFolderError, match="not empty"):
        run(images, other, epochs=1)


def test_resume_without_a_checkpoint_begins_at_the_start(images: Path, tmp_path: Path) -> None:
    unbroken = run(images, tmp_path / "unbroken", epochs=1)
    fresh = run(images, tmp_path / "fresh", resume=True, epochs=1)
    assert_same_bits(unbroken, fresh)


def test_other_images_are_refused(images: Path, stripes: Stripes, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "run")
    pixels, labels = stripes(80)
    np.savez(images, images=pixels, labels=labels)
    with pytest.raises(ImagesError, match="names, sizes, contents or groups differ"):
        run(images, tmp_path / "run", resume=True)


def test_a_loss_that_is_no_number_stops_and_keeps_the_last_good_checkpoint(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diptych.training import loop
    from diptych.training import step as step_module

    original = step_module.train_step
    at_each_step = {"checkpoint.asynchronous": False}  # beside training some steps are passed over
    calls = 0

    def step(method, optimizer, batch, **named):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        if calls == 6:
            first, *others = batch.views
            batch = replace(batch, views=(first * float("nan"), *others))
        return original(method, optimizer, batch, **named)

    monkeypatch.setattr(loop, "train_step", step)
    with pytest.raises(TrainingError, match=r"loss is nan at step 6.*checkpoint is intact"):
        run(images, tmp_path / "run", **at_each_step)
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert newest.name == "step-000000005"
    assert all(
        torch.isfinite(v).all()
        for v in load_checkpoint(newest)[0].values()
        if v.is_floating_point()
    )
    monkeypatch.setattr(loop, "train_step", original)
    unbroken = run(images, tmp_path / "unbroken", **at_each_step)
    assert_same_bits(unbroken, run(images, tmp_path / "run", resume=True, **at_each_step))


def test_weights_that_go_astray_in_a_step_are_named_when_health_sees_them_first(
    images: Path, tmp_path: Path
) -> None:
    """The loss of the step was a number; what is measured after it is not."""
    settings: Any = {"optimizer.learning_rate": 1e30, "optimizer.scaling": "none"}
    with pytest.raises(TrainingError, match=r"not finite numbers at step 1, .*learning-rate"):
        run(images, tmp_path / "astray", **settings)


def test_a_run_does_not_mind_a_clock_that_jumps(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unbroken = run(images, tmp_path / "unbroken", **MOCO)
    jumps = random.Random(4)
    monkeypatch.setattr(time, "time", lambda: jumps.choice([-5e8, 0.0, 1e9, 9e9]))
    timed = {**MOCO, "checkpoint.every_seconds": 3600.0}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "broken", **timed)
    (only,) = (tmp_path / "broken" / "checkpoints").iterdir()  # none came too soon
    assert only.name == "step-000000005"
    os.utime(only, (0, 0))
    run(images, tmp_path / "broken", resume=True, **timed)
    assert_same_bits(unbroken, tmp_path / "broken")
    assert losses(unbroken) == losses(tmp_path / "broken")
    seconds = [line["seconds"] for line in read_metrics(tmp_path / "broken" / "metrics.jsonl")]
    assert seconds == sorted(seconds)
    assert 0 < seconds[0] < seconds[-1] < 3600


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["simclr", "moco_v2", "memory_bank"])
def test_killed_at_random_moments(recipe: str, images: Path, tmp_path: Path) -> None:
    flags = [
        *("--recipe", recipe, "--epochs", "100", "--no-report", "--quiet", "--threads", "2"),
        *("--batch-size", "16", "--encoder.width", "4", "--views.side-pixels", "16"),
        *("--method.dictionary.queue.size", "50", "--probe.images", "32"),
        *("--checkpoint.every-seconds", "0.1", "--probe.health-every-epochs", "20"),
    ]

    def start(out: Path, *more: str) -> BaseProcess:
        return start_command("pretrain", str(images), "--out", str(out), *flags, *more)

    def ended(process: BaseProcess) -> int | None:
        process.join()
        return process.exitcode

    whole = tmp_path / "unbroken"
    assert ended(start(whole)) == 0
    moments, out = random.Random(recipe), tmp_path / "broken"
    for delay in [0.0, *(moments.uniform(0.0, 0.7) for _ in range(5))]:
        begun = time.time_ns()
        process = start(out, "--resume")
        while not (out / "metrics.jsonl").exists() or (
            (out / "metrics.jsonl").stat().st_mtime_ns < begun
        ):  # until it trains
            assert process.is_alive()
            time.sleep(0.005)
        time.sleep(delay)
        process.kill()
        assert ended(process) == -signal.SIGKILL, "the run ended before it was killed"
    assert ended(start(out, "--resume")) == 0
    assert_same_bits(whole, out)
    assert losses(whole) == losses(out)


@pytest.fixture
def shards(class_folder: Path, tmp_path: Path) -> Path:
    """48 JPEG files in two tar shards."""
    folder = tmp_path / "shards"
    folder.mkdir()
    files = sorted(class_folder.rglob("*.png"))
    for number in range(2):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for file in files[number::2]:
                buffer = io.BytesIO()
                Image.open(file).save(buffer, "JPEG")
                info = tarfile.TarInfo(f"{file.parent.name}-{file.stem}.jpg")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)
    return folder


@pytest.mark.parametrize("cache", ["none", "file", "memory"])
def test_runs_on_shards_are_the_same_with_any_threads_and_resumed(
    cache: str, shards: Path, tmp_path: Path
) -> None:
    """Views are made by 1, 2 and 4 threads; the second is stopped in the middle of an epoch."""

    def with_threads(threads: int, *, resume: bool = False) -> Path:
        settings: dict[str, Any] = {**MOCO, "images.cache": cache, "views.threads": threads}
        return run(shards, tmp_path / str(threads), resume=resume, **settings)

    unbroken = with_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 4)  # of three steps in an epoch
        with pytest.raises(Interrupted):
            with_threads(2)
    for other in (with_threads(2, resume=True), with_threads(4)):
        assert_same_bits(unbroken, other)
        assert losses(unbroken) == losses(other)
