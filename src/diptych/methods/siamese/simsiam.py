"""SimSiam: a prediction of the other view's projection, to which no gradient flows.

Chen and He 2020, 2011.10566. BYOL without a momentum encoder.
"""

from concurrent.futures import Executor

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.run import RunConfig
from diptych.images.collection import Collection
from diptych.methods.method import StepOutput
from diptych.methods.networks import build_networks
from diptych.methods.siamese.base import Encoded, Siamese, other_views
from diptych.views.batches import Batch


class SimSiam(Siamese):
    """Predictions of all views, compared with the projections of the others.

    Attributes:
        stop_gradient: whether no gradient flows to the targets (algorithm 1).
    """

    stop_gradient: bool

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """The mean over pairs of a view and another's target (section 3, eq. 4), -1 to 1."""
        targets = encoded.targets.detach() if self.stop_gradient else encoded.targets
        losses = [
            negative_cosine(encoded.predictions[view], targets[target])
            for view, target in other_views(len(encoded.predictions), len(targets))
        ]
        return StepOutput(torch.stack(losses).mean(), {})


def negative_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of minus the cosine of prediction and target (eq. 1).

    Args:
        predictions: (images, dim).
        targets: (images, dim).

    Example:
        >>> float(negative_cosine(torch.tensor([[2.0, 0.0]]), torch.tensor([[3.0, 0.0]])))
        -1.0
    """
    return -functional.cosine_similarity(predictions, targets).mean()


def build_simsiam(
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    *,
    encoder: nn.Module | None = None,
) -> SimSiam:
    """SimSiam with random weights, or from an encoder that is given."""
    method = SimSiam(build_networks(config, encoder=encoder), config)
    method.stop_gradient = config.method.simsiam.stop_gradient
    return method
