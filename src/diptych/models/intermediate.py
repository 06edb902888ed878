"""Features of an intermediate layer, beside those that a network gives to its classifier.

The last layers of a network that was trained for other images know those other classes, and have
thrown away what tells these images apart; layers before them are more general (Yosinski et al.
2014, 1411.1792). Both in one vector are the better features of images unlike those of the training.
"""

from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.activations import stages_of
from diptych.models.parts import as_map, in_evaluation, output_and_map

MOST_CELLS: Final = 4  # in a row, that a map is averaged in
_MOST_FEATURES: Final = 2048  # of the map, as many as ResNet-50 has


class IntermediateLayer(NamedTuple):
    """Which layer, and how its map becomes a vector.

    Attributes:
        name: as ``named_modules`` has it.
        cells: the map is averaged in so many times so many cells.
    """

    name: str
    cells: int


class WithIntermediate(nn.Module):
    """A network's features, and behind them in the vector those of an intermediate layer.

    Not for several threads at once: the layer is read by a hook.

    Args:
        network: from (batch, channels, side, side) to (batch, features).
        layer: gives a map.
    """

    def __init__(self, network: nn.Module, layer: IntermediateLayer) -> None:
        super().__init__()
        self.network = network
        self._layer = layer

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, features + channels of the map x cells^2)."""
        last, placed = output_and_map(self.network, self.network, self._layer.name, images)
        cells = functional.adaptive_avg_pool2d(placed, self._layer.cells)
        return torch.cat([last, cells.flatten(1)], dim=1)

    def extra_repr(self) -> str:
        """Names the layer, as two layers of one network give different features."""
        return f"layer={self._layer.name}, cells={self._layer.cells}"


def intermediate_layer(encoder: nn.Module, blank: Tensor) -> IntermediateLayer | None:
    """The last stage whose map has twice the side of the last one's, in as many cells as may be.

    Args:
        encoder: any.
        blank: an image (1, channels, side, side) to try it on.

    Returns:
        None where all maps are of one size, as a vision transformer's, or no stages are known.
    """
    names = {module: name for name, module in encoder.named_modules()}
    found, hooks = dict[str, torch.Size](), []
    for stage in stages_of(encoder):

        def take(module: nn.Module, inputs: object, output: object) -> None:
            placed = as_map(encoder, module, output)
            if placed is not None and placed.ndim == 4:
                found[names[module]] = placed.shape[1:]

        hooks.append(stage.register_forward_hook(take))
    try:
        with in_evaluation(encoder), torch.no_grad():
            encoder(blank)
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        return None
    _, height, _ = list(found.values())[-1]
    larger = [(name, shape) for name, shape in found.items() if shape[1] >= 2 * height]
    if not larger:
        return None
    name, (channels, side, _) = larger[-1]
    cells = min(MOST_CELLS, side)
    while cells > 1 and channels * cells**2 > _MOST_FEATURES:
        cells //= 2
    return IntermediateLayer(name, cells)
