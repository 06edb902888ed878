"""The two methods against plain PyTorch loops that share no code with them, in float64."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import oracles
from diptych.configs import (
    DictionaryConfig,
    EncoderConfig,
    HeadConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    OptimizerConfig,
    RunConfig,
)
from diptych.contrast.method import Method, build_method
from diptych.training.optimizers import build_optimizer
from diptych.training.step import train_step

RATE, MOMENTUM, DECAY, KEEP, TEMPERATURE, QUEUE = 0.05, 0.9, 0.01, 0.8, 0.2, 10

SIMCLR = RunConfig(
    encoder=EncoderConfig(width=4, stage_blocks=(1, 1)),
    head=HeadConfig(hidden_features=8, output_features=6, batch_norm=True),
    method=MethodConfig(loss=LossConfig(TEMPERATURE)),
    optimizer=OptimizerConfig(momentum=MOMENTUM, weight_decay=DECAY),
)
MOCO = replace(
    SIMCLR,
    method=MethodConfig(
        DictionaryConfig("queue", QUEUE), KeyEncoderConfig("twin", KEEP), LossConfig(TEMPERATURE)
    ),
)


def views(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    first, second = torch.randn(2, 4, 3, 16, 16, generator=generator, dtype=torch.float64)
    return first, second


def unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.square().sum(dim=1, keepdim=True).sqrt()


def sgd(network: nn.Module, velocities: dict[str, Tensor]) -> None:
    """SGD with momentum, written out; decay on weights with more than one axis only."""
    with torch.no_grad():
        for name, weight in network.named_parameters():
            assert weight.grad is not None
            change = weight.grad + (DECAY * weight if weight.ndim > 1 else 0)
            velocities[name] = MOMENTUM * velocities.get(name, 0) + change
            weight.sub_(RATE * velocities[name])
            weight.grad = None


def train(config: RunConfig, steps: int) -> tuple[list[float], Method]:
    method = build_method(config).double().train()
    optimizer = build_optimizer(config.optimizer, method.network)
    losses = []
    for step in range(steps):
        result = train_step(method, optimizer, views(step), rate=RATE, config=config)
        losses.append(float(result.look_up.loss.detach()))
    return losses, method


def test_simclr_equals_the_plain_loop() -> None:
    network = copy.deepcopy(build_method(SIMCLR).network).double().train()
    velocities: dict[str, Tensor] = {}
    expected = []
    for step in range(6):
        both = unit(network(torch.cat(views(step))))
        half = len(both) // 2
        arrays = both.detach().numpy()
        expected.append(oracles.nt_xent(arrays[:half], arrays[half:], TEMPERATURE))
        similarity = both @ both.T / TEMPERATURE
        similarity = similarity - 1e9 * torch.eye(2 * half, dtype=torch.float64)
        partner = torch.cat([torch.arange(half) + half, torch.arange(half)])
        nn.functional.cross_entropy(similarity, partner).backward()  # type: ignore[no-untyped-call]
        sgd(network, velocities)
    losses, method = train(SIMCLR, 6)
    np.testing.assert_allclose(losses, expected, rtol=1e-9)
    for ours, theirs in zip(method.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


def test_moco_equals_the_plain_loop() -> None:
    network = copy.deepcopy(build_method(MOCO).network).double().train()
    slow = copy.deepcopy(network)
    velocities: dict[str, Tensor] = {}
    keys: list[Tensor] = []
    expected = []
    for step in range(8):  # 4 keys a step wrap around a queue of 10
        first, second = views(step)
        queries = unit(network(first))
        with torch.no_grad():
            own = unit(slow(second))
        others = torch.stack(keys) if keys else torch.zeros(0, 6, dtype=torch.float64)
        expected.append(
            oracles.info_nce(queries.detach().numpy(), own.numpy(), others.numpy(), TEMPERATURE)
        )
        logits = torch.cat([(queries * own).sum(1, keepdim=True), queries @ others.T], dim=1)
        target = torch.zeros(4, dtype=torch.long)
        nn.functional.cross_entropy(logits / TEMPERATURE, target).backward()  # type: ignore[no-untyped-call]
        sgd(network, velocities)
        with torch.no_grad():
            for kept, moved in zip(slow.parameters(), network.parameters(), strict=True):
                kept.copy_(KEEP * kept + (1 - KEEP) * moved)
        keys = [*keys, *own][-QUEUE:]
    losses, method = train(MOCO, 8)
    np.testing.assert_allclose(losses, expected, rtol=1e-9, atol=1e-12)
    assert method.twin is not None
    for ours, theirs in zip(method.twin.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)
    for mine, other in zip(method.twin.network.buffers(), slow.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-8, atol=1e-10)


def test_the_twin_begins_as_the_network_head_included() -> None:
    method = build_method(MOCO)
    assert method.twin is not None
    copies, originals = method.twin.parameters(), method.network.parameters()
    for copied, original in zip(copies, originals, strict=True):
        assert torch.equal(copied, original)
        assert not copied.requires_grad


@pytest.mark.parametrize("config", [SIMCLR, MOCO], ids=["simclr", "moco"])
def test_a_call_moves_no_weight_and_no_dictionary(config: RunConfig) -> None:
    method = build_method(config).double().train()
    before = {name: value.clone() for name, value in method.state_dict().items()}
    method(*views(0))
    for name, value in method.state_dict().items():
        if "running_" not in name and "num_batches" not in name:
            assert torch.equal(before[name], value), name


def test_moco_sends_no_gradient_to_the_keys() -> None:
    method = build_method(MOCO).double().train()
    method(*views(0)).look_up.loss.backward()
    assert method.twin is not None
    assert all(p.grad is None for p in method.twin.parameters())


def test_initial_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = build_method(SIMCLR).state_dict()
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    other = build_method(SIMCLR).state_dict()
    different = build_method(replace(SIMCLR, seed=1)).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert not torch.equal(
        one["network.encoder.conv1.weight"], different["network.encoder.conv1.weight"]
    )
