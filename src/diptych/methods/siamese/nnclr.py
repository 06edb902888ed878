"""NNCLR: the positive of a view is the nearest neighbour of the other view among earlier images.

Dwibedi et al. 2021, 2104.14548. A positive that is another image varies more than two views of one.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from diptych.config.method import LossConfig
from diptych.config.run import RunConfig
from diptych.methods.dictionaries import InBatch, KeyQueue
from diptych.methods.losses import find_loss
from diptych.methods.method import StepOutput, mean_output
from diptych.methods.networks import Networks
from diptych.methods.objective import contrast
from diptych.methods.siamese.base import Encoded, Siamese, other_views
from diptych.runtime.distributed import gather_rows
from diptych.views.batches import Batch

_AT_ONCE = 512  # vectors that look for their neighbour, for less memory


class NNCLR(Siamese):
    """InfoNCE of a view's neighbour against the predictions of another view of the batch.

    Attributes:
        queue: projections of earlier batches, the support set.
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.config = config.method.nnclr
        self.queue = KeyQueue(self.config.queue_size, networks.dim)

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """The mean over pairs of a view and the neighbours of another's projections (eq. 3, 4).

        ``pretext_accuracy`` is the share of neighbours whose own image has the nearest prediction
        of the batch. ``neighbour_similarity`` is the cosine of projection and neighbour.
        """
        predictions = functional.normalize(encoded.predictions, dim=-1)
        projections = functional.normalize(encoded.targets, dim=-1).detach()
        neighbours = [nearest(one, self.queue.negatives) for one in projections]
        outputs = [
            self._contrast(neighbours[target], predictions[view], batch)
            for view, target in other_views(len(predictions), len(projections))
        ]
        output = mean_output(outputs)
        similarity = (neighbours[0] * projections[0]).sum(dim=1).mean()
        return replace(
            output,
            metrics={**output.metrics, "neighbour_similarity": similarity},
            keys=projections[0],
        )

    def _contrast(self, neighbours: Tensor, predictions: Tensor, batch: Batch) -> StepOutput:
        comparison = InBatch(both_views=False).compare(neighbours, predictions, batch)
        settings = LossConfig(temperature=self.config.temperature)
        return contrast(
            comparison, find_loss(settings.kind), settings, temperature=settings.temperature
        )

    def after_step(self, output: StepOutput) -> None:
        """Enqueues the projections of the first views of all processes (section 3.2)."""
        if output.keys is not None:
            self.queue.enqueue(gather_rows(output.keys))

    def state_metrics(self) -> dict[str, float]:
        """The age of the oldest projection."""
        return self.queue.state_metrics()


@torch.no_grad()
def nearest(
    vectors: Float[Tensor, "images dim"], stored: Float[Tensor, "stored dim"]
) -> Float[Tensor, "images dim"]:
    """Of each vector the one with the highest cosine among those stored (eq. 2); itself if none.

    Args:
        vectors: of length one.
        stored: of length one.

    Example:
        >>> nearest(torch.eye(2), torch.tensor([[0.6, 0.8], [0.8, 0.6]])).tolist()
        [[0.800..., 0.600...], [0.600..., 0.800...]]
    """
    if not len(stored):
        return vectors
    rows = [(part @ stored.T).argmax(dim=1) for part in torch.split(vectors, _AT_ONCE)]
    return stored[torch.cat(rows)]
