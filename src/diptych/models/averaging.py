"""Averages of the weights of one network at two times, and the statistics that go with them.

Weights that were learned on from others lie near these, and the networks between the two are often
better than either (WiSE-FT, Wortsman et al. 2021, 2109.01903).
"""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from diptych.models.parts import batch_norms


def average_weights(
    start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """(1 - share) x start + share x end of every tensor of two states (WiSE-FT, section 3).

    Running statistics are averaged like weights; see ``estimate_statistics``. Counts are the end's.

    Args:
        start: of a network.
        end: of the same network.
        share: of the end, 0 to 1.
    """
    return {
        name: start[name].double().lerp(value.double(), share).to(value.dtype)
        if value.is_floating_point()
        else value.clone()
        for name, value in end.items()
    }


def moved_norms(
    network: nn.Module, start: Mapping[str, Tensor], end: Mapping[str, Tensor]
) -> list[_BatchNorm]:
    """The batch norms of a network whose running statistics differ in two states of it."""
    names = {module: name for name, module in network.named_modules()}
    found = []
    for norm in batch_norms(network):
        kept = [f"{names[norm]}.{one}".lstrip(".") for one in ("running_mean", "running_var")]
        if any(name in end and not torch.equal(start[name], end[name]) for name in kept):
            found.append(norm)
    return found


@torch.no_grad()
def estimate_statistics(
    network: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Tensor]
) -> None:
    """Takes the running statistics of some batch norms anew, as means over batches.

    An average of weights gives other activations than either network, so that neither's statistics
    fit, nor their mean (SWA, Izmailov et al. 2018, 1803.05407, section 3.2).

    Args:
        network: is in evaluation mode afterwards.
        norms: those that take their statistics anew; others keep and use theirs.
        batches: (images, channels, side, side) each, about equally large.
    """
    network.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        # None is a plain mean. The norm alone is in training mode: it may hold a dropout.
        norm.momentum, norm.training = None, True
    for images in batches:
        network(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum, norm.training = momentum, False
