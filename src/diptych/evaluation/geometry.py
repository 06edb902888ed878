"""Label-free measures of a representation: alignment, uniformity, effective rank, spread.

The effective rank and the spectrum are of the features as they are, with their lengths. Alignment,
uniformity and spread are of unit vectors, as the loss and kNN compare them.
"""

from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diptych.evaluation.features import LayeredNetwork, in_batches
from diptych.evaluation.split import unseen_split
from diptych.evaluation.subject import Subject
from diptych.runtime.devices import Runtime
from diptych.views.batches import Order, ViewBatches, evaluation_views

MOST_IMAGES: Final = 2048
"""To measure on: the effective rank depends on the number of images, so it can be compared only
between sets of the same size."""

COLLAPSED_SPREAD: Final = 0.01
"""A dimension with less than this share of an even one's spread has collapsed."""

SPECTRUM_LENGTH: Final = 64
"""Singular values that are kept, at most: more cannot be told apart in a picture."""


class Geometry(NamedTuple):
    """Label-free measures of a representation.

    Attributes:
        alignment: mean squared distance of the two views' vectors; 0 is perfect, 2 unrelated. None
            where there is one view.
        uniformity: log of the mean Gaussian potential of vectors; about -4 is well spread, 0 is
            one point.
        effective_rank: how many directions the features use; 1 is a line.
        dimensions: length of a feature vector.
        spread: standard deviation of a dimension, the mean over dimensions; 1 is as even as it can
            be, 0 is one point.
        worst_spread: the same of the dimension that varies least.
        collapsed_share: share of dimensions with a spread below ``COLLAPSED_SPREAD``.
        first_direction_share: share of the variance along the strongest direction.
        spectrum: singular values over their sum, falling, ``SPECTRUM_LENGTH`` at most.
    """

    alignment: float | None
    uniformity: float
    effective_rank: float
    dimensions: int
    spread: float
    worst_spread: float
    collapsed_share: float
    first_direction_share: float
    spectrum: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        """As it stands in ``evaluation.json``."""
        return self._asdict() | {"spectrum": [round(share, 6) for share in self.spectrum]}


def measure_geometry(subject: Subject) -> dict[str, Any]:
    """Geometry of every layer, trained and untrained, of held-out images where the run has any."""
    split = unseen_split(subject.collection, subject.seen, most=MOST_IMAGES)
    images = split.test
    batches = ViewBatches(
        images, Order(0, len(images), len(images)), subject.config.views, subject.runtime.executor
    )
    found = {
        name: {
            layer: one.as_dict()
            for layer, one in layer_geometry(layers, batches, subject.runtime).items()
        }
        for name, layers in subject.layers.items()
    }
    return {"geometry": found | {"images": len(images), "split": split.as_dict()}}


def layer_geometry(
    layers: LayeredNetwork, batches: ViewBatches, runtime: Runtime
) -> dict[str, Geometry]:
    """Geometry of each layer over all images of the batches.

    Features are of the images as they are evaluated; the alignment is of two views of each as in
    training, of the first epoch.
    """
    centred: dict[str, list[Tensor]] = {name: [] for name in layers.names}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers.names}
    told = runtime.counting("Features of every layer")
    for indices in in_batches(len(batches.images), runtime.batch_size):
        as_evaluated = evaluation_views(
            batches.images, indices, "center", batches.config, batches.executor
        )
        plain = layers.in_evaluation(as_evaluated[0])
        first, second = map(layers.in_evaluation, batches.of(indices, epoch=0)[:2])
        for name in layers.names:
            centred[name].append(plain[name])
            pairs[name].append((first[name], second[name]))
        told(int(indices[-1]) + 1, len(batches.images))
    found = {}
    for name in layers.names:
        views = tuple(map(torch.cat, zip(*pairs[name], strict=True)))
        found[name] = geometry(torch.cat(centred[name]), (views[0], views[1]))
    return found


def geometry(
    features: Float[Tensor, "images dim"],
    pairs: tuple[Float[Tensor, "pairs dim"], Float[Tensor, "pairs dim"]] | None = None,
) -> Geometry:
    """All measures of features at once.

    Args:
        features: of different images, as the network gives them.
        pairs: of two views of the same images, for the alignment.
    """
    unit = functional.normalize(features.double(), dim=1)
    spreads = spread(unit)
    values = singular_values(features)
    return Geometry(
        alignment=None if pairs is None else _alignment_of(*pairs),
        uniformity=uniformity(unit),
        effective_rank=effective_rank_of(values),
        dimensions=features.shape[1],
        spread=float(spreads.mean()),
        worst_spread=float(spreads.min()),
        collapsed_share=float((spreads < COLLAPSED_SPREAD).double().mean()),
        first_direction_share=_first_share(values),
        spectrum=tuple(_shares(values)[:SPECTRUM_LENGTH].tolist()),
    )


def alignment(first: Float[Tensor, "images dim"], second: Float[Tensor, "images dim"]) -> float:
    """E |f(x) - f(x')|^2 over positive pairs of unit vectors (Wang and Isola 2020, eq. 2)."""
    return float((first - second).square().sum(dim=1).mean())


def uniformity(vectors: Float[Tensor, "images dim"]) -> float:
    """Log E exp(-2 |f(x) - f(y)|^2) over pairs of different images (Wang and Isola 2020, eq. 3)."""
    # Pairs of different images only: an image with itself, at distance 0, would raise the mean.
    squared = torch.pdist(vectors.double()).square()
    return float(squared.mul(-2.0).exp().mean().log())


def spread(unit: Float[Tensor, "images dim"]) -> Float[Tensor, " dim"]:
    """Standard deviation of each dimension of unit vectors, times sqrt(dim).

    Vectors that are even over the sphere give 1 in each dimension (SimSiam, 2011.10566, section 4.1
    shows the mean of it against collapse).
    """
    deviations: Tensor = unit.std(dim=0, correction=0) * unit.shape[1] ** 0.5
    return deviations


def effective_rank(features: Float[Tensor, "images dim"]) -> float:
    """Exp of the entropy of the normalised singular values (RankMe, Garrido et al. 2022, eq. 1).

    The mean is taken off first: a constant added to all features carries no information.
    """
    return effective_rank_of(singular_values(features))


def effective_rank_of(values: Float[Tensor, " rank"]) -> float:
    """The effective rank from singular values; 1 where all are 0."""
    shares = _shares(values)
    # In the limit 0 log 0 is 0, in floating point NaN.
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))


def singular_values(features: Float[Tensor, "images dim"]) -> Float[Tensor, " rank"]:
    """Singular values of the features less their mean, falling, in float64."""
    # In float32 rounding would fill the directions that features do not use, and raise the rank.
    centred = features.to(torch.float64, copy=True)
    centred -= centred.mean(dim=0)
    values: Tensor = torch.linalg.svdvals(centred)
    return values


def _alignment_of(first: Tensor, second: Tensor) -> float:
    unit = (functional.normalize(view.double(), dim=1) for view in (first, second))
    return alignment(*unit)


def _first_share(values: Tensor) -> float:
    """Share of the largest variance, a squared singular value; 1 where nothing varies."""
    variances = values.square()
    total = float(variances.sum())
    return float(variances[0]) / total if total > 0 else 1.0


def _shares(values: Tensor) -> Tensor:
    total = values.sum()
    return values / total if total > 0 else torch.zeros_like(values)
