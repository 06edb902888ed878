"""Health of a representation without labels: alignment, uniformity, effective rank."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Geometry(NamedTuple):
    """Label-free measures of a representation.

    Attributes:
        alignment: mean squared distance of the two views' projections; 0 is perfect, 2 unrelated.
        uniformity: log of the mean Gaussian potential of projections; about -4 is well spread, 0
            is one point.
        effective_rank: how many directions the features use; 1 is a line.
    """

    alignment: float
    uniformity: float
    effective_rank: float


def alignment(first: Float[Tensor, "images dim"], second: Float[Tensor, "images dim"]) -> float:
    """E |f(x) - f(x')|^2 over positive pairs of unit vectors (Wang and Isola 2020, eq. 2)."""
    return float((first - second).square().sum(dim=1).mean())


def uniformity(vectors: Float[Tensor, "images dim"]) -> float:
    """Log E exp(-2 |f(x) - f(y)|^2) over pairs of different images (Wang and Isola 2020, eq. 3)."""
    squared = torch.pdist(vectors.double()).square()
    return float(squared.mul(-2.0).exp().mean().log())


def effective_rank(features: Float[Tensor, "images dim"]) -> float:
    """Exp of the entropy of the normalised singular values (RankMe, Garrido et al. 2022, eq. 1).

    The mean is taken off first: a constant added to all features carries no information.
    """
    values = torch.linalg.svdvals(features.double() - features.double().mean(dim=0))
    total = values.sum()
    if total <= 0:
        return 1.0
    shares = values / total
    shares = shares[shares > 0]
    return float(torch.exp(-(shares * shares.log()).sum()))
