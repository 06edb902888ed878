"""Stages that are computed again, or kept elsewhere: the same gradients, statistics and names."""

import copy
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from diptych.config.method import (
    DictionaryConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.errors import ConfigError
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.models import activations
from diptych.models.activations import offload, recompute_stages, stages_of
from diptych.models.encoders import build_encoder
from diptych.training.step import train_step
from diptych.views.batches import Batch

BATCH = 8
MOCO = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1, 2)),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    method=MethodConfig(
        loss=LossConfig(temperature=0.2),
        dictionary=DictionaryConfig("queue", queue=QueueConfig(size=20)),
        key_encoder=KeyEncoderConfig("momentum", momentum=0.9),
    ),
    norm=NormConfig(images_per_group=4),
    training=TrainingConfig(batch_size=BATCH),
)


class Dropping(nn.Module):
    """Blocks that drop units and keep statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(nn.Linear(12, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.4))
                for _ in range(3)
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.blocks(images.flatten(1))
        return features


def offload_here(encoder: nn.Module) -> None:
    """As on an accelerator: what is saved goes through the hooks."""
    assert offload(encoder, torch.device("mps"))


CHANGES: dict[str, list[Callable[[nn.Module], None]]] = {
    "recompute": [recompute_stages],
    "offload": [offload_here],
    "both": [recompute_stages, offload_here],
}


def learned(encoder: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Features, gradients and buffers after one step in training mode."""
    torch.manual_seed(5)
    features = encoder(images)
    features.pow(2).sum().backward()
    gradients = {
        f"gradient/{name}": p.grad for name, p in encoder.named_parameters() if p.grad is not None
    }
    left = {"draw": torch.rand(3)}  # later draws must not depend on it either
    return {"features": features.detach(), **gradients, **dict(encoder.named_buffers()), **left}


def assert_close(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        largest = float(theirs[name].abs().max())
        torch.testing.assert_close(
            value, theirs[name], rtol=1e-9, atol=1e-10 * largest + 1e-12, msg=name
        )


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("small_resnet", 8),
        ("dropping", 2),
        pytest.param("resnet18", 32, marks=pytest.mark.slow),
        pytest.param("timm:vit_tiny_patch16_224", 32, marks=pytest.mark.slow),
    ],
)
def test_gradients_and_statistics_are_the_same(name: str, side: int, change: str) -> None:
    torch.manual_seed(3)
    plain: nn.Module = Dropping()
    if name != "dropping":
        stem = "small" if name == "small_resnet" else "imagenet"
        config = EncoderConfig(name, stem=stem, width=4, stage_blocks=(1, 2))  # type: ignore[arg-type]
        plain = build_encoder(config, channels=3, side_pixels=side, seed=3)
    plain = plain.double().train()
    changed = copy.deepcopy(plain)
    for apply in CHANGES[change]:
        apply(changed)
    assert plain.state_dict().keys() == changed.state_dict().keys()
    images = torch.randn(4, 3, side, side, dtype=torch.float64)
    for _ in range(2):  # statistics that moved twice in a step would show
        assert_close(learned(changed, images), learned(plain, images))
    changed.eval()
    with torch.no_grad():
        assert torch.equal(changed(images), plain.eval()(images))


def saved_bytes(encoder: nn.Module, images: Tensor) -> int:
    """What lies between forward and backward, weights not counted."""
    weights, kept = {p.data_ptr() for p in encoder.parameters()}, {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        encoder(images).sum().backward()
    return sum(tensor.nbytes for tensor in kept.values())


@pytest.mark.parametrize(
    "name", ["resnet18", pytest.param("timm:vit_tiny_patch16_224", marks=pytest.mark.slow)]
)
def test_less_is_kept(name: str) -> None:
    encoder = build_encoder(
        EncoderConfig(name, stem="imagenet"), channels=3, side_pixels=32, seed=0
    ).train()
    images = torch.randn(4, 3, 32, 32)
    before = saved_bytes(encoder, images)
    recompute_stages(encoder)
    assert saved_bytes(encoder, images) < 0.5 * before


def test_offloaded_tensors_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hooks that count in the place of torch's."""
    packed: list[Tensor] = []

    class Hooks(saved_tensors_hooks):
        def __init__(self, *, pin_memory: bool) -> None:
            assert pin_memory  # as CUDA wants it

            def pack(tensor: Tensor) -> Tensor:
                packed.append(tensor)
                return tensor

            super().__init__(pack, lambda tensor: tensor)

    monkeypatch.setattr(activations, "save_on_cpu", Hooks)
    encoder = build_encoder(EncoderConfig(width=4), channels=3, side_pixels=8, seed=0).train()
    assert offload(encoder, torch.device("cuda"))
    encoder(torch.randn(2, 3, 8, 8)).sum().backward()
    whole = len(packed)
    assert whole > 10
    packed.clear()
    fewer = build_encoder(EncoderConfig(width=4), channels=3, side_pixels=8, seed=0).train()
    recompute_stages(fewer)
    assert offload(fewer, torch.device("cuda"))
    fewer(torch.randn(2, 3, 8, 8)).sum().backward()
    assert 0 < len(packed) < whole / 2  # the inputs of stages among them


def test_a_cpu_has_its_activations_already() -> None:
    encoder = build_encoder(EncoderConfig(width=4), channels=3, side_pixels=8, seed=0)
    assert not offload(encoder, torch.device("cpu"))
    assert "forward" not in vars(encoder)


@pytest.mark.parametrize("kind", ["batch", "shuffle"])
@pytest.mark.parametrize("chunk_size", [None, 4])
@pytest.mark.parametrize("change", CHANGES)
def test_a_whole_step_is_the_same(change: str, chunk_size: int | None, kind: str) -> None:
    norm = replace(MOCO.norm, kind=kind)  # type: ignore[arg-type]
    config = replace(MOCO, norm=norm, training=replace(MOCO.training, chunk_size=chunk_size))
    views = torch.randn(2, 2, BATCH, 3, 8, 8, dtype=torch.float64)
    states = []
    for apply in ([], CHANGES[change]):
        method = build_contrastive(config).double().train()
        for one in apply:
            one(method.encoder)
        states.append(trained(method, config, views))
    assert_close(*states)


def trained(method: Contrastive, config: RunConfig, views: Tensor) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], lr=0.1)
    for step, pair in enumerate(views):
        small = tuple(pair[..., :6, :6])  # whose passes are frozen the first time as well
        batch = Batch((*pair, *small), torch.arange(BATCH), step)
        train_step(method, optimizer, batch, rate=0.1, momentum=0.9, config=config)
    return {name: value.double() for name, value in method.state_dict().items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("resnet50", 4),
        ("vit_b_32", 12),
        ("timm:vit_tiny_patch16_224", 12),
        ("timm:convnext_atto", 4),
        ("timm:regnety_002", 4),
        ("shufflenet_v2_x0_5", 3),
        ("densenet121", 7),  # dense blocks and what lies between them
    ],
)
def test_stages_are_found_in_the_libraries_networks(name: str, count: int) -> None:
    encoder = build_encoder(
        EncoderConfig(name, stem="imagenet"), channels=3, side_pixels=64, seed=0
    )
    assert len(list(stages_of(encoder))) == count


def test_networks_without_stages_are_refused() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
    with pytest.raises(ConfigError, match=r"recompute = 'stages' needs .*; Sequential has none"):
        recompute_stages(encoder)
