"""fp16: the scale moves by the rule, overflowing steps move nothing, and resuming is exact."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.config.method import (
    DictionaryConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import OptimizerConfig, RunConfig, TrainingConfig
from diptych.errors import ConfigError, Interrupted, TrainingError
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.methods.dictionaries import KeyQueue
from diptych.methods.method import StepOutput
from diptych.optimization.loss_scale import UNSCALED, LossScale
from diptych.optimization.optimizers import build_optimizer
from diptych.pretraining import pretrain
from diptych.training.step import train_step
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

BATCH = 8
CONFIG = RunConfig(
    encoder=EncoderConfig(width=8, stage_blocks=(1, 1)),
    norm=NormConfig("shuffle", images_per_group=4),
    head=HeadConfig(hidden_features=16, output_features=8, batch_norm=True),
    method=MethodConfig(
        loss=LossConfig(temperature=0.2, learn_temperature=True),
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=20)),
        key_encoder=KeyEncoderConfig("momentum", momentum=0.9),
    ),
    optimizer=OptimizerConfig(clip_norm=1.0),
    training=TrainingConfig(batch_size=BATCH, precision="fp16"),
)


def batch_of(step: int) -> Batch:
    generator = torch.Generator().manual_seed(step)
    views = torch.randn(2, BATCH, 3, 8, 8, generator=generator)
    return Batch(tuple(views), torch.arange(BATCH), step)


def with_gradients(weight: nn.Parameter, *, finite: bool) -> None:
    weight.grad = torch.full_like(weight, 3.0 if finite else float("inf"))


def test_the_scale_moves_by_the_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    """Halved after each overflow, doubled after 2,000 good steps in a row; by hand."""
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    scale, wanted, good, skipped = LossScale(enabled=True, initial=1024.0), 1024.0, 0, 0
    scale.scaled(torch.zeros(()))
    for step in range(4500):
        finite = step not in (0, 1, 300, 2100)
        with_gradients(weight, finite=finite)
        assert scale.unscale_and_update(optimizer) is finite
        if finite:
            assert weight.grad is not None
            assert torch.equal(weight.grad, torch.full((3,), 3.0 / wanted))
        good, skipped = (good + 1, skipped) if finite else (0, skipped + 1)
        wanted = wanted if finite else wanted / 2
        if good == 2000:
            good, wanted = 0, 2 * wanted
        assert scale.value == wanted
    assert skipped == 4
    assert scale.state_metrics() == {"loss_scale": 128.0, "skipped_steps": 4}


def test_a_restored_scale_goes_on_where_it_stood() -> None:
    weight = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([weight], lr=1.0)

    def go(scale: LossScale, steps: range) -> LossScale:
        for step in steps:
            scale.scaled(torch.zeros(()))
            with_gradients(weight, finite=step not in (0, 5))
            scale.unscale_and_update(optimizer)
        return scale

    unbroken = go(LossScale(enabled=True), range(2200))
    saved = json.loads(json.dumps(go(LossScale(enabled=True), range(1000)).scalars()))
    restored = LossScale(enabled=True)
    restored.restore(saved)
    assert go(restored, range(1000, 2200)).scalars() == unbroken.scalars()
    assert unbroken.scalars()["scaler"]["scale"] == 2.0**15  # it was doubled on the way


def test_other_precisions_have_no_scale() -> None:
    loss = torch.tensor(2.0)
    assert UNSCALED.scaled(loss) is loss
    assert UNSCALED.unscale_and_update(torch.optim.SGD([nn.Parameter(torch.zeros(1))]))
    assert UNSCALED.state_metrics() == UNSCALED.scalars() == {}
    assert UNSCALED.value == 1.0


def step_with(
    config: RunConfig, scale: LossScale, *, steps: int = 1
) -> tuple[Contrastive, torch.optim.Optimizer, StepOutput]:
    method = build_contrastive(config).train()
    optimizer = build_optimizer(config.optimizer, method)
    with torch.no_grad():
        method.after_step(method(batch_of(99)))  # against an empty queue there are no gradients
    for step in range(steps):
        result = train_step(
            method, optimizer, batch_of(step), rate=0.1, momentum=0.9, config=config, scale=scale
        )
    return method, optimizer, result


def gradients(method: Contrastive) -> dict[str, Tensor]:
    return {name: p.grad for name, p in method.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_gradients_do_not_depend_on_the_scale(chunk_size: int | None) -> None:
    """A power of two changes no digit of them but those that fp16 rounds to nothing."""
    config = replace(CONFIG, training=replace(CONFIG.training, chunk_size=chunk_size))
    low, high = (
        gradients(step_with(config, LossScale(enabled=True, initial=value))[0])
        for value in (2.0**6, 2.0**9)
    )
    single = replace(config, training=replace(config.training, precision="fp32"))
    exact = gradients(step_with(single, UNSCALED)[0])
    assert low.keys() == high.keys() == exact.keys()
    assert "log_temperature" in low
    for name, value in exact.items():
        largest = float(value.abs().max())
        torch.testing.assert_close(low[name], high[name], rtol=1e-2, atol=3e-3 * largest + 1e-7)
        torch.testing.assert_close(low[name], value, rtol=0.1, atol=0.1 * largest + 1e-6, msg=name)


def test_without_a_scale_small_gradients_are_lost() -> None:
    """The reason for it all: under a small weight the gradients of fp16 maps are zero."""
    light = replace(CONFIG.method, loss=LossConfig(temperature=0.2, weight=1e-8), symmetric=False)
    config = replace(CONFIG, method=light, optimizer=OptimizerConfig(clip_norm=None))
    name = "network.encoder.conv1.weight"
    lost = gradients(step_with(config, UNSCALED)[0])[name]
    kept = gradients(step_with(config, LossScale(enabled=True, initial=2.0**28))[0])[name]
    assert (lost == 0).float().mean() > 0.5
    assert (kept == 0).float().mean() < 0.02


@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("kind", ["sgd", "lars", "adamw"])
def test_a_skipped_step_moves_no_weight(kind: str, chunk_size: int | None) -> None:
    """A scale of 2^60 overflows every gradient; the keys are good and enter the queue."""
    config = replace(
        CONFIG,
        optimizer=replace(CONFIG.optimizer, kind=kind),  # type: ignore[arg-type]
        training=replace(CONFIG.training, chunk_size=chunk_size),
    )
    before = dict(build_contrastive(config).named_parameters())
    scale = LossScale(enabled=True, initial=2.0**60)
    method, optimizer, result = step_with(config, scale)
    assert all(torch.equal(p, before[name]) for name, p in method.named_parameters())
    assert any(name.startswith("momentum_encoder.") for name in before)
    assert not optimizer.state
    assert "gradient_norm" not in result.metrics
    assert torch.isfinite(result.loss)
    assert scale.state_metrics() == {"loss_scale": 2.0**59, "skipped_steps": 1}
    assert isinstance(method.dictionary, KeyQueue)
    assert len(method.dictionary.negatives) == 2 * BATCH
    # The next step, at a scale that fits, is the first that a fresh optimizer takes.
    train_step(
        method, optimizer, batch_of(1), rate=0.1, momentum=0.9, config=config,
        scale=LossScale(enabled=True, initial=2.0**8),
    )  # fmt: skip
    moved = dict(method.named_parameters())
    for part in ("network.encoder.conv1.weight", "momentum_encoder.network.encoder.conv1.weight"):
        assert torch.isfinite(moved[part]).all()
        assert not torch.equal(moved[part], before[part])


# --- whole runs ---------------------------------------------------------------------------------

SMALL: dict[str, Any] = {
    "recipe": "moco_v2",
    "epochs": 3,
    "encoder.width": 4,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 16,
    "head.output_features": 8,
    "norm.images_per_group": 8,
    "method.dictionary.queue.size": 50,
    "views.side_pixels": 16,
    "training.batch_size": 16,
    "training.chunk_size": 8,
    "training.threads": 1,
    "training.precision": "fp16",
    "training.recompute": "stages",
    "training.offload_activations": True,
    "probe.images": 32,
    "probe.log_every_steps": 1,
}


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def start_high(patch: pytest.MonkeyPatch, initial: float) -> None:
    """So that the first steps are skipped, as they often are in truth."""
    patch.setattr(LossScale.__init__, "__kwdefaults__", {
        "enabled": False, "device": "cpu", "initial": initial,
    })  # fmt: skip


def test_an_interrupted_fp16_run_resumes_bit_for_bit(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_high(monkeypatch, 2.0**26)
    whole = pretrain(images, out=tmp_path / "whole", quiet=True, **SMALL)
    original = ViewBatches.at

    def at(self: ViewBatches, step: int) -> Batch:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ViewBatches, "at", at)
        with pytest.raises(Interrupted):
            pretrain(images, out=tmp_path / "broken", quiet=True, **SMALL)
    broken = pretrain(images, out=tmp_path / "broken", quiet=True, resume=True, **SMALL)

    (ours, numbers), (theirs, others) = (
        load_checkpoint(list_checkpoints(out / "checkpoints")[0]) for out in (whole, broken)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert numbers["loss_scale"] == others["loss_scale"]
    told = [
        [(line["loss"], line["loss_scale"], line["skipped_steps"]) for line in lines(out)]
        for out in (whole, broken)
    ]
    assert told[0] == told[1]
    skipped = [line["skipped_steps"] for line in lines(whole)]
    assert skipped[:2] == [0, 1]  # against an empty queue there are no gradients
    assert 1 < skipped[-1] < len(skipped) - 1


def test_a_run_that_no_scale_helps_stops(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_high(monkeypatch, 4.0)
    monkeypatch.setattr(LossScale, "scaled", lambda self, loss: self._scaler.scale(loss) * 1e38)
    with pytest.raises(TrainingError, match=r"overflow fp16 .* at step 3.*precision bf16"):
        pretrain(images, out=tmp_path / "run", quiet=True, **SMALL)


def test_fp16_on_a_cpu_is_called_slow_at_the_start(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for precision in ("fp16", "bf16", "fp32"):
        settings = {**SMALL, "epochs": 1, "training.precision": precision}
        pretrain(images, out=tmp_path / precision, **settings)
        said = " ".join(capsys.readouterr().out.split())
        warned = "fp16 on a CPU is far slower" in said
        assert warned == (precision == "fp16")
        if warned:
            assert "--training.precision fp32, or bf16" in said
            assert said.index("fp16 on a CPU") < said.index("step 1/4")
        # Of the first step, when the queue is empty, no accuracy is shown.
        first = said[said.index("step 1/4") :].partition("views/s")[0]
        assert "pretext acc" not in first
        assert "pretext acc" in said[said.index("step 4/4") :].partition("views/s")[0]


def test_compile_chooses_by_itself(images: Path, tmp_path: Path) -> None:
    for name, value in (("recompute", "stages"), ("offload_activations", True)):
        settings = {**SMALL, "training.compile": True, "training.chunk_size": 16}
        settings |= {"training.recompute": "none", "training.offload_activations": False}
        settings[f"training.{name}"] = value
        with pytest.raises(ConfigError, match=rf"training\.compile .*training\.{name}"):
            pretrain(images, out=tmp_path / name, quiet=True, **settings)
