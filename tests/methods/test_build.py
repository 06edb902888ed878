"""Methods by name, and parts given in Python in the place of what the settings name."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.files import nest
from diptych.config.method import DistillationConfig, LossConfig
from diptych.config.run import RunConfig
from diptych.images.collection import Collection
from diptych.logging.metrics import read_metrics
from diptych.logging.progress import Silent
from diptych.methods.build import METHODS, OwnParts, uses_labels
from diptych.methods.method import Method, StepOutput, encoder_and_head, scalar
from diptych.methods.objective import Loss
from diptych.pretraining import run_pretraining
from diptych.views.batches import Batch

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


def own_encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def gap(positive: Tensor, negatives: Tensor, settings: LossConfig) -> Tensor:
    return nn.functional.softplus(negatives - positive).mean()


class Turned(Method):
    """Tells which view was turned by 180 degrees."""

    def __init__(self) -> None:
        super().__init__()
        self.network = encoder_and_head(own_encoder(), nn.Linear(8, 1))

    def forward(self, batch: Batch) -> StepOutput:
        upright, turned = batch.views[0], batch.views[1].flip(2, 3)
        logits = self.network(torch.cat([upright, turned]))[:, 0]
        wanted = torch.cat([torch.zeros(len(upright)), torch.ones(len(turned))])
        right = ((logits > 0) == (wanted > 0)).float().mean()
        metrics = {"turn_accuracy": right, "chance_turn_accuracy": scalar(0.5)}
        loss = nn.functional.binary_cross_entropy_with_logits(logits, wanted)
        return StepOutput(loss, metrics)


def build_turned(config: RunConfig, collection: Collection, executor: Executor) -> Method:
    torch.manual_seed(config.seed)
    return Turned()


def trained(own: OwnParts, place: Path, stripes: Stripes) -> list[dict[str, Any]]:
    np.savez(place / "images.npz", images=stripes(48)[0])
    settings = {
        "images.path": str(place / "images.npz"),
        "views.side_pixels": 16,
        "training.batch_size": 16,
        "training.epochs": 2,
        "training.threads": 1,
        "probe.images": 16,
        "probe.log_every_steps": 1,
    }
    folder = run_pretraining(
        nest(settings),
        out=place / "run",
        config_file=None,
        resume=False,
        watcher=Silent(),
        own=own,
    )
    assert folder.encoder.exists()
    return read_metrics(folder.metrics)


def test_an_encoder_and_a_loss_of_ones_own_train(tmp_path: Path, stripes: Stripes) -> None:
    own = OwnParts(own_encoder(), Loss(gap, at_chance=lambda candidates, _: np.log(candidates)))
    before = [weight.clone() for weight in own.encoder.parameters()]  # type: ignore[union-attr]
    lines = trained(own, tmp_path, stripes)
    assert lines[0]["chance_loss"] == pytest.approx(np.log(31))
    assert "pretext_accuracy" in lines[-1]
    after = own.encoder.parameters()  # type: ignore[union-attr]
    assert all(not torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_a_method_of_ones_own_trains_and_is_reported(tmp_path: Path, stripes: Stripes) -> None:
    lines = trained(OwnParts(method=build_turned), tmp_path, stripes)
    assert len(lines) == 6
    assert {"turn_accuracy", "chance_turn_accuracy", "effective_rank"} <= lines[-1].keys()
    assert not {"pretext_accuracy", "candidates", "chance_loss"} & lines[-1].keys()


def test_what_is_known_of_a_method_from_its_config() -> None:
    contrastive, student = RunConfig(), RunConfig(distillation=DistillationConfig(teacher="run"))
    supervised = replace(
        contrastive, method=replace(contrastive.method, loss=LossConfig("supervised"))
    )
    assert METHODS[contrastive.method_name].has_keys
    assert not METHODS[student.method_name].has_keys
    assert [uses_labels(one) for one in (contrastive, student, supervised)] == [False, True, True]
    labelled = Loss(None, lambda candidates, _: 0.0, needs_labels=True)
    assert uses_labels(contrastive, OwnParts(loss=labelled))
    assert not uses_labels(supervised, OwnParts(loss=Loss(gap, lambda candidates, _: 0.0)))
