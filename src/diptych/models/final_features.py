"""What is made of a network's features after training: a second layer's beside them, whitened.

**An intermediate layer.** The last layers of a network that was trained for other images know those
classes, and have thrown away what tells these images apart; layers before them are more general
(Yosinski et al. 2014, 1411.1792). Both in one vector are the better features of images unlike those
of the training.

**Whitening by what changes between views of one image.** Such a network has directions in which
views of one image differ, and distances between features are made of those too. Whitening measures
the covariance of views around the mean of their image and divides by its root: within-class
covariance normalization (Hatch, Kajarekar and Stolcke, Interspeech 2006) with each image as a class
of its own. Views of an image come closer together in relation to other images, as contrastive
learning wants it, in closed form.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.activations import stages_of
from diptych.models.parts import as_map, in_evaluation, output_and_map

MOST_CELLS: Final = 4  # in a row, that a map is averaged in
_MOST_FEATURES: Final = 2048  # of the map, as many as ResNet-50 has

MOST_WHITENED: Final = 4096
"""Features that are whitened at most: time grows with their third power, memory with the second."""


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
        self.training = network.training
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


# --- whitening ---------------------------------------------------------------------------------

SHRINKAGE: Final = 1.0
"""Times the mean variance, added to every direction: few images know little of most directions."""


class Whitening(nn.Module):
    """A fixed linear map behind an encoder.

    One of several blocks maps each by itself: its matrix is zero outside of them.

    Attributes:
        mean: (features,), subtracted first.
        weight: (features, features), symmetric.
    """

    mean: Tensor
    weight: Tensor

    def __init__(self, mean: Tensor, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        """(images, features) to the same shape, on the device of the features."""
        device = features.device
        return (features - self.mean.to(device)) @ self.weight.to(device)

    def of_first(self, count: int) -> "Whitening":
        """That of the first block alone.

        Args:
            count: of its features.
        """
        return Whitening(self.mean[:count].clone(), self.weight[:count, :count].clone())


def fit_blocks(features: Tensor, sizes: Sequence[int]) -> Whitening:
    """Whitens blocks of features each by itself, so that no block counts for more than another.

    Layers differ in how large their numbers are and in how many they have. Each is scaled such that
    squared distances have the same mean in it as in the first one, which stays as it is.

    Args:
        features: as for ``fit_whitening``.
        sizes: of the blocks, which together are all features.
    """
    parts = list(features.split(list(sizes), dim=2))  # type: ignore[no-untyped-call]
    fitted = [fit_whitening(part) for part in parts]
    spreads = [(part - part.mean(dim=(0, 1))).square().sum(dim=2).mean() for part in parts]
    scales = [(spreads[0] / spread).sqrt() if spread else 1.0 for spread in spreads]
    weights = [scale * one.weight for scale, one in zip(scales, fitted, strict=True)]
    return Whitening(
        torch.cat([one.mean for one in fitted]),
        torch.block_diag(*weights),  # type: ignore[no-untyped-call]
    )


def fit_whitening(features: Tensor, *, shrinkage: float = SHRINKAGE) -> Whitening:
    """The whitening that makes views of an image vary by the same in all directions, nearly.

    With the covariance S of views around the mean of their image and its mean variance s, the map
    is (S + shrinkage s I)^(-1/2): symmetric, so that directions stay what they were. It is scaled
    such that the features' overall variance stays the same.

    Args:
        features: (views, images, features) of random views, two or more of each image.
        shrinkage: 0 whitens fully; a large one leaves features as they are but for their mean.

    Raises:
        ValueError: there are no two views of two images.
    """
    views, images, size = features.shape
    if views < 2 or images < 2:
        raise ValueError(f"wanted two views of two images or more; got {views} of {images}.")
    # In float64: the smallest eigenvalues are lost in float32.
    found = features.double()
    mean = found.mean(dim=(0, 1))
    around = (found - found.mean(dim=0)).reshape(-1, size)
    covariance = around.T @ around / ((views - 1) * images)
    values, vectors = torch.linalg.eigh(covariance)
    floor = shrinkage * values.clamp(min=0).mean()
    if floor == 0:  # all views of an image are alike, so there is nothing to whiten by
        return Whitening(mean.float(), torch.eye(size))
    root = (vectors * (values.clamp(min=0) + floor).rsqrt()) @ vectors.T
    centred = (found - mean).reshape(-1, size)
    scale = centred.square().mean().sqrt() / (centred @ root).square().mean().sqrt()
    return Whitening(mean.float(), (scale * root).float())
