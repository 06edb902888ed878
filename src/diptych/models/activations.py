"""What is kept between forward and backward: every activation, or less of them for more time.

``recompute_stages`` keeps what goes into each stage and computes its inside again when gradients
come back (Chen et al. 2016, 1604.06174). ``offload`` sends what is kept to the CPU's memory. Both
change how an encoder is called, not its modules, so the names of its weights stay as they are.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Final

import torch
from torch import nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint

from diptych.errors import ConfigError
from diptych.models.norms import frozen_statistics

_STAGES: Final = (
    *("layer1", "layer2", "layer3", "layer4"),
    *("s1", "s2", "s3", "s4", "stage2", "stage3", "stage4"),
)
"""Of ResNets, timm's RegNets and torchvision's ShuffleNets: each is a stage."""
_ROWS: Final = ("blocks", "stages", "layers", "encoder.layers", "trunk_output", "features")
"""Each a row of stages, or of a transformer's blocks: our small ResNet, timm, torchvision."""


def recompute_stages(encoder: nn.Module) -> None:
    """Keeps the inputs of the stages of an encoder only, and runs each again in the backward pass.

    The second run draws the same dropout and moves no running statistics. Gradients are the same
    to rounding.

    Args:
        encoder: from ``build_encoder``; without gradients it runs as before.

    Raises:
        ConfigError: it has no stages that are known.
    """
    stages = list(stages_of(encoder))
    if not stages:
        raise ConfigError(
            f"training.recompute = 'stages' needs a network made of stages or blocks, named "
            f"{', '.join((*_STAGES, *_ROWS))}; {type(encoder).__name__} has none. Set it to 'none'."
        )
    for stage in stages:
        _call_by(stage, partial(_recomputed, stage, stage.forward))


def offload(encoder: nn.Module, device: torch.device) -> bool:
    """Keeps the activations of an encoder in the CPU's memory until gradients come back.

    Args:
        encoder: any; ``recompute_stages`` comes before, if both are wanted.
        device: that it runs on. On a CPU the activations are there already.

    Returns:
        Whether that changes anything.
    """
    if device.type == "cpu":
        return False
    pinned = device.type == "cuda"
    _call_by(encoder, partial(_offloaded, encoder.forward, pinned=pinned))
    return True


def stages_of(encoder: nn.Module) -> Iterator[nn.Module]:
    """The parts of an encoder that follow one another, without its first and last layers."""
    modules = dict(encoder.named_modules())
    for name in _STAGES:
        if name in modules:
            yield modules[name]
    for name in _ROWS:
        if isinstance(row := modules.get(name), nn.Sequential | nn.ModuleList):
            # A single layer has no inside to save, and may change its input in place.
            yield from (part for part in row if any(part.children()))


def _call_by(module: nn.Module, forward: Callable[..., Any]) -> None:
    # An attribute of this one object: a wrapping module would rename its weights.
    object.__setattr__(module, "forward", forward)


def _recomputed(stage: nn.Module, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        # The first run has moved the running statistics; the second must not move them again.
        return nullcontext(), frozen_statistics(stage)

    # Not reentrant: the other form takes no contexts, and gives no gradients to the weights where
    # no input needs any.
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts, **named)


def _offloaded(forward: Callable[..., Any], *inputs: Any, pinned: bool) -> Any:
    with save_on_cpu(pin_memory=pinned):
        return forward(*inputs)
