"""What weights mean for settings, and the encoder files made of them."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.config.files import nest, overlay
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models import weight_files
from diptych.models.start import (
    fit_start,
    import_encoder,
    load_compared,
    open_encoder,
    read_start,
)
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.runs.tensor_files import read_tensors_and_text
from foreign_networks import LINEAR, moco_v3_vit_small, prefixed, resnet18

SMALL = overlay(
    RunConfig(),
    nest(
        {
            "encoder.width": 4,
            "encoder.stage_blocks": (1,),
            "views.side_pixels": 16,
            "views.pixel_mean": (0.1, 0.2, 0.3),
        }
    ),
    "the test",
)


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """An encoder that diptych wrote."""
    save_encoder(tmp_path / "ours.safetensors", untrained_encoder(SMALL), SMALL)
    return tmp_path / "ours.safetensors"


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A ResNet-18 with a 3x3 stem."""
    state = resnet18(small_border=1).state_dict() | prefixed("fc.", LINEAR)
    torch.save(state, tmp_path / "theirs.pth")
    return tmp_path / "theirs.pth"


@pytest.mark.parametrize("name", ["vit_small_patch16_224", "timm:vit_small_patch16_224"])
def test_moco_v3s_heads_are_kept_however_the_network_is_called(name: str, tmp_path: Path) -> None:
    torch.save(moco_v3_vit_small().content, tmp_path / "vit.pth")
    start = read_start(str(tmp_path / "vit.pth"), name)
    assert start.settings["encoder"]["attention_heads"] == 12
    config = start.applied_to(overlay(RunConfig(), nest({"views.side_pixels": 32}), "the test"))
    sentences = fit_start(start, config).sentences
    assert any("it is taken to have 12. MoCo v3's has 12; of DeiT's" in one for one in sentences)


def test_settings_follow_from_our_own_file(ours: Path) -> None:
    start = read_start(str(ours), None)
    config = start.applied_to(RunConfig(encoder=EncoderConfig("resnet50", stem="imagenet")))
    assert config.encoder == SMALL.encoder
    assert config.views.pixel_mean == (0.1, 0.2, 0.3)
    assert config.views.policy == RunConfig().views.policy
    fitted = fit_start(start, config)
    assert fitted.sentences == [
        f"Weights of {ours}: the layout of torchvision or timm; all 18 tensors fit."
    ]


def test_how_an_encoder_was_trained_does_not_follow_from_its_file(tmp_path: Path) -> None:
    of_training = {"frozen_parts": 2, "frozen_epochs": 1.5, "batch_statistics": "start"}
    encoder = replace(SMALL.encoder, weights="earlier.pth", **of_training)  # type: ignore[arg-type]
    config = replace(SMALL, encoder=encoder)
    file = tmp_path / "ours.safetensors"
    save_encoder(file, untrained_encoder(SMALL), config)
    assert read_start(str(file), None).applied_to(RunConfig()).encoder == SMALL.encoder


def test_the_stem_follows_from_the_first_convolution(theirs: Path) -> None:
    for asked in (None, "resnet18"):
        start = read_start(str(theirs), asked)
        assert start.settings["encoder"] == {"name": "resnet18", "stem": "small"}
    assert read_start(str(theirs), "resnet50").settings["encoder"] == {
        "name": "resnet50",
        "stem": "small",
    }
    config = read_start(str(theirs), None).applied_to(RunConfig())
    assert config.views.pixel_mean == RunConfig().views.pixel_mean


def test_it_is_asked_which_network_where_names_do_not_show_it(tmp_path: Path) -> None:
    torch.save({"layer.weight": torch.ones(2, 2)}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="Name it: --encoder NAME"):
        read_start(str(tmp_path / "w.pt"), None)
    with pytest.raises(ConfigError, match="encoder by name; load weights into the module"):
        read_start(str(tmp_path / "w.pt"), "own")


