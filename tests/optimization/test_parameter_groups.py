"""Rates of single parameters against a table; decay towards the start against its closed form."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from diptych.config.model import EncoderConfig
from diptych.config.run import AdamWConfig, LarsConfig, OptimizerConfig
from diptych.models.encoders import build_encoder
from diptych.models.parts import encoder_parts
from diptych.optimization.optimizers import build_optimizer, set_learning_rate

RATE, PULL = 0.1, 0.3


def network_of(name: str) -> tuple[nn.Sequential, list[list[nn.Parameter]]]:
    encoder = build_encoder(
        EncoderConfig(name=name, stem="imagenet"), channels=3, side_pixels=32, seed=0
    )
    parts = [[encoder.get_parameter(one) for one in part] for part in encoder_parts(encoder)]
    return nn.Sequential(encoder, nn.Linear(4, 4)), parts


SHARES = {
    # By hand: five parts, of which the last learns at 0.5 of the rate.
    "resnet18": {
        "0.conv1.weight": 0.5**5,
        "0.bn1.weight": 0.5**5,
        "0.bn1.bias": 0.5**5,
        "0.layer1.0.conv1.weight": 0.5**4,
        "0.layer1.1.bn2.bias": 0.5**4,
        "0.layer2.0.downsample.0.weight": 0.5**3,
        "0.layer3.1.conv2.weight": 0.5**2,
        "0.layer4.1.bn2.weight": 0.5,
        "1.weight": 1.0,
        "1.bias": 1.0,
    },
    # Stem, seven rows of blocks; what follows the last belongs to it.
    "timm:efficientnet_lite0": {
        "0.conv_stem.weight": 0.5**8,
        "0.bn1.bias": 0.5**8,
        "0.blocks.0.0.conv_dw.weight": 0.5**7,
        "0.blocks.1.1.bn3.weight": 0.5**6,
        "0.blocks.2.0.conv_pw.weight": 0.5**5,
        "0.blocks.3.2.bn1.bias": 0.5**4,
        "0.blocks.4.0.conv_pwl.weight": 0.5**3,
        "0.blocks.5.3.conv_dw.weight": 0.5**2,
        "0.blocks.6.0.conv_pw.weight": 0.5,
        "0.conv_head.weight": 0.5,
        "0.bn2.weight": 0.5,
        "1.weight": 1.0,
    },
}


@pytest.mark.parametrize("name", SHARES)
@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_each_parameter_learns_at_its_share_of_the_rate(kind: str, name: str) -> None:
    network, parts = network_of(name)
    config = OptimizerConfig(kind=kind, layer_decay=0.5, weight_decay=0.01)  # type: ignore[arg-type]
    optimizer = build_optimizer(config, network, parts)
    set_learning_rate(optimizer, RATE)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates, decays = dict[str, float](), dict[str, float]()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
            decays[names[id(parameter)]] = group["weight_decay"]
    assert rates.keys() == set(names.values())
    for one, share in SHARES[name].items():
        assert rates[one] == pytest.approx(RATE * share, rel=1e-12), one
    # What metrics show is the rate itself, and every kernel still decays.
    assert optimizer.param_groups[0]["lr"] == RATE
    for one, parameter in network.named_parameters():
        assert decays[one] == (0.01 if parameter.ndim > 1 else 0.0), one


def test_without_layer_decay_there_are_two_groups_as_always() -> None:
    network, parts = network_of("resnet18")
    groups = build_optimizer(OptimizerConfig(), network, parts).param_groups
    alone = build_optimizer(OptimizerConfig(), network).param_groups
    assert len(groups) == len(alone) == 2
    for one, other in zip(groups, alone, strict=True):
        assert list(map(id, one["params"])) == list(map(id, other["params"]))
        assert one["weight_decay"] == other["weight_decay"]


# --- L2-SP ----------------------------------------------------------------------------------------


def moved(config: OptimizerConfig, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """One weight of an encoder and one of a head by constant gradients: start, gradient, end."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(4, 3, bias=False).double(), nn.Linear(3, 2, bias=False).double()
    network = nn.Sequential(encoder, head)
    start, others = encoder.weight.detach().clone(), head.weight.detach().clone()
    optimizer = build_optimizer(config, network, [list(encoder.parameters())])
    # Away from the start, as a run that goes on is: the start is what it was when it was built.
    with torch.no_grad():
        encoder.weight.add_(1.0)
    gradient = torch.randn_like(start)
    for _ in range(steps):
        set_learning_rate(optimizer, RATE)
        encoder.weight.grad, head.weight.grad = gradient.clone(), torch.zeros_like(head.weight)
        optimizer.step()
    return start, gradient, encoder.weight.detach(), others, head.weight.detach()


