"""DINO: what a slowly moving teacher says of a view is learned from the image's other views.

Caron et al. 2021, 2104.14294. The teacher's logits are centred, which keeps one prototype from
winning always, and sharpened by a low temperature, which keeps all from being equally likely; only
both together avoid collapse (section 5.3).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.run import RunConfig
from diptych.methods.method import StepOutput
from diptych.methods.networks import Networks
from diptych.methods.siamese.base import Encoded, Siamese
from diptych.methods.siamese.prototypes import (
    build_prototypes,
    cross_entropy_of_views,
    prototype_metrics,
)
from diptych.models.momentum_encoder import MomentumEncoder
from diptych.optimization.optimizers import warmup_steps
from diptych.runtime.distributed import gather_rows
from diptych.views.batches import Batch


class DINO(Siamese):
    """Self-distillation from the momentum encoder, the teacher, without labels.

    Attributes:
        prototypes: the last layer, whose rows are used at length one (weight normalisation).
        momentum_prototypes: the teacher's.
        center: (prototypes,), the running mean of the teacher's logits (eq. 4).
        frozen_prototypes: they do not learn in this step.
        teacher_temperature: of this step.
    """

    center: Tensor

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks, config)
        self.config = config.method.dino
        self.prototypes = build_prototypes(
            self.config.prototypes, dim=networks.dim, seed=config.seed + 3
        )
        self.momentum_prototypes = MomentumEncoder(self.prototypes)
        self.register_buffer("center", torch.zeros(self.config.prototypes))
        self.frozen_prototypes = False
        self.teacher_temperature = self.config.teacher_temperature

    def begin_step(self, step: int, *, steps_per_epoch: int, total_steps: int) -> None:
        """The teacher's temperature, and whether prototypes learn yet."""
        config = self.config
        frozen = warmup_steps(config.frozen_prototype_epochs, steps_per_epoch, total_steps)
        self.frozen_prototypes = step < frozen
        warm = warmup_steps(config.warmup_epochs, steps_per_epoch, total_steps)
        progress = 1.0 if step >= warm else step / warm
        begin, end = config.warmup_temperature, config.teacher_temperature
        self.teacher_temperature = begin + (end - begin) * progress

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """Each view against what the teacher says of the image's other full-sized views (eq. 3)."""
        weight = self.prototypes.weight
        logits = cosines(encoded.projections, weight.detach() if self.frozen_prototypes else weight)
        with torch.no_grad():
            taught = cosines(encoded.targets, self._teachers_prototypes)
            targets = teacher_probabilities(
                taught, self.center, temperature=self.teacher_temperature
            )
        logits = logits / self.config.student_temperature
        loss = cross_entropy_of_views(targets, logits)
        metrics = prototype_metrics(targets, logits, loss)
        mean = taught.flatten(0, 1).mean(dim=0, keepdim=True) if self.config.centering else None
        return StepOutput(loss, metrics, mean)

    @property
    def _teachers_prototypes(self) -> Tensor:
        prototypes = self.momentum_prototypes.network
        assert isinstance(prototypes, nn.Linear)
        return prototypes.weight

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """Moves the teacher, last layer included, towards the student."""
        super().update_momentum(momentum)
        self.momentum_prototypes.update(self.prototypes, momentum)

    @torch.no_grad()
    def after_step(self, output: StepOutput) -> None:
        """Moves the centre towards the mean of the teacher's logits of all processes (eq. 4)."""
        if output.keys is not None:
            self.center.lerp_(
                gather_rows(output.keys).mean(dim=0), 1.0 - self.config.center_momentum
            )

    def state_metrics(self) -> dict[str, float]:
        """The teacher's temperature."""
        return {"teacher_temperature": self.teacher_temperature}


def cosines(vectors: Tensor, prototypes: Tensor) -> Tensor:
    """(..., prototypes) of vectors (..., dim) with the rows of (prototypes, dim)."""
    return functional.linear(
        functional.normalize(vectors, dim=-1), functional.normalize(prototypes, dim=1)
    )


def teacher_probabilities(
    logits: Float[Tensor, "views images prototypes"],
    center: Float[Tensor, " prototypes"],
    *,
    temperature: float,
) -> Float[Tensor, "views images prototypes"]:
    """Softmax of centred logits at the teacher's temperature (section 3.1, eq. 1).

    Example:
        >>> logits = torch.tensor([[[0.4, 0.0]]])
        >>> teacher_probabilities(logits, torch.tensor([0.4, 0.0]), temperature=0.04).tolist()
        [[[0.5, 0.5]]]
    """
    return ((logits - center) / temperature).softmax(dim=-1)
