"""A method from outside: rotations to tell apart (Gidaris et al., 1803.07728), with its metric."""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diptych
from diptych.methods.build import METHODS

seen: list[tuple[Any, Any]] = []  # logits and turns of each step


class Rotation(diptych.Method):
    """Tells by how many quarters each view was turned."""

    def forward(self, batch: diptych.Batch) -> diptych.StepOutput:
        views = torch.cat(batch.views)
        turns = torch.arange(len(views)) % 4
        turned = [view.rot90(int(turn), (1, 2)) for view, turn in zip(views, turns, strict=True)]
        logits = self.network(torch.stack(turned))
        seen.append((logits.detach().double().numpy(), turns.numpy()))
        right = (logits.detach().argmax(dim=1) == turns).float().mean()
        known = {"rotation_accuracy": right, "chance_rotation_accuracy": torch.tensor(0.25)}
        return diptych.StepOutput(nn.functional.cross_entropy(logits, turns), known)


def build(config: diptych.RunConfig, images: object, executor: Executor) -> Rotation:
    channels, side = config.images.channels, config.views.side_pixels
    encoder = diptych.build_encoder(
        config.encoder, channels=channels, side_pixels=side, seed=config.seed
    )
    features = diptych.count_features(encoder, channels=channels, side_pixels=side)
    return Rotation(encoder, nn.Linear(features, 4))


@pytest.mark.parametrize("given", [True, False])
def test_a_method(
    given: bool,
    images: Path,
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(METHODS, "rotation", diptych.MethodKind(build))
    seen.clear()
    how: dict[str, Any] = {"method": build} if given else {"method.kind": "rotation"}
    run = train(images, "run", quiet=False, **how)
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line, (logits, turns) in zip(metrics, seen, strict=True):
        chosen = logits[np.arange(len(turns)), turns]
        assert line["loss"] == pytest.approx((np.log(np.exp(logits).sum(axis=1)) - chosen).mean())
        assert line["rotation_accuracy"] == pytest.approx((logits.argmax(axis=1) == turns).mean())
    words = f"rotation accuracy {metrics[-1]['rotation_accuracy']:.0%} (chance 25%)"
    assert words in capsys.readouterr().out
    assert "rotation accuracy" in diptych.write_report(run, threads=1).read_text()
