"""Layers of a saved run: one pass gives what the parts give by themselves; figures of them."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from conftest import write_class_folder
from diptych.config.downstream import EmbedSettings
from diptych.embeddings.encode_views import ViewEncoder
from diptych.evaluation.features import layered_network, trained_layers, untrained_layers
from diptych.evaluation.protocols import evaluate
from diptych.models.heads import layers_of_head
from diptych.models.start import open_encoder
from diptych.models.weights import load_encoder, load_head, save_encoder, untrained_encoder
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


def test_a_head_stands_behind_the_encoder_that_it_was_trained_behind(
    run: Path, tmp_path: Path
) -> None:
    # As a run does that keeps the weights it began from.
    kept = Path(shutil.copytree(run, tmp_path / "kept"))
    (kept / "encoder.safetensors").rename(kept / "last.safetensors")
    config = load_encoder(kept / "last.safetensors").config
    save_encoder(kept / "encoder.safetensors", untrained_encoder(config), config)
    images, last = torch.randn(5, 3, 16, 16), load_encoder(run)
    found = trained_layers(RunFolder(kept)).in_evaluation(images)
    wanted = {"h": last(images), "g(h)": load_head(run)(last(images))}
    for name, features in wanted.items():
        torch.testing.assert_close(found[name], features)
    torch.testing.assert_close(found["hidden 1"], load_encoder(kept, head_layers=1)(images))
    assert not torch.allclose(load_encoder(kept)(images), found["h"])
    for layer in ("g", "hidden 1"):
        settings = EmbedSettings(layer=layer)
        of_both = [
            ViewEncoder(open_encoder(str(folder)), settings, torch.device("cpu")).vectors((images,))
            for folder in (kept, run)
        ]
        np.testing.assert_allclose(of_both[0], of_both[1], rtol=1e-6)


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
