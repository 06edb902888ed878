"""A run that begins where another stood: the same bits, or other settings that mend it."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.config.files import load_run_config
from diptych.errors import ConfigError, Interrupted, RunFolderError, TrainingError
from diptych.pretraining import pretrain
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

SMALL: dict[str, Any] = {
    "recipe": "moco_v2",
    "scale": "tiny",
    "epochs": 3,
    "encoder.width": 4,
    "encoder.stage_blocks": (1,),
    "head.output_features": 8,
    "views.side_pixels": 16,
    "method.dictionary.queue.size": 50,
    "batch_size": 16,
    "training.threads": 1,
    "probe.images": 32,
    "probe.health_every_epochs": 100,
    "checkpoint.every_seconds": 0.0,
}
STOPPED = 5  # steps done of 12


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step - 1:
            signal.raise_signal(signal.SIGTERM)
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, _ = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels)
    return tmp_path / "images.npz"


@pytest.fixture
def stopped(tmp_path: Path, images: Path) -> Path:
    """A run that was stopped after its fifth step."""
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, STOPPED)
        with pytest.raises(Interrupted):
            pretrain(images, out=tmp_path / "stopped", quiet=True, **SMALL)
    return tmp_path / "stopped"


def begin_from(run: Path, out: Path, *, resume: bool = False, **settings: Any) -> Path:
    named = f"{run}@{STOPPED}"
    return pretrain(out=out, begin_from=named, resume=resume, quiet=True, **settings)


def steps(run: Path) -> list[int]:
    return [int(one.name.rpartition("-")[2]) for one in list_checkpoints(run / "checkpoints")]


def state(run: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(list_checkpoints(run / "checkpoints")[0])[0]


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = state(one), state(other)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_with_the_same_settings_it_ends_as_the_other_would_have(
    images: Path, stopped: Path, tmp_path: Path
) -> None:
    kept = steps(stopped)
    whole = pretrain(images, out=tmp_path / "whole", quiet=True, **SMALL)
    begun = begin_from(stopped, tmp_path / "begun")
    assert_same_bits(whole, begun)
    assert steps(stopped) == kept  # left as it was


def test_a_rate_that_overflows_stops_by_name_and_a_lower_one_goes_on_from_before(
    stopped: Path, tmp_path: Path
) -> None:
    """The first step with the rate moves every weight beyond any number of float32."""
    wild, mended = tmp_path / "wild", tmp_path / "mended"
    wild_rate: dict[str, Any] = {
        "optimizer.learning_rate": 1e37,
        "schedule.kind": "constant",
        "checkpoint.every_seconds": 1e9,
    }
    with pytest.raises(TrainingError, match=rf"loss is nan at step {STOPPED + 2}") as caught:
        begin_from(stopped, wild, **wild_rate)
    assert "No checkpoint was due before" in str(caught.value)
    lower: dict[str, Any] = {"optimizer.learning_rate": 0.001, "optimizer.clip_norm": 1.0}
    begin_from(stopped, mended, **lower)
    assert steps(mended)[0] == 12
    assert all(torch.isfinite(one).all() for one in state(mended).values())
    config = load_run_config(mended / "config.toml")
    assert config.training.begin_from == f"{stopped}@{STOPPED}"
    assert config.optimizer.learning_rate == 0.001
    assert config.method.dictionary.queue.size == 50


def test_stopped_in_its_turn_it_is_resumed_from_its_own_checkpoints(
    stopped: Path, tmp_path: Path
) -> None:
    rate: dict[str, Any] = {"optimizer.learning_rate": 0.01}
    whole = begin_from(stopped, tmp_path / "whole", **rate)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 8)
        with pytest.raises(Interrupted):
            begin_from(stopped, tmp_path / "cut", resume=True, **rate)
    for checkpoint in list_checkpoints(stopped / "checkpoints"):
        checkpoint.rename(checkpoint.with_name(f"gone-{checkpoint.name}"))
    assert_same_bits(whole, begin_from(stopped, tmp_path / "cut", resume=True, **rate))


def test_parts_that_are_frozen_at_first_go_on_with_the_momentum_that_they_had(
    stopped: Path, tmp_path: Path
) -> None:
    frozen: dict[str, Any] = {"encoder.frozen_parts": 1, "encoder.frozen_epochs": 2.0}
    whole = begin_from(stopped, tmp_path / "whole", **frozen)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 7)  # of four steps an epoch the eighth is the last frozen one
        with pytest.raises(Interrupted):
            begin_from(stopped, tmp_path / "cut", **frozen)
    assert "optimizer/network.encoder.conv1.weight/momentum_buffer" in state(tmp_path / "cut")
    assert_same_bits(whole, begin_from(stopped, tmp_path / "cut", resume=True, **frozen))


def test_what_would_change_the_meaning_of_what_was_saved_is_refused(
    stopped: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"seed, training\.batch_size cannot differ"):
        begin_from(stopped, tmp_path / "other", batch_size=8, seed=3)
    with pytest.raises(RunFolderError, match=r"@9.*no checkpoint.*after steps: .*\b5\."):
        pretrain(out=tmp_path / "other", begin_from=f"{stopped}@9", quiet=True)
    with pytest.raises(ConfigError, match="cannot read the config file"):
        pretrain(out=tmp_path / "other", begin_from=str(tmp_path / "none"), quiet=True)
    assert not (tmp_path / "other").exists()
