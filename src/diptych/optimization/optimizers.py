"""Optimizers and learning rates: SGD, AdamW and LARS, which weights decay, and schedules."""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from diptych.config.method import KeyEncoderConfig
from diptych.config.run import OptimizerConfig, ScheduleConfig


def build_optimizer(
    config: OptimizerConfig, network: nn.Module, parts: Sequence[Sequence[nn.Parameter]] = ()
) -> torch.optim.Optimizer:
    """Builds the optimizer of a module's trainable parameters.

    Weight decay, and LARS's scaling, act on ``decayed_weights`` only: norms and biases are left out
    (SimCLR, appendix B.1; MoCo v3's code for ResNets), and so are tokens, position embeddings and
    layer scales (DeiT's and timm's code). The published code of MoCo v1 and v2, and that of MoCo v3
    for transformers, decays all parameters alike.

    Args:
        config: which one, and how strong its decay is.
        network: with all that it trains.
        parts: the parameters of its encoder, part by part from the input on. Those of the k-th part
            from the end learn at ``layer_decay`` to the power of k of the rate; and with
            ``pull_to_start`` they are pulled to the values that they have now.
    """
    groups = _parameter_groups(config, network, parts)
    optimizer: torch.optim.Optimizer
    if config.kind == "lars":
        for group in groups:
            if group["kind"] == _SPARED:
                group["trust"] = None
        optimizer = Lars(groups, momentum=config.momentum, trust=config.lars.trust)
    elif config.kind == "adamw":
        betas = (config.momentum, config.adamw.beta2)
        optimizer = _AdamW(groups, lr=0.0, betas=betas, fused=True)
    else:
        optimizer = _Sgd(groups, lr=0.0, momentum=config.momentum, fused=True)
        optimizer.register_step_pre_hook(_complete_momentum)
    if any(group["kind"] == _PULLED for group in groups):
        optimizer.register_step_pre_hook(_pull_to_start)
    return optimizer


class _Eager(torch.optim.Optimizer):
    """Torch's optimizer without what keeps it out of compiled graphs; here nothing compiles one.

    Each method that torch wraps for that imports torch._dynamo when it is first called, which takes
    about as long as all else before the first step.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class _AdamW(_Eager, torch.optim.AdamW):
    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class _Sgd(_Eager, torch.optim.SGD):
    step = torch.no_grad()(inspect.unwrap(torch.optim.SGD.step))


_DECAYED: Final = "decayed"
_SPARED: Final = "spared"
_PULLED: Final = "pulled"


def _parameter_groups(
    config: OptimizerConfig, network: nn.Module, parts: Sequence[Sequence[nn.Parameter]]
) -> list[dict[str, Any]]:
    """Parameters that learn at the same share of the rate and decay alike, in one group each."""
    decayed = {id(p) for p in decayed_weights(network)}
    shares = {
        id(parameter): config.layer_decay**place
        for place, part in enumerate(reversed(parts), start=1)
        for parameter in part
    }
    # The full rate first, also where nothing is in it: metrics show the rate of the first group.
    members: dict[tuple[float, str], list[nn.Parameter]]
    members = {(1.0, _DECAYED): [], (1.0, _SPARED): []}
    for parameter in network.parameters():
        if not parameter.requires_grad:
            continue
        kind = _DECAYED if id(parameter) in decayed else _SPARED
        share = shares.get(id(parameter), 1.0)
        if config.kind == "lars" and kind == _SPARED:
            share *= config.lars.spared_share
        if kind == _DECAYED and config.pull_to_start > 0 and id(parameter) in shares:
            kind = _PULLED
        members.setdefault((share, kind), []).append(parameter)
    groups = list[dict[str, Any]]()
    for (share, kind), parameters in members.items():
        group = {"params": parameters, "kind": kind, "rate_share": share, "weight_decay": 0.0}
        if kind == _DECAYED:
            group["weight_decay"] = config.weight_decay
        elif kind == _PULLED:
            start = [parameter.detach().clone() for parameter in parameters]
            group |= {"pull": config.pull_to_start, "start": start}
        groups.append(group)
    return groups


def _complete_momentum(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Gives weights that learn later than others, as they were frozen, a momentum of zero.

    In a group torch's fused SGD takes the momentum of all weights, or of none at their first step.
    """
    for group in optimizer.param_groups:
        learning = [weight for weight in group["params"] if weight.grad is not None]
        late = [one for one in learning if "momentum_buffer" not in optimizer.state.get(one, {})]
        if len(late) < len(learning):
            for weight in late:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


