"""Optimizers and schedules against the formulas."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

import oracles
from diptych.config.model import EncoderConfig
from diptych.config.run import AdamWConfig, LarsConfig, OptimizerConfig, ScheduleConfig, StepConfig
from diptych.models.encoders import build_encoder
from diptych.optimization.optimizers import (
    Lars,
    build_optimizer,
    decayed_weights,
    learning_rate,
    peak_learning_rate,
    set_learning_rate,
)


def network() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2)
    ).double()


def test_lars_equals_the_formula() -> None:
    net, config = network(), OptimizerConfig(kind="lars", weight_decay=0.02, momentum=0.9)
    optimizer = build_optimizer(config, net)
    mirror = {n: (p.detach().numpy().copy(), np.zeros(p.shape)) for n, p in net.named_parameters()}
    for step in range(5):
        set_learning_rate(optimizer, 0.3)
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
        gradients = {
            n: p.grad.numpy().copy() for n, p in net.named_parameters() if p.grad is not None
        }
        optimizer.step()
        for name, parameter in net.named_parameters():
            weight, velocity = mirror[name]
            if weight.ndim > 1:
                mirror[name] = oracles.lars_step(
                    weight,
                    gradients[name],
                    velocity,
                    rate=0.3,
                    momentum=0.9,
                    decay=0.02,
                    trust=0.001,
                )
            else:  # norms and biases: plain SGD, no decay
                velocity = 0.9 * velocity + 0.3 * gradients[name]
                mirror[name] = (weight - velocity, velocity)
            np.testing.assert_allclose(
                parameter.detach().numpy(),
                mirror[name][0],
                rtol=1e-10,
                atol=1e-12,
                err_msg=f"{name} {step}",
            )


def test_lars_leaves_a_zero_gradient_or_weight_alone() -> None:
    weight = nn.Parameter(torch.zeros(3, 3))
    optimizer = Lars([{"params": [weight], "weight_decay": 0.0}], momentum=0.0, trust=0.001, lr=1.0)
    weight.grad = torch.ones(3, 3)
    optimizer.step()
    assert torch.equal(weight.detach(), -torch.ones(3, 3))
    weight.grad = torch.zeros(3, 3)
    optimizer.step()
    assert torch.equal(weight.detach(), -torch.ones(3, 3))


def test_norms_and_biases_may_learn_at_a_share_of_the_rate_of_lars() -> None:
    """As Barlow Twins' do; no other optimizer looks at it."""
    share = LarsConfig(spared_share=0.024)
    for kind, wanted in (("lars", 0.024), ("sgd", 1.0)):
        optimizer = build_optimizer(OptimizerConfig(kind=kind, lars=share), network())  # type: ignore[arg-type]
        set_learning_rate(optimizer, 2.0)
        found = {
            p.ndim > 1: group["lr"] for group in optimizer.param_groups for p in group["params"]
        }
        assert found == {True: 2.0, False: pytest.approx(2.0 * wanted)}
        assert optimizer.param_groups[0]["lr"] == 2.0  # which the metrics show


