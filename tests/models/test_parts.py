"""Parts of encoders against tables and timm's own grouping; frozen parts stay as they are."""

import copy

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks

from diptych.config.model import EncoderConfig, NormConfig
from diptych.errors import ConfigError
from diptych.models.encoders import build_encoder
from diptych.models.norms import use_norm
from diptych.models.parts import FrozenParts, batch_norms, encoder_parts, hold_statistics


def encoder_of(name: str, **more: object) -> nn.Module:
    stem = "small" if name == "small_resnet" else "imagenet"
    config = EncoderConfig(name=name, stem=stem, **more)  # type: ignore[arg-type]
    return build_encoder(config, channels=3, side_pixels=32, seed=0)


def small(norm: str = "batch") -> nn.Module:
    encoder = encoder_of("small_resnet", width=4, stage_blocks=(1, 1))
    return use_norm(encoder, NormConfig(norm, images_per_group=4)).train()  # type: ignore[arg-type]


def test_the_parts_of_resnet18_are_its_stem_and_four_stages() -> None:
    parts = encoder_parts(encoder_of("resnet18"))
    assert [{name.split(".")[0] for name in part} for part in parts] == [
        {"conv1", "bn1"},
        {"layer1"},
        {"layer2"},
        {"layer3"},
        {"layer4"},
    ]
    assert [len(part) for part in parts] == [3, 12, 15, 15, 15]


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18"])
def test_parts_are_those_of_timm(name: str) -> None:
    from timm.models._manipulate import group_with_matcher

    encoder = encoder_of(f"timm:{name}")
    matcher = encoder.group_matcher(coarse=True)  # type: ignore[operator]
    theirs = group_with_matcher(encoder.named_parameters(), matcher)
    assert [set(part) for part in encoder_parts(encoder)] == [set(one) for one in theirs.values()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("efficientnet_b0", 9, "features.0.0.weight", "features.8.1.bias"),
        ("convnext_tiny", 8, "features.0.0.weight", "classifier.0.bias"),
        ("vit_b_16", 13, "class_token", "encoder.ln.bias"),
        ("swin_t", 8, "features.0.0.weight", "norm.bias"),
        ("densenet121", 8, "features.conv0.weight", "features.norm5.bias"),
        ("timm:convnext_tiny", 5, "stem.0.weight", "head.norm.bias"),
        ("timm:regnety_002", 5, "stem.conv.weight", "s4.b1.conv1.conv.weight"),
        ("vgg11", 1, "features.0.weight", "classifier.3.bias"),
    ],
)
def test_parts_of_other_networks(name: str, count: int, first: str, last: str) -> None:
    encoder = build_encoder(
        EncoderConfig(name=name, stem="imagenet"), channels=3, side_pixels=224, seed=0
    )
    parts = encoder_parts(encoder)
    assert len(parts) == count
    assert first in parts[0]
    assert last in parts[-1]
    named = [name for part in parts for name in part]
    assert sorted(named) == sorted(name for name, _ in encoder.named_parameters())


def test_parts_hold_every_parameter_once() -> None:
    encoder = small()
    named = [name for part in encoder_parts(encoder) for name in part]
    assert sorted(named) == sorted(name for name, _ in encoder.named_parameters())


# --- held statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["batch", "split", "sync"])
def test_held_norms_normalise_by_their_own_statistics(norm: str) -> None:
    encoder = small(norm)
    images = torch.randn(8, 3, 16, 16)
    for _ in range(3):
        encoder(images)
    wanted = copy.deepcopy(encoder).eval()(images)
    before = copy.deepcopy(encoder.state_dict())
    hold_statistics(batch_norms(encoder))
    encoder.eval()
    nn.Sequential(encoder).train()
    torch.testing.assert_close(encoder(images), wanted, rtol=0, atol=0)
    torch.testing.assert_close(copy.deepcopy(encoder).train()(images), wanted, rtol=0, atol=0)
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


# --- frozen parts ---------------------------------------------------------------------------------


def saved_bytes(encoder: nn.Module, images: torch.Tensor) -> int:
    found = 0

    def count(tensor: torch.Tensor) -> torch.Tensor:
        nonlocal found
        # Weights are there anyway; whether their gradients are wanted is counted by the others.
        found += 0 if isinstance(tensor, nn.Parameter) else tensor.nbytes
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        encoder(images)
    return found


@pytest.mark.parametrize("norm", ["batch", "split"])
def test_frozen_parts_stay_as_they_are_and_keep_nothing_for_gradients(norm: str) -> None:
    encoder, images = small(norm), torch.randn(8, 3, 16, 16)
    parts, whole = encoder_parts(encoder), saved_bytes(encoder, images)
    twin = copy.deepcopy(encoder)
    before = copy.deepcopy(encoder.state_dict())
    frozen = FrozenParts(encoder, 2, copies=[twin])
    frozen.set(frozen=True)
    encoder.eval()
    encoder.train()  # as after a measurement
    assert saved_bytes(encoder, images) < 0.6 * whole
    torch.autograd.backward(encoder(images).square().sum())
    twin(images)
    first = {name.rpartition(".")[0] for part in parts[:2] for name in part}
    for name, parameter in encoder.named_parameters():
        assert (parameter.grad is None) == (name in parts[0] + parts[1]), name
    for name, value in encoder.state_dict().items():
        if "running" in name or "tracked" in name:
            held = name.rpartition(".")[0] in first
            assert torch.equal(value, before[name]) == held, name
            assert torch.equal(twin.state_dict()[name], before[name]) == held, name
    frozen.set(frozen=False)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    assert all(module.training for module in [*encoder.modules(), *twin.modules()])
    assert saved_bytes(encoder, images) == whole


def test_what_never_trains_does_not_train_after_freezing() -> None:
    encoder = small()
    encoder.get_parameter("conv1.weight").requires_grad_(False)
    frozen = FrozenParts(encoder, 1)
    frozen.set(frozen=True)
    frozen.set(frozen=False)
    assert not encoder.get_parameter("conv1.weight").requires_grad
    assert encoder.get_parameter("bn1.weight").requires_grad


def test_freezing_more_parts_than_there_are_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"frozen_parts = 4: of SmallResNet 3 parts there are"):
        FrozenParts(small(), 4)
    with pytest.raises(ConfigError, match=r"1 part are known: it has no stages"):
        FrozenParts(nn.Sequential(nn.Flatten(), nn.Linear(4, 4)), 2)