def test_norms_without_statistics_are_taken_over_from_our_own_file(tmp_path: Path) -> None:
    config = replace(SMALL, norm=replace(SMALL.norm, kind="group"))
    save_encoder(tmp_path / "e.safetensors", untrained_encoder(config), config)
    start = read_start(str(tmp_path / "e.safetensors"), None)
    assert start.applied_to(RunConfig()).norm == config.norm
    fit_start(start, start.applied_to(RunConfig()))


def test_weights_of_batch_norm_are_refused_for_a_norm_without_statistics(ours: Path) -> None:
    config = replace(SMALL, norm=replace(SMALL.norm, kind="layer"))
    with pytest.raises(ConfigError, match=r"bn1\.running_mean.* --norm\.kind batch"):
        fit_start(read_start(str(ours), None), config)


def test_an_imported_file_says_how_it_is_fed_and_where_it_is_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = {
        "mean": (0.5, 0.4, 0.3),
        "std": (0.2, 0.2, 0.2),
        "license": "bsd-3-clause",
        "input_size": (3, 48, 48),
    }

    def fetch(text: str, encoder: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        return resnet18().state_dict(), {"pretrained_cfg": about}

    monkeypatch.setattr(weight_files, "fetch", fetch)
    started, config = import_encoder("pretrained", encoder="resnet18")
    assert "Their licence is bsd-3-clause." in started.sentences
    started.write(tmp_path / "x.safetensors", config)
    _, texts = read_tensors_and_text(tmp_path / "x.safetensors")
    assert texts["source"] == "pretrained of resnet18"
    assert texts["licence"] == "bsd-3-clause"
    assert texts["input_size"] == "48"
    found = load_encoder(tmp_path / "x.safetensors").config
    assert found.encoder == EncoderConfig("resnet18", stem="imagenet")
    assert (found.views.side_pixels, found.views.pixel_mean) == (48, (0.5, 0.4, 0.3))
    assert (found.images.color, found.images.decoded_side) == ("rgb", found.views.image_side)
    again = read_start(str(tmp_path / "x.safetensors"), None)
    assert again.settings["views"] == {
        "pixel_mean": (0.5, 0.4, 0.3),
        "pixel_std": (0.2, 0.2, 0.2),
    }
    assert again.file.licence == "bsd-3-clause"


def test_an_encoder_of_gray_images_is_imported_as_such(tmp_path: Path) -> None:
    network = resnet18(small_border=1)
    state = network.state_dict()
    state["conv1.weight"] = state["conv1.weight"][:, :1].clone()
    torch.save(state, tmp_path / "w.pt")
    _, config = import_encoder(str(tmp_path / "w.pt"))
    assert (config.images.color, config.views.side_pixels) == ("gray", 32)


def test_what_is_compared_is_a_run_or_foreign_weights(ours: Path, theirs: Path) -> None:
    assert load_compared(str(ours), "resnet50").config == SMALL
    found = load_compared(str(theirs), "resnet50")
    assert found.config.encoder == EncoderConfig("resnet18", stem="small")
    assert not found.training


def test_an_encoder_to_use_is_a_runs_or_foreign_weights(
    ours: Path, theirs: Path, tmp_path: Path
) -> None:
    opened = open_encoder(str(ours))
    assert (opened.run, opened.encoder.config, list(opened.sentences)) == (ours, SMALL, [])
    assert opened.sha256 == hashlib.sha256(ours.read_bytes()).hexdigest()
    (tmp_path / "run").mkdir()
    inside = tmp_path / "run" / "encoder.safetensors"
    inside.write_bytes(ours.read_bytes())
    assert open_encoder(str(tmp_path / "run")).sha256 == opened.sha256
    with pytest.raises(
        ConfigError, match="--encoder and --side go with weights of other libraries"
    ):
        open_encoder(str(ours), side_pixels=64)
    foreign = open_encoder(str(theirs), encoder="resnet18", side_pixels=48)
    assert foreign.run is None
    assert foreign.encoder.config.views.side_pixels == 48
    assert foreign.sha256 == hashlib.sha256(theirs.read_bytes()).hexdigest()
    assert "tensors fit" in foreign.sentences[0]
    (tmp_path / "w.pt").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="is not a file of weights that can be read"):
        open_encoder(str(tmp_path / "w.pt"))