@pytest.mark.parametrize("kind", ["sgd", "lars"])
def test_decay_is_on_weights_only(kind: str) -> None:
    optimizer = build_optimizer(OptimizerConfig(kind=kind, weight_decay=0.1), network())  # type: ignore[arg-type]
    decayed = {
        p.ndim > 1: group["weight_decay"]
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert decayed == {True: 0.1, False: 0.0}


@pytest.mark.parametrize(
    ("scaling", "batch", "wanted"),
    [("linear", 256, 0.3), ("linear", 4096, 4.8), ("square_root", 4096, 19.2), ("none", 4096, 0.3)],
)
def test_rates_scale_with_the_batch(scaling: str, batch: int, wanted: float) -> None:
    config = OptimizerConfig(learning_rate=0.3, scaling=scaling)  # type: ignore[arg-type]
    assert peak_learning_rate(config, batch) == pytest.approx(wanted)


def rates(warmup_epochs: float, total: int = 100, per_epoch: int = 10) -> list[float]:
    return [
        learning_rate(
            ScheduleConfig(warmup_epochs=warmup_epochs),
            peak=2.0,
            step=step,
            steps_per_epoch=per_epoch,
            total_steps=total,
        )
        for step in range(total)
    ]


def test_warm_up_is_a_line_and_then_half_a_cosine() -> None:
    found = rates(2.0)
    np.testing.assert_allclose(found[:20], 2.0 * np.arange(1, 21) / 20)
    assert found[20] == 2.0
    assert found[60] == pytest.approx(1.0)
    assert found[40] == pytest.approx(1 + math.cos(math.pi / 4))
    assert 0 < found[-1] < 0.01
    assert all(a > b for a, b in pairwise(found[20:]))


def test_without_warm_up_it_begins_at_the_peak() -> None:
    assert rates(0.0)[0] == 2.0


def test_warm_up_takes_half_the_run_at_most() -> None:
    found = rates(1000.0)
    assert max(found) == found[49] == 2.0
    assert found[-1] < 0.01


def test_steps_drop_where_they_should() -> None:
    config = ScheduleConfig(
        kind="step", warmup_epochs=1, step=StepConfig(drops=(0.6, 0.8), factor=0.1)
    )
    rates = [
        learning_rate(config, peak=2.0, step=step, steps_per_epoch=10, total_steps=200)
        for step in range(200)
    ]
    assert rates[4] == pytest.approx(2.0 * 5 / 10)
    assert set(rates[10:120]) == {2.0}
    assert rates[120:160] == pytest.approx([0.2] * 40)
    assert rates[160:] == pytest.approx([0.02] * 40)


def test_a_constant_rate_stays() -> None:
    config = ScheduleConfig(kind="constant")
    rates = {
        learning_rate(config, peak=0.3, step=s, steps_per_epoch=5, total_steps=50)
        for s in range(50)
    }
    assert rates == {0.3}


def test_adamw_equals_the_formula() -> None:
    """Loshchilov and Hutter 2019, algorithm 2; no decay on vectors."""
    net = network()
    config = OptimizerConfig(
        kind="adamw", weight_decay=0.05, momentum=0.9, adamw=AdamWConfig(beta2=0.99)
    )
    optimizer = build_optimizer(config, net)
    mirror = {
        n: [p.detach().numpy().copy(), np.zeros(p.shape), np.zeros(p.shape)]
        for n, p in net.named_parameters()
    }
    for step in range(1, 6):
        set_learning_rate(optimizer, 0.01)
        optimizer.zero_grad()
        net(torch.randn(4, 3, 8, 8, dtype=torch.float64)).square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            gradient = parameter.grad.numpy()
            weight, first, second = mirror[name]
            weight = weight * (1 - 0.01 * (0.05 if weight.ndim > 1 else 0.0))
            first = 0.9 * first + 0.1 * gradient
            second = 0.99 * second + 0.01 * gradient**2
            scale = np.sqrt(second / (1 - 0.99**step)) + 1e-8
            weight = weight - 0.01 * first / (1 - 0.9**step) / scale
            mirror[name] = [weight, first, second]
        optimizer.step()
        for name, parameter in net.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), mirror[name][0], rtol=1e-9)


# --- what decays ----------------------------------------------------------------------------------


def decayed(encoder: str, side: int) -> tuple[set[str], set[str]]:
    """Names of the parameters that decay, and of those that do not."""
    config = EncoderConfig(name=encoder, stem="imagenet")
    network = build_encoder(config, channels=3, side_pixels=side, seed=0)
    first, second = build_optimizer(OptimizerConfig(), network).param_groups
    assert (first["weight_decay"], second["weight_decay"]) == (1e-4, 0.0)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    found = [{names[id(p)] for p in group["params"]} for group in (first, second)]
    assert found[0] | found[1] == set(names.values())
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "kept"),
    [
        (
            "timm:vit_tiny_patch16_224",
            {"cls_token", "pos_embed"},
        ),
        ("timm:vit_small_patch14_reg4_dinov2", {"cls_token", "pos_embed", "reg_token"}),
        ("timm:cait_xxs24_224", {"cls_token", "pos_embed", "blocks.0.gamma_1"}),
        ("vit_b_16", {"class_token", "encoder.pos_embedding"}),
        ("convnext_tiny", {"features.1.0.layer_scale"}),
        ("swin_t", {"features.1.0.attn.relative_position_bias_table"}),
        (
            "timm:swin_tiny_patch4_window7_224",
            {"layers.0.blocks.0.attn.relative_position_bias_table"},
        ),
    ],
)
def test_tokens_positions_and_layer_scales_do_not_decay(encoder: str, kept: set[str]) -> None:
    pulled, spared = decayed(encoder, 224)
    assert kept <= spared
    assert not any("norm" in name or name.endswith("bias") for name in pulled)
    # All that multiplies does: kernels of convolutions and matrices of linear layers.
    assert any("mlp" in name or "block" in name for name in pulled)


def test_every_matrix_of_our_networks_decays() -> None:
    for encoder in ("small_resnet", "resnet18"):
        pulled, spared = decayed(encoder, 32)
        config = EncoderConfig(name=encoder, stem="imagenet")
        network = build_encoder(config, channels=3, side_pixels=32, seed=0)
        shapes = {name: parameter.ndim for name, parameter in network.named_parameters()}
        assert pulled == {name for name, ndim in shapes.items() if ndim > 1}
        assert spared == {name for name, ndim in shapes.items() if ndim == 1}


def test_the_matrices_of_attention_decay_and_a_table_does_not() -> None:
    network = nn.ModuleList([nn.MultiheadAttention(8, 2, kdim=4), nn.Embedding(5, 8)])
    names = {id(p): name for name, p in network.named_parameters()}
    assert {names[id(p)] for p in decayed_weights(network)} == {
        "0.q_proj_weight",
        "0.k_proj_weight",
        "0.v_proj_weight",
        "0.out_proj.weight",
    }