def test_sgd_without_momentum_goes_to_the_start_less_gradient_over_pull() -> None:
    config = OptimizerConfig(momentum=0.0, weight_decay=0.01, pull_to_start=PULL)
    start, gradient, found, others, head = moved(config, steps=7)
    # w - w* shrinks by 1 - rate x pull at each step, for w* = w0 - g / pull, where both cancel.
    end = start - gradient / PULL
    wanted = end + (1 - RATE * PULL) ** 7 * (start + 1.0 - end)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
    # The head, which had no start worth keeping, decays towards zero.
    torch.testing.assert_close(head, others * (1 - RATE * 0.01) ** 7, rtol=1e-12, atol=1e-12)


def test_adamw_is_pulled_apart_from_its_gradient() -> None:
    config = OptimizerConfig(
        kind="adamw", momentum=0.0, pull_to_start=PULL, adamw=AdamWConfig(beta2=0.0)
    )
    start, gradient, found, _, _ = moved(config, steps=5)
    # Without memory Adam moves by the rate against the sign of the gradient.
    wanted = start + 1.0
    for _ in range(5):
        wanted = wanted - RATE * PULL * (wanted - start)
        wanted = wanted - RATE * gradient / (gradient.abs() + 1e-8)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_lars_scales_gradient_and_pull_together() -> None:
    config = OptimizerConfig(
        kind="lars", momentum=0.0, pull_to_start=PULL, lars=LarsConfig(trust=0.5)
    )
    start, gradient, found, _, _ = moved(config, steps=1)
    before = start + 1.0
    change = gradient + PULL * (before - start)
    wanted = before - RATE * 0.5 * before.norm() / change.norm() * change
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "parametrize",
    [nn.utils.parametrizations.spectral_norm, nn.utils.parametrizations.weight_norm],
)
def test_a_weight_that_is_computed_decays_by_what_it_is_computed_from(
    parametrize: Callable[[nn.Module], nn.Module],
) -> None:
    layer = nn.Sequential(parametrize(nn.Linear(3, 4)))
    decayed, spared = build_optimizer(OptimizerConfig(weight_decay=0.1), layer).param_groups[:2]
    assert decayed["weight_decay"] == 0.1
    names = {id(one): name for name, one in layer.named_parameters()}
    assert [names[id(one)] for one in spared["params"]] == ["0.bias"]
    assert len(decayed["params"]) == len(names) - 1


def test_norms_and_biases_are_not_pulled_and_what_has_no_gradient_stays() -> None:
    encoder = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    optimizer = build_optimizer(
        OptimizerConfig(pull_to_start=PULL), encoder, [list(encoder.parameters())]
    )
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(1.0)
    before = {name: p.detach().clone() for name, p in encoder.named_parameters()}
    for name, parameter in encoder.named_parameters():
        parameter.grad = None if name == "0.weight" else torch.zeros_like(parameter)
    set_learning_rate(optimizer, RATE)
    optimizer.step()
    for name, parameter in encoder.named_parameters():
        assert torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_weights_that_learn_later_than_others_begin_as_these_did(kind: str) -> None:
    config = OptimizerConfig(kind=kind, weight_decay=0.0)  # type: ignore[arg-type]
    late, early, fresh = (nn.Linear(3, 3, bias=False) for _ in range(3))
    fresh.load_state_dict(late.state_dict())
    both, alone = (
        build_optimizer(config, nn.ModuleList(some)) for some in ([late, early], [fresh])
    )
    set_learning_rate(both, RATE)
    set_learning_rate(alone, RATE)
    for step in range(4):
        early.weight.grad = torch.ones_like(early.weight)
        if step >= 2:
            late.weight.grad = torch.ones_like(late.weight) * step
            fresh.weight.grad = late.weight.grad.clone()
            alone.step()
        both.step()
    torch.testing.assert_close(late.weight, fresh.weight, rtol=0, atol=0)
