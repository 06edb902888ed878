"""LeJEPA: views of an image are alike, and the projections of images are normally distributed.

Balestriero and LeCun 2025, 2511.08544. SIGReg, the sketched isotropic Gaussian regularisation,
looks at the projections in random directions and compares their distribution in each with a normal
one by the test of Epps and Pulley. Of several processes it is that of the images of all.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from diptych.config.run import RunConfig
from diptych.methods.method import StepOutput
from diptych.methods.networks import Networks
from diptych.methods.siamese.base import Encoded, Siamese, of_all_processes
from diptych.views.batches import Batch

DIRECTION_STREAM: Final = 0x534C494345  # "SLICE": keeps these draws apart from others of the seed
_REACH = 5.0  # characteristic functions are compared from -5 to 5


class LeJEPA(Siamese):
    """All views near the mean of those of full size, and SIGReg over the images.

    Attributes:
        config: weight of SIGReg, and how finely it looks.
        seed: of the run; with the step it decides the random directions.
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.config, self.seed = config.method.lejepa, config.seed

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """(1 - lambda) times the distance of the views plus lambda times SIGReg of each view."""
        views = encoded.projections
        prediction = (views - views[: self.views].mean(dim=0)).square().mean()
        whole, dim = of_all_processes(views), views.shape[2]
        directions = random_directions(
            dim, self.config.directions, seed=self.seed, step=batch.step
        ).to(views)
        sigreg = torch.stack(
            [epps_pulley(view @ directions, self.config.points).mean() for view in whole]
        ).mean()
        share = self.config.regularization_weight
        return StepOutput(
            (1.0 - share) * prediction + share * sigreg,
            {"invariance": prediction.detach(), "sigreg": sigreg.detach()},
        )


def epps_pulley(samples: Tensor, points: int) -> Tensor:
    """How far samples are from a standard normal distribution, in each column by itself.

    n times the integral over t from -5 to 5 of |phi_n(t) - exp(-t^2 / 2)|^2 exp(-t^2 / 2), by the
    trapezoidal rule, where phi_n(t) is the mean of exp(i t x) over the n samples (the test of Epps
    and Pulley 1983; LeJEPA, section 4.2).

    Args:
        samples: (samples, columns).
        points: of the rule.

    Returns:
        (columns,), 0 and more.
    """
    t = torch.linspace(-_REACH, _REACH, points, device=samples.device, dtype=samples.dtype)
    normal = torch.exp(-0.5 * t.square())
    distance = samples.new_zeros(samples.shape[1])
    # Point by point: all at once would take their number times the memory of the samples.
    weights = torch.full_like(t, 2.0 * _REACH / (points - 1))
    weights[0] /= 2
    weights[-1] /= 2
    for at, wanted, weight in zip(t, normal, weights, strict=True):
        real, imaginary = (samples * at).cos().mean(dim=0), (samples * at).sin().mean(dim=0)
        square = (real - wanted).square() + imaginary.square()
        distance = distance + weight * wanted * square
    return len(samples) * distance


def random_directions(dim: int, count: int, *, seed: int, step: int) -> Tensor:
    """(dim, count), columns of length one, by seed and step: the same on all processes."""
    draws = np.random.default_rng([seed, DIRECTION_STREAM, step]).standard_normal(
        (dim, count), dtype=np.float32
    )
    return torch.from_numpy(draws / np.linalg.norm(draws, axis=0))