@torch.no_grad()
def _pull_to_start(optimizer: torch.optim.Optimizer, *_: object) -> None:
    """Decay towards the start instead of zero (L2-SP, Li et al. 2018, 1802.01483, eq. 2).

    For a weight w that began as w0 it adds b (w - w0) to the gradient, where decay would add b w;
    of AdamW, whose decay is apart from the gradient, it takes rate x b (w - w0) off the weight.
    """
    for group in optimizer.param_groups:
        moving = [
            (weight, start)
            for weight, start in zip(group["params"], group.get("start", ()), strict=False)
            if weight.grad is not None
        ]
        if not moving:
            continue
        weights, starts = map(list, zip(*moving, strict=True))
        ways = torch._foreach_sub(weights, starts)
        if isinstance(optimizer, torch.optim.AdamW):
            torch._foreach_add_(weights, ways, alpha=-group["lr"] * group["pull"])
        else:
            torch._foreach_add_([w.grad for w in weights], ways, alpha=group["pull"])


def decayed_weights(network: nn.Module) -> Iterator[nn.Parameter]:
    """The matrices and kernels that layers multiply with, which decay pulls at.

    They have ``weight`` in their name, as in all layers of torch, and two dimensions or more; not
    embeddings, which are looked up, nor what a network of timm's says must not decay. What is
    added (biases, tokens, positions) or scales a channel (norms, layer scales) has another name or
    one dimension.
    """
    spared = {
        id(parameter)
        for module in network.modules()
        if callable(named := getattr(module, "no_weight_decay", None))
        for name, parameter in module.named_parameters()
        if name in named()
    }
    for place, module in network.named_modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            # What a weight is computed from, as its direction and length, is kept in a list under
            # the weight's name.
            if isinstance(module, ParametrizationList):
                name = place.rpartition(".")[2]
            if "weight" in name and parameter.ndim > 1 and id(parameter) not in spared:
                yield parameter


def set_weight_decay(optimizer: torch.optim.Optimizer, decay: float) -> None:
    """Sets the decay of the weights that decay."""
    for group in optimizer.param_groups:
        if group["kind"] == _DECAYED:
            group["weight_decay"] = decay


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group, of which some learn at a share of it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("rate_share", 1.0)


