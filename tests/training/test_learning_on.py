"""Runs that learn on from weights: what is frozen stays, and all of it resumes bit for bit."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file
from torch import Tensor, nn

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.errors import ConfigError, Interrupted
from diptych.models.parts import encoder_parts
from diptych.models.resnets import SmallResNet
from diptych.pretraining import pretrain
from diptych.views.batches import Batch, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

SMALL: dict[str, Any] = {
    "recipe": "moco_v2",
    "method.dictionary.queue.size": 50,
    "head.hidden_features": 16,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 16,
    "training.threads": 1,
    "training.epochs": 3,
    "probe.images": 32,
    "checkpoint.every_seconds": 1e9,
}
WAYS: dict[str, dict[str, Any]] = {
    "frozen": {"encoder.frozen_parts": 2},
    "frozen at first": {
        "encoder.frozen_parts": 3,
        "encoder.frozen_epochs": 1.5,
        "training.recompute": "stages",
    },
    "statistics": {"encoder.batch_statistics": "start", "norm.kind": "shuffle"},
    "layer decay": {"optimizer.layer_decay": 0.7, "optimizer.kind": "adamw"},
    "pull": {"optimizer.pull_to_start": 0.5},
    "anchor": {"method.anchor.weight": 1.0, "training.chunk_size": 8, "norm.kind": "split"},
}


def module() -> nn.Module:
    torch.manual_seed(3)
    encoder = SmallResNet(3, 4, (1, 1), 2)
    for _ in range(20):  # statistics that are not those of a new norm
        encoder(torch.randn(8, 3, 16, 16))
    return encoder


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def run(images: Path, out: Path, way: dict[str, Any], *, resume: bool = False) -> Path:
    settings = {**SMALL, "norm.images_per_group": 8, **way}
    return pretrain(images, out=out, resume=resume, quiet=True, encoder=module(), **settings)


def stop_after(patch: pytest.MonkeyPatch, step: int) -> None:
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


def state(out: Path) -> dict[str, Tensor]:
    return load_checkpoint(list_checkpoints(out / "checkpoints")[0])[0]


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("frozen at first", 5),
        ("anchor", 3),
        *(pytest.param(name, step, marks=pytest.mark.slow) for name in WAYS for step in (4, 8)),
    ],
)
def test_an_interrupted_run_resumes_bit_for_bit(
    name: str, step: int, images: Path, tmp_path: Path
) -> None:
    way = WAYS[name]
    unbroken = run(images, tmp_path / "unbroken", way)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, step)
        with pytest.raises(Interrupted):
            run(images, tmp_path / "broken", way)
    broken = run(images, tmp_path / "broken", way, resume=True)
    ours, theirs = state(unbroken), state(broken)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    assert [one["loss"] for one in lines(unbroken)] == [one["loss"] for one in lines(broken)]


def moved(out: Path) -> tuple[set[str], set[str]]:
    """Names of all that moved in the encoder, and in the momentum encoder's."""
    start, found = module().state_dict(), state(out)
    places = ("method/network.encoder.", "method/momentum_encoder.network.encoder.")
    names = [{n for n, v in start.items() if not v.equal(found[p + n])} for p in places]
    return names[0], names[1]


def test_frozen_parts_and_their_statistics_are_bitwise_those_of_the_start(
    images: Path, tmp_path: Path
) -> None:
    out = run(images, tmp_path / "run", {"encoder.frozen_parts": 2})
    first = {n.rpartition(".")[0] for part in encoder_parts(module())[:2] for n in part}
    for names in moved(out):
        assert names
        assert not {name for name in names if name.rpartition(".")[0] in first}
    kept = state(out)
    held = [n for n in kept if n.startswith("optimizer/network.encoder.blocks.0")]
    assert not held
    assert "optimizer/network.encoder.blocks.1.conv1.weight/momentum_buffer" in kept


def test_parts_that_are_frozen_at_first_train_later(images: Path, tmp_path: Path) -> None:
    way = {"encoder.frozen_parts": 3, "encoder.frozen_epochs": 1.5}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)  # of four steps an epoch the sixth is the last frozen one
        with pytest.raises(Interrupted):
            run(images, tmp_path / "run", way)
    assert moved(tmp_path / "run") == (set(), set())
    out = run(images, tmp_path / "run", way, resume=True)
    named = {name for name, _ in module().named_parameters()}
    assert named <= moved(out)[0]


def test_epochs_in_which_nothing_learns_are_refused(images: Path, tmp_path: Path) -> None:
    way = {"encoder.frozen_parts": 3, "encoder.frozen_epochs": 1.5, "head.layers": 0}
    with pytest.raises(ConfigError, match=r"first 1\.5 epochs would change nothing.*head\.layers"):
        run(images, tmp_path / "run", way)


def test_a_strong_pull_keeps_kernels_at_the_start(images: Path, tmp_path: Path) -> None:
    start = module().state_dict()
    apart = {}
    for pull in (0.0, 50.0):
        out = run(images, tmp_path / str(pull), {"optimizer.pull_to_start": pull})
        end = load_file(out / "encoder.safetensors")
        apart[pull] = float((end["blocks.1.conv1.weight"] - start["blocks.1.conv1.weight"]).norm())
    assert 0 < apart[50.0] < 0.6 * apart[0.0]


def test_an_anchor_keeps_features_near_the_start(images: Path, tmp_path: Path) -> None:
    last = {}
    for weight in (1e-6, 30.0):
        way = {"method.anchor.weight": weight, "optimizer.learning_rate": 0.3, **WAYS["statistics"]}
        # With the statistics of a batch, the features differ from the start's at the first step.
        out = run(images, tmp_path / str(weight), way)
        last[weight] = lines(out)[-1]["anchor_distance"]
    assert last[30.0] < 0.7 * last[1e-6]


def test_what_cannot_be_frozen_is_refused_and_leaves_no_run(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="all that the encoder has"):
        run(images, tmp_path / "run", {"encoder.frozen_parts": 3})
    with pytest.raises(ConfigError, match="Use at most 3"):
        run(images, tmp_path / "run", {"encoder.frozen_parts": 4})
    assert not (tmp_path / "run" / "config.toml").exists()
