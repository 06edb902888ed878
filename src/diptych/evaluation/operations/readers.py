"""Ways to look at images, and a classifier on what is seen that is fitted in a moment.

Labels are read from raw pixels, from small patches of the image wherever they lie (random patches
as filters, pooled over the whole image: Coates and Ng 2011, "The importance of encoding versus
training"), and from an encoder where one is given. Pixels find what is always at the same place,
patches find texture and small things at any place.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from diptych.models.weights import PretrainedEncoder

PIXELS_READER: Final = "pixels"
PATCHES_READER: Final = "patches"
ENCODER_READER: Final = "encoder"

_FILTERS: Final = 128
_PATCH_PIXELS: Final = 8
_STRIDE: Final = 2
_THRESHOLD: Final = 0.5  # of a response; below it a patch does not look like the filter
_FLAT: Final = 0.01  # variance of a patch that counts as noise, of normalised pixels
_WHITENED: Final = 0.1  # added to the variances of directions, of which the largest are above 1
_CHOSEN_FROM: Final = 10_000  # patches
_AT_ONCE: Final = 256  # images


class Patches(NamedTuple):
    """Filters made of patches, whitened; see ``of``."""

    filters: Float[Tensor, "filters channels side side"]
    offsets: Float[Tensor, " filters"]

    @classmethod
    def of(cls, images: Float[Tensor, "images channels side side"], seed: int = 0) -> "Patches":
        """Random patches of images, of mean 0 and variance 1, in the whitened space of all."""
        generator = torch.Generator().manual_seed(seed)
        channels = images.shape[1]
        some = images[torch.randperm(len(images), generator=generator)[:400]].contiguous()
        patches = functional.unfold(some, _PATCH_PIXELS, stride=4).transpose(1, 2).flatten(0, 1)
        patches = patches[torch.randperm(len(patches), generator=generator)[:_CHOSEN_FROM]]
        patches = patches - patches.mean(dim=1, keepdim=True)
        patches = patches / (patches.var(dim=1, correction=0, keepdim=True) + _FLAT).sqrt()
        mean = patches.mean(dim=0)
        centred = patches - mean
        values, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        whiten = (vectors * (values.clamp(min=0.0) + _WHITENED).rsqrt()) @ vectors.T
        chosen = torch.randperm(len(patches), generator=generator)[:_FILTERS]
        filters = functional.normalize(centred[chosen] @ whiten, dim=1) @ whiten
        offsets = -(filters @ mean)
        # Of mean 0, so that a patch's own mean needs no subtracting.
        filters = filters - filters.mean(dim=1, keepdim=True)
        shape = (-1, channels, _PATCH_PIXELS, _PATCH_PIXELS)
        return cls(filters.reshape(shape), offsets)

    def read(
        self, images: Float[Tensor, "images channels side side"]
    ) -> Float[Tensor, "images features"]:
        """How much of an image looks like each filter, and how much like its negative."""
        return torch.cat([self._some(some.contiguous()) for some in torch.split(images, _AT_ONCE)])

    def _some(self, images: Tensor) -> Tensor:
        mean = functional.avg_pool2d(images.mean(dim=1, keepdim=True), _PATCH_PIXELS, _STRIDE)
        squares = images.square().mean(dim=1, keepdim=True)
        square = functional.avg_pool2d(squares, _PATCH_PIXELS, _STRIDE)
        spread = ((square - mean.square()).clamp(min=0.0) + _FLAT).sqrt()
        found = functional.conv2d(images, self.filters, stride=_STRIDE) / spread
        found += self.offsets[:, None, None]
        both = torch.cat([found, -found], dim=1).sub_(_THRESHOLD).clamp_(min=0.0)
        # The root makes a thing seen once count beside one seen everywhere.
        return both.mean(dim=(2, 3)).sqrt()


Reader = Callable[[Tensor], Tensor]
"""From normalised images (images, channels, side, side) to features (images, dim), on the CPU."""


def read_pixels(images: Tensor) -> Tensor:
    """The pixels themselves."""
    return images.flatten(1)


@dataclass(frozen=True)
class EncoderReader:
    """Features of a frozen encoder, a batch at a time.

    Attributes:
        encoder: on its device, in evaluation mode.
        batch_size: images that it sees at once.
    """

    encoder: PretrainedEncoder
    batch_size: int

    def __call__(self, images: Tensor) -> Tensor:
        """Normalised images (images, channels, side, side) to (images, dim), on the CPU."""
        device = next(self.encoder.parameters()).device
        with torch.no_grad():
            parts = [
                self.encoder(some.to(device)).cpu() for some in torch.split(images, self.batch_size)
            ]
        return torch.cat(parts).float()


_LEFT_OUT: Final = 8192  # images, in units of several, at once
_STRENGTHS: Final = tuple(10.0**power for power in range(-5, 3))
"""Of the ridge, in units of the mean variance of a direction."""


class Ridge(NamedTuple):
    """Least squares onto one column for each class, all classes of equal weight.

    Attributes:
        weight: (dim, classes).
        mean: (dim,), of the features, with that weight.
        base: (classes,), the answer at the mean.
        score: mean over classes of the share that is right, each image by all others that it does
            not belong together with.
    """

    weight: Float[Tensor, "dim classes"]
    mean: Float[Tensor, " dim"]
    base: Float[Tensor, " classes"]
    score: float

    def predict(self, features: Float[Tensor, "images dim"]) -> Int[Tensor, " images"]:
        """The most likely class of each image."""
        return ((features - self.mean) @ self.weight + self.base).argmax(dim=1)


def fit_ridge(
    features: Float[Tensor, "images dim"],
    labels: Int[Tensor, " images"],
    units: NDArray[np.int64] | None = None,
) -> Ridge:
    """Fits for all strengths at once and takes the best by leaving out each unit in turn.

    One eigenvalue decomposition, of the smaller of both Gram matrices, gives the answers of all
    strengths and, in closed form, those of a fit without each image (Allen 1974) or unit.

    Args:
        features: of the training images.
        labels: their classes, 0 .. classes - 1, each with an image.
        units: (images,), the same number for images that belong together, as frames of a video:
            with one of them left out alone, the others would give its class away. Each image is a
            unit when not given, or when there is but one.
    """
    counts = torch.bincount(labels)
    weights = (len(labels) / (len(counts) * counts.clamp(min=1)))[labels].double()
    root = weights.sqrt()[:, None]
    mean = (weights @ features.double()) / weights.sum()
    targets = functional.one_hot(labels, len(counts)).double()
    base = (weights @ targets) / weights.sum()
    rows, wanted = root * (features.double() - mean), root * (targets - base)
    left, values = _left_vectors(rows)
    inside = left.T @ wanted
    # The mean, which has no penalty, follows each image too; without it, a centred image could be
    # told from the sum of all others.
    by_mean = weights / weights.sum()
    together = _rows_of_units(units)
    best, score = torch.zeros_like(values), -1.0
    for strength in _STRENGTHS:
        shrunk = values / (values + strength * values.sum() / len(rows))
        residual = wanted - left @ (shrunk[:, None] * inside)
        without = wanted - _errors_without(residual, left, shrunk, by_mean, together)
        reached = balanced_accuracy((without / root + base).argmax(dim=1), labels)
        if reached > score:
            best, score = 1.0 / (values + strength * values.sum() / len(rows)), reached
    weight = rows.T @ (left @ (best[:, None] * inside))
    return Ridge(weight.float(), mean.float(), base.float(), score)


def _rows_of_units(units: NDArray[np.int64] | None) -> list[Tensor]:
    """The images of units that have several, (units, images) of those that have as many."""
    if units is None or (units == units[0]).all():  # without which nothing would be left
        return []
    _, numbers, sizes = np.unique(units, return_inverse=True, return_counts=True)
    order, first = np.argsort(numbers.reshape(-1), kind="stable"), np.cumsum(sizes) - sizes
    found = list[Tensor]()
    for size in np.unique(sizes[sizes > 1]).tolist():
        rows = torch.from_numpy(order[first[sizes == size][:, None] + np.arange(size)])
        found += torch.split(rows, max(1, _LEFT_OUT // size))
    return found


def _errors_without(
    residual: Tensor, left: Tensor, shrunk: Tensor, by_mean: Tensor, together: list[Tensor]
) -> Tensor:
    """Errors of a fit without each image, or unit of several: (1 - H)^-1 residual.

    H is the part of the hat matrix that has the rows and columns of the unit.
    """
    leverage = left.square() @ shrunk + by_mean
    errors = residual / (1.0 - leverage).clamp(min=1e-9)[:, None]
    root = by_mean.sqrt()
    for rows in together:
        some, means = left[rows], root[rows]
        hat = (some * shrunk) @ some.mT + means[:, :, None] * means[:, None, :]
        rest = torch.eye(rows.shape[1], dtype=hat.dtype) - hat
        errors[rows] = torch.linalg.solve(rest, residual[rows])
    return errors


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes that occur of the share of a class that is right."""
    right = (predicted == labels).double()
    return float(torch.stack([right[labels == one].mean() for one in torch.unique(labels)]).mean())


def _left_vectors(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and squared singular values, without those that are 0."""
    tall = rows.shape[0] > rows.shape[1]
    values, vectors = torch.linalg.eigh(rows.T @ rows if tall else rows @ rows.T)
    kept = values > 1e-10 * values[-1].clamp(min=1e-30)
    values, vectors = values[kept], vectors[:, kept]
    return (rows @ vectors / values.sqrt() if tall else vectors), values