class Lars(_Eager):
    """SGD whose step in each layer is scaled to the layer's weights (You et al. 2017, alg. 1).

    Decay is part of the gradient whose length is taken, as in SimCLR's code; the paper adds the
    two lengths.

    With gradient g, weights w and decay b, a layer moves by
    ``v <- m v + lr x trust x |w| / |g + b w| x (g + b w); w <- w - v``.
    Groups with ``trust=None`` move by plain SGD with momentum.
    """

    def __init__(
        self, groups: Iterable[dict[str, Any]], *, momentum: float, trust: float, lr: float = 0.0
    ) -> None:
        super().__init__(groups, {"lr": lr, "momentum": momentum, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Moves all parameters that have a gradient. Takes no closure."""
        if closure is not None:
            raise ValueError("Lars.step takes no closure")
        for group in self.param_groups:
            weights = [p for p in group["params"] if p.grad is not None]
            if weights:
                self._move(weights, group)

    def _move(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [p.grad for p in weights if p.grad is not None]
        changes = torch._foreach_add(gradients, weights, alpha=group["weight_decay"])
        if group["trust"] is not None:
            torch._foreach_mul_(changes, _trust_ratios(weights, changes, group["trust"]))
        velocities = [self._velocity(p) for p in weights]
        torch._foreach_mul_(velocities, group["momentum"])
        # The rate goes into the velocity, as in the paper; torch's SGD multiplies by it after.
        torch._foreach_add_(velocities, changes, alpha=group["lr"])
        torch._foreach_sub_(weights, velocities)

    def _velocity(self, weight: Tensor) -> Tensor:
        state = self.state[weight]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _trust_ratios(
    weights: list[Tensor], changes: tuple[Tensor, ...] | list[Tensor], trust: float
) -> tuple[Tensor, ...]:
    """Trust x |w| / |change| for each layer, and 1 where either length is zero."""
    lengths = torch.stack(torch._foreach_norm(weights))
    strides = torch.stack(torch._foreach_norm(changes))
    usable = (lengths > 0) & (strides > 0)
    ratios = torch.where(usable, trust * lengths / strides, torch.ones_like(lengths))
    return ratios.unbind()


def peak_learning_rate(config: OptimizerConfig, batch_size: int) -> float:
    """The highest rate of a run (SimCLR, appendix B.1; Goyal et al. 2017).

    ``linear``: learning_rate x batch / 256. ``square_root``: learning_rate x sqrt(batch).
    ``none``: learning_rate.

    Example:
        >>> peak_learning_rate(OptimizerConfig(learning_rate=0.3), 4096)
        4.8
    """
    if config.scaling == "linear":
        return config.learning_rate * batch_size / 256
    if config.scaling == "square_root":
        return config.learning_rate * math.sqrt(batch_size)
    return config.learning_rate


def learning_rate(
    config: ScheduleConfig, *, peak: float, step: int, steps_per_epoch: int, total_steps: int
) -> float:
    """The rate of one step: a line up to the peak, then down as the config says.

    Args:
        config: length of the warm-up, and what comes after.
        peak: see ``peak_learning_rate``.
        step: counted from 0.
        steps_per_epoch: turns the warm-up's epochs into steps.
        total_steps: of the run.

    Returns:
        The rate. The warm-up's last step has the peak; a cosine's last step is still above zero.
    """
    warm = warmup_steps(config.warmup_epochs, steps_per_epoch, total_steps)
    if step < warm:
        # One more, or the first step would have a rate of zero and learn nothing.
        return peak * (step + 1) / warm
    if config.kind == "step":
        passed = sum(step >= round(drop * total_steps) for drop in config.step.drops)
        return float(peak * config.step.factor**passed)
    if config.kind == "constant":
        return peak
    return peak * _falling((step - warm) / (total_steps - warm))


def warmup_steps(epochs: float, steps_per_epoch: int, total_steps: int) -> int:
    """Steps of what lasts so many epochs at the start of a run, and at most half of the run."""
    return min(round(epochs * steps_per_epoch), total_steps // 2)


def weight_decay(config: OptimizerConfig, *, step: int, total_steps: int) -> float:
    """The weight decay of one step, along half a cosine to its end (DINO, section 3.2).

    Example:
        >>> rising = OptimizerConfig(weight_decay=0.04, weight_decay_end=0.4)
        >>> [round(weight_decay(rising, step=step, total_steps=4), 3) for step in (0, 2, 4)]
        [0.04, 0.22, 0.4]
    """
    begin, end = config.weight_decay, config.weight_decay_end
    if end is None:
        return begin
    return end + (begin - end) * _falling(step / total_steps)


def encoder_momentum(config: KeyEncoderConfig, *, step: int, total_steps: int) -> float:
    """What the momentum encoder keeps at a step (MoCo v3, section 4; BYOL, appendix A).

    ``cosine``: 1 - (1 - m) (cos(pi step / total) + 1) / 2, which ends at 1.
    """
    if config.momentum_schedule == "constant":
        return config.momentum
    return 1.0 - (1.0 - config.momentum) * _falling(step / total_steps)


def _falling(progress: float) -> float:
    """Half a cosine from 1 to 0."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))
