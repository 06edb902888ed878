"""Whitening of features by what changes between views of one image.

A network that was trained for other images has directions in which views of one image differ, and
distances between features are made of those too. Whitening measures the covariance of views around
the mean of their image and divides by its root: within-class covariance normalization (Hatch,
Kajarekar and Stolcke, Interspeech 2006) with each image as a class of its own. Views of an image
come closer together in relation to other images, as contrastive learning wants it, in closed form.
"""

from typing import Final

import torch
from torch import Tensor, nn

SHRINKAGE: Final = 1.0
"""Times the mean variance, added to every direction: few images know little of most directions."""


class Whitening(nn.Module):
    """A fixed linear map behind an encoder.

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
