"""Encoders: shapes, names, stems, and errors that name the right one."""

import pytest
import torch
import torchvision.models

from diptych.configs import EncoderConfig
from diptych.errors import ConfigError
from diptych.model.encoders import build_encoder, count_features


@pytest.fixture(autouse=True)
def _one_generator() -> None:
    torch.manual_seed(0)


def test_the_small_resnet_has_the_size_it_says() -> None:
    encoder = build_encoder(EncoderConfig(), channels=3, seed=0)
    assert sum(p.numel() for p in encoder.parameters()) == 307_360
    assert encoder(torch.randn(2, 3, 32, 32)).shape == (2, 128)


@pytest.mark.parametrize("stage_blocks", [(1,), (2, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_width_and_depth_are_parameters(
    channels: int, stride: int, stage_blocks: tuple[int, ...]
) -> None:
    config = EncoderConfig(width=4, stem_stride=stride, stage_blocks=stage_blocks)
    encoder = build_encoder(config, channels=channels, seed=0)
    wanted = 4 * 2 ** (len(stage_blocks) - 1)
    assert encoder(torch.randn(2, channels, 33, 33)).shape == (2, wanted)
    assert count_features(encoder, channels=channels, side_pixels=33) == wanted
    assert encoder.training


def test_torchvisions_names_are_kept() -> None:
    ours = build_encoder(EncoderConfig(name="resnet18", stem="imagenet"), channels=3, seed=0)
    theirs = torchvision.models.resnet18(weights=None)
    wanted = {name for name in theirs.state_dict() if not name.startswith("fc.")}
    assert set(ours.state_dict()) == wanted
    result = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert sorted(result.missing_keys) == ["fc.bias", "fc.weight"]
    images = torch.randn(2, 3, 64, 64)
    theirs.fc = torch.nn.Identity()
    assert torch.equal(theirs.eval()(images), ours.eval()(images))


def test_the_small_stem_keeps_the_resolution() -> None:
    config = EncoderConfig(name="resnet18", stem="small")
    encoder = build_encoder(config, channels=1, seed=0)
    assert encoder.conv1.weight.shape == (64, 1, 3, 3)  # type: ignore[union-attr]
    shapes = []
    encoder.layer1.register_forward_hook(  # type: ignore[union-attr]
        lambda _module, inputs, _output: shapes.append(inputs[0].shape)
    )
    encoder(torch.randn(2, 1, 32, 32))
    assert shapes == [(2, 64, 32, 32)]


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"small_resnet.*resnet18"):
        build_encoder(EncoderConfig(name="resnet19", stem="imagenet"), channels=3, seed=0)
