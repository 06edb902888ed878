"""Barlow Twins: the cross-correlation of the projections of two views is to be the identity.

Zbontar et al. 2021, 2103.03230. Of several processes the correlation is over the images of all.
"""

import torch
from torch import Tensor

from diptych.config.run import RunConfig
from diptych.methods.method import StepOutput
from diptych.methods.networks import Networks
from diptych.methods.siamese.base import Encoded, Siamese, of_all_processes, view_pairs
from diptych.views.batches import Batch

_EPSILON = 1e-5  # beside a variance, as in batch norm


class BarlowTwins(Siamese):
    """The dimensions of a projection agree between views, and differ from each other.

    Attributes:
        redundancy_weight: lambda of eq. 1.
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.redundancy_weight = config.method.barlow_twins.redundancy_weight

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """The mean of the loss over pairs of views, of which one is of full size."""
        views = of_all_processes(encoded.projections)
        terms = [
            barlow_twins_terms(views[one], views[other])
            for one, other in view_pairs(len(views), self.views)
        ]
        invariance = torch.stack([of_pair[0] for of_pair in terms]).mean()
        redundancy = torch.stack([of_pair[1] for of_pair in terms]).mean()
        return StepOutput(
            invariance + self.redundancy_weight * redundancy,
            {"invariance": invariance.detach(), "redundancy": redundancy.detach()},
        )


def barlow_twins_terms(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both terms of the loss of two views (eq. 1), before the second is weighted.

    Args:
        first: (images, dim).
        second: (images, dim), other views of the same images.

    Returns:
        Sum of (1 - C_ii)^2 over dimensions, and sum of C_ij^2 over pairs of different ones, of the
        cross-correlation C (eq. 2).

    Example:
        >>> same = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        >>> [round(float(term), 6) for term in barlow_twins_terms(same, same)]
        [0.0, 0.0]
    """
    correlation = _standardised(first).T @ _standardised(second) / len(first)
    diagonal = correlation.diagonal()
    squares = correlation.square().sum() - diagonal.square().sum()
    return (1.0 - diagonal).square().sum(), squares


def _standardised(vectors: Tensor) -> Tensor:
    centred = vectors - vectors.mean(dim=0)
    return centred / (centred.square().mean(dim=0) + _EPSILON).sqrt()
