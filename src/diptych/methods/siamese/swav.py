"""SwAV: the prototypes that one view is assigned to are predicted from another view.

Caron et al. 2020, 2006.09882. That all prototypes get the same share of a batch keeps images from
being all alike (section 3.1): Sinkhorn's algorithm finds such assignments.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.run import RunConfig
from diptych.methods.dictionaries import KeyQueue
from diptych.methods.method import StepOutput
from diptych.methods.networks import Networks
from diptych.methods.siamese.base import Encoded, Siamese
from diptych.methods.siamese.prototypes import (
    build_prototypes,
    cross_entropy_of_views,
    normalize_,
    prototype_metrics,
)
from diptych.optimization.optimizers import warmup_steps
from diptych.runtime.distributed import gather_rows, gather_views, own_rows
from diptych.views.batches import Batch


class SwAV(Siamese):
    """Swapped prediction of assignments to prototypes.

    Attributes:
        prototypes: of length one, each a row of the weight.
        queues: projections of earlier batches for each full-sized view, which take part in the
            assignments (section 3.1); none without ``method.swav.queue_size``.
        frozen_prototypes: they do not learn in this step.
        uses_queues: the queues take part in this step.
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.config = config.method.swav
        self.prototypes = build_prototypes(
            self.config.prototypes, dim=networks.dim, seed=config.seed + 3
        )
        size = self.config.queue_size
        self.queues = nn.ModuleList(
            KeyQueue(size, networks.dim) for _ in range(self.views) if size is not None
        )
        self.frozen_prototypes, self.uses_queues = False, True

    def begin_step(self, step: int, *, steps_per_epoch: int, total_steps: int) -> None:
        """Whether prototypes learn yet, and queues are used yet."""
        frozen = warmup_steps(self.config.frozen_prototype_epochs, steps_per_epoch, total_steps)
        self.frozen_prototypes = step < frozen
        self.uses_queues = step >= self.config.queue_from_epoch * steps_per_epoch

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """Each view against the assignments of the image's other full-sized views (eq. 2)."""
        projections = functional.normalize(encoded.projections, dim=-1)
        weight = self.prototypes.weight
        logits = functional.linear(
            projections, weight.detach() if self.frozen_prototypes else weight
        )
        logits = logits / self.config.temperature
        stored = projections[: self.views].detach()
        targets = self._assignments(stored)
        loss = cross_entropy_of_views(targets, logits)
        metrics = prototype_metrics(targets, logits, loss)
        keys = stored.flatten(0, 1) if len(self.queues) else None
        return StepOutput(loss, metrics, keys, batch.indices)

    @torch.no_grad()
    def _assignments(self, projections: Tensor) -> Tensor:
        """(full-sized views, images, prototypes), this process's of those of all."""
        weight, found = self.prototypes.weight, []
        for view, one in enumerate(projections):
            # Every process assigns the images of all: shares are equal over the whole batch.
            rows = gather_rows(one)
            count = len(rows)
            if len(self.queues) and self.uses_queues:
                queue = self.queues[view]
                assert isinstance(queue, KeyQueue)
                rows = torch.cat([rows, queue.negatives])
            assigned = sinkhorn(
                functional.linear(rows, weight),
                epsilon=self.config.epsilon,
                iterations=self.config.sinkhorn_iterations,
            )
            found.append(own_rows(assigned[:count]))
        return torch.stack(found)

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """Gives the prototypes length one again, after the optimizer has moved them."""
        super().update_momentum(momentum)
        if not self.frozen_prototypes:
            normalize_(self.prototypes)

    def after_step(self, output: StepOutput) -> None:
        """Enqueues the projections of all processes."""
        if output.keys is None or output.indices is None:
            return
        keys = gather_views(output.keys, len(output.indices))
        for queue, of_view in zip(self.queues, keys.chunk(self.views), strict=True):
            assert isinstance(queue, KeyQueue)
            queue.enqueue(of_view)


@torch.no_grad()
def sinkhorn(
    scores: Float[Tensor, "rows prototypes"], *, epsilon: float, iterations: int
) -> Float[Tensor, "rows prototypes"]:
    """Assigns rows to prototypes so that each prototype gets about the same share of all rows.

    Sinkhorn and Knopp's algorithm on exp(scores / epsilon) (section 3.1, eq. 5): in turn all
    prototypes get the same sum, and all rows the sum 1. In logarithms, so that nothing overflows.

    Args:
        scores: similarities of projections with prototypes.
        epsilon: of the entropy term; the smaller, the surer the assignments.
        iterations: of both turns; with 0 each row has the softmax of its own scores, and nothing
            keeps all rows from one prototype.

    Returns:
        Assignments, of which each row sums to 1.
    """
    logarithms = scores / epsilon
    for _ in range(iterations):
        logarithms = logarithms - logarithms.logsumexp(dim=0)
        logarithms = logarithms - logarithms.logsumexp(dim=1, keepdim=True)
    return logarithms.softmax(dim=1)
