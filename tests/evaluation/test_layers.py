"""Layers of a saved run: one pass gives what the parts give by themselves; figures of them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from conftest import write_class_folder
from diptych.evaluation.features import layered_network, trained_layers, untrained_layers
from diptych.evaluation.protocols import evaluate
from diptych.models.heads import layers_of_head
from diptych.models.weights import load_encoder, load_head
from diptych.pretraining import pretrain
from diptych.report.figures import spectrum_curve, transformation_bars
from diptych.runs.folder import RunFolder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layers")
    settings: dict[str, Any] = {
        "encoder.width": 4,
        "views.side_pixels": 16,
        "head.layers": 3,
        "batch_size": 16,
        "threads": 1,
    }
    return pretrain(
        write_class_folder(root / "images"),
        out=root / "run",
        epochs=1,
        scale="tiny",
        quiet=True,
        **settings,
    )


def test_layers_are_those_of_the_files(run: Path) -> None:
    layers, images = trained_layers(RunFolder(run)), torch.randn(5, 3, 16, 16)
    found = layers.in_evaluation(images)
    assert list(found) == ["h", "hidden 1", "hidden 2", "g(h)"]
    for name, kept in (("h", 0), ("hidden 1", 1), ("hidden 2", 2)):
        torch.testing.assert_close(found[name], load_encoder(run, head_layers=kept)(images))
    torch.testing.assert_close(found["g(h)"], load_head(run)(load_encoder(run)(images)))
    before = untrained_layers(RunFolder(run)).in_evaluation(images)
    assert list(before) == list(found)
    assert not torch.allclose(before["g(h)"], found["g(h)"])


def test_heads_are_cut_behind_each_activation() -> None:
    assert layers_of_head(nn.Identity()) == []
    linear = nn.Linear(2, 3)
    assert layers_of_head(linear) == [linear]
    head = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 4))
    assert [len(part) for part in layers_of_head(head) if isinstance(part, nn.Sequential)] == [3, 1]
    assert layered_network(nn.Identity(), None).names == ("h",)


@pytest.mark.slow
def test_both_protocols_are_kept_and_drawn(run: Path) -> None:
    evaluate(run, ["geometry"], threads=1)
    found = evaluate(run, ["transformations"], threads=1)
    assert json.loads((run / "evaluation.json").read_text()) == found
    assert found["geometry"]["images"] == 48
    assert set(found["geometry"]["trained"]) == {"h", "hidden 1", "hidden 2", "g(h)"}
    told = found["transformations"]
    assert set(told["trained"]) == set(told["untrained"]) == set(found["geometry"]["trained"])
    assert set(told["pixels"]) == set(told["tasks"]) == set(told["thrown_away"])
    assert spectrum_curve(found["geometry"]).startswith("<svg")
    assert transformation_bars(told).startswith("<svg")
