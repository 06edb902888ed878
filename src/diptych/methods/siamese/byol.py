"""BYOL: a prediction of what a slowly moving copy of the network makes of another view.

Grill et al. 2020, 2006.07733. Nothing in the loss keeps images apart: predictor and momentum
encoder do (section 5, table 5).
"""

import torch
from torch import Tensor
from torch.nn import functional

from diptych.methods.method import StepOutput
from diptych.methods.siamese.base import Encoded, Siamese, other_views
from diptych.views.batches import Batch


class BYOL(Siamese):
    """Predictions of all views, compared with the momentum encoder's targets of the others."""

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """The mean over pairs of a view and another's target (section 3.1, eq. 2).

        The paper's loss is the sum over both directions: twice that, ``method.loss.weight``.
        """
        pairs = list(other_views(len(encoded.predictions), len(encoded.targets)))
        losses = [
            byol_loss(encoded.predictions[view], encoded.targets[target]) for view, target in pairs
        ]
        return StepOutput(torch.stack(losses).mean(), {})


def byol_loss(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of the squared distance of prediction and target at length one (eq. 2), 0 to 4.

    Args:
        predictions: (images, dim).
        targets: (images, dim); no gradient flows to them.

    Example:
        >>> float(byol_loss(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])))
        2.0
    """
    return 2.0 - 2.0 * functional.cosine_similarity(predictions, targets.detach()).mean()
