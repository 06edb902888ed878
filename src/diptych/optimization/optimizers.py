"""How weights move: SGD and AdamW from torch, LARS of our own, and what all leave alone."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from diptych.config.run import OptimizerConfig


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Builds the optimizer of a module's trainable parameters.

    Weight decay, and LARS's scaling, act on ``decayed_weights`` only: norms and biases are left out
    (SimCLR, appendix B.1; MoCo v3's code for ResNets), and so are tokens, position embeddings and
    layer scales (DeiT's and timm's code). The published code of MoCo v1 and v2, and that of MoCo v3
    for transformers, decays all parameters alike.
    """
    pulled = {id(p) for p in decayed_weights(network)}
    trainable = [p for p in network.parameters() if p.requires_grad]
    groups = [
        {
            "params": [p for p in trainable if id(p) in pulled],
            "weight_decay": config.weight_decay,
        },
        {
            "params": [p for p in trainable if id(p) not in pulled],
            "weight_decay": 0.0,
            "trust": None,
        },
    ]
    if config.kind == "lars":
        return Lars(groups, momentum=config.momentum, trust=config.lars.trust)
    for group in groups:
        group.pop("trust", None)
    if config.kind == "adamw":
        betas = (config.momentum, config.adamw.beta2)
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=config.momentum, fused=True)


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
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if "weight" in name and parameter.ndim > 1 and id(parameter) not in spared:
                yield parameter


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Sets the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate


class Lars(torch.optim.Optimizer):
    """SGD whose step in each layer is scaled to the layer's weights (You et al. 2017, alg. 1).

    Decay is part of the gradient whose length is taken, as in SimCLR's code; the paper adds the
    two lengths.

    With gradient g, weights w and decay b, a layer moves by
    v <- m v + lr x trust x |w| / |g + b w| x (g + b w); w <- w - v.
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
