"""Which network a state dict is of."""

from typing import Any

import pytest
import torch
from torch import nn

from diptych.config.model import EncoderConfig
from diptych.models.architectures import infer_encoder
from diptych.models.encoders import build_encoder


@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig("resnet18", stem="small"),
        EncoderConfig("resnet18", stem="imagenet", width_multiplier=2),
        *(EncoderConfig(name, stem="imagenet") for name in ("resnet50", "vit_tiny_patch16_224")),
        *(
            pytest.param(EncoderConfig(name, stem="imagenet"), marks=pytest.mark.slow)
            for name in (
                *("resnet18", "resnet34", "resnet101", "resnet152", "resnext50_32x4d"),
                *("resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
                *("vit_b_16", "vit_l_32", "vit_small_patch16_224"),
            )
        ),
    ],
    ids=str,
)
def test_an_encoder_is_known_by_its_shapes(config: EncoderConfig) -> None:
    side = 64 if "vit" in config.name else 32
    with torch.device("meta"):
        network = build_encoder(config, channels=3, side_pixels=side, seed=0)
    found = infer_encoder(shapes(network))
    assert EncoderConfig(**found) == config


@pytest.mark.parametrize(
    "broken",
    [{}, {"conv1.weight": (64, 3, 7, 7)}, {"conv1.weight": ()}, {"patch_embed.proj.weight": (5,)}],
)
def test_what_is_not_known_gives_nothing(broken: Any) -> None:
    assert infer_encoder(broken) == {}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(one.shape) for name, one in network.state_dict().items()}
