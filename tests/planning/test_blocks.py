"""The parts that are measured one by one are the whole network, each with its own shape."""

import pytest
import torch
from torch import nn

from diptych.config.model import EncoderConfig
from diptych.models.encoders import build_encoder
from diptych.planning.blocks import blocks_of, seconds_of


def weights(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("name", ["small_resnet", "resnet18", "resnet50"])
def test_every_weight_is_in_one_block(name: str) -> None:
    config = EncoderConfig(name=name, stem="small")
    encoder = build_encoder(config, channels=3, side_pixels=32, seed=0)
    found = blocks_of(encoder, torch.randn(2, 3, 32, 32), 64)
    assert sum(block.count * weights(block.module) for block in found) == weights(encoder)
    assert found[0].first
    assert found[0].shape == (64, 3, 32, 32)
    assert not any(block.first for block in found[1:])


def test_shapes_are_those_of_the_whole_batch() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1), nn.ReLU(), nn.ReLU())
    found = blocks_of(network, torch.randn(2, 3, 8, 8), 64)
    assert [(block.shape, block.count) for block in found] == [
        ((64, 3, 8, 8), 1),
        ((64, 5, 4, 4), 2),
    ]


def test_a_measured_network_is_left_as_it_was() -> None:
    network = nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(4, 4))
    relu, linear = blocks_of(network, torch.randn(2, 4), 8)
    assert relu.count == 2
    assert seconds_of(relu, learns=False) > 0
    assert seconds_of(linear, learns=True) > 0
    assert linear.module.weight.grad is None  # left as it was
