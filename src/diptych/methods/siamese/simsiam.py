"""SimSiam: a prediction of the other view's projection, to which no gradient flows.

Chen and He 2020, 2011.10566. BYOL without a momentum encoder.
"""

import torch
from torch import Tensor
from torch.nn import functional

from diptych.config.run import RunConfig
from diptych.methods.method import StepOutput
from diptych.methods.networks import Networks
from diptych.methods.siamese.base import Encoded, Siamese, other_views
from diptych.views.batches import Batch


class SimSiam(Siamese):
    """Predictions of all views, compared with the projections of the others.

    Attributes:
        stop_gradient: whether no gradient flows to the targets (algorithm 1).
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.stop_gradient = config.method.simsiam.stop_gradient

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
