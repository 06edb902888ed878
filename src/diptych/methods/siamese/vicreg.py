"""VICReg: views of an image are alike, each dimension varies, and no two vary together.

Bardes et al. 2021, 2105.04906. Of several processes the statistics are over the images of all.
"""

import torch
from torch import Tensor
from torch.nn import functional

from diptych.config.run import RunConfig
from diptych.methods.method import StepOutput
from diptych.methods.networks import Networks
from diptych.methods.siamese.base import Encoded, Siamese, of_all_processes, view_pairs
from diptych.views.batches import Batch

_WANTED_STD = 1.0  # gamma of eq. 1
_EPSILON = 1e-4  # of eq. 2


class VICReg(Siamese):
    """Invariance, variance and covariance of the projections, each with its weight.

    Attributes:
        weights: of the three terms (eq. 6).
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.weights = config.method.vicreg

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """The weighted sum of the three terms, in the units of the paper's code.

        There the squared difference is a mean over dimensions, the variance term a mean over both
        views and the covariance term a sum: the weights are meant for these. Of more than two views
        it is the mean over pairs, and twice the mean over views.
        """
        views = of_all_processes(encoded.projections)
        pairs = view_pairs(len(views), self.views)
        invariance = torch.stack([invariance_of(views[one], views[other]) for one, other in pairs])
        variance = torch.stack([variance_of(view) for view in views])
        covariance = torch.stack([covariance_of(view) for view in views])
        terms = {
            "invariance": invariance.mean(),
            "variance": variance.mean(),
            "covariance": 2.0 * covariance.mean(),
        }
        loss = sum(
            (getattr(self.weights, f"{name}_weight") * term for name, term in terms.items()),
            start=torch.zeros_like(terms["variance"]),
        )
        return StepOutput(loss, {name: term.detach() for name, term in terms.items()})


def invariance_of(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference of two views (eq. 5), over images and dimensions.

    Args:
        first: (images, dim).
        second: (images, dim).
    """
    return functional.mse_loss(first, second)


def variance_of(vectors: Tensor) -> Tensor:
    """What the standard deviations over images lack to 1, a mean over dimensions (eqs. 1 and 2).

    Args:
        vectors: (images, dim).

    Example:
        >>> vectors = torch.tensor([[1.0, 5.0], [-1.0, 5.0]])
        >>> round(float(variance_of(vectors)), 3)  # the second lacks 0.99
        0.495
    """
    std = (vectors.var(dim=0) + _EPSILON).sqrt()
    return functional.relu(_WANTED_STD - std).mean()


def covariance_of(vectors: Tensor) -> Tensor:
    """Sum of the squared covariances of different dimensions, divided by their number (eq. 4).

    Args:
        vectors: (images, dim).

    Example:
        >>> float(covariance_of(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))  # 2 and 2
        4.0
    """
    images, dim = vectors.shape
    centred = vectors - vectors.mean(dim=0)
    covariance = centred.T @ centred / (images - 1)
    return (covariance.square().sum() - covariance.diagonal().square().sum()) / dim
