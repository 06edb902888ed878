"""A linear classifier on an encoder, trained by SGD as the papers do it."""

import copy
from dataclasses import dataclass
from typing import Final

import torch
from torch import nn

from diptych.config.run import ScheduleConfig
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.train_on_labels import (
    crop_and_flip,
    train_on_labels,
    with_linear_head,
)
from diptych.images.collection import ImageSet
from diptych.models.weights import PretrainedEncoder
from diptych.optimization.optimizers import learning_rate
from diptych.runtime.devices import Runtime

_MOMENTUM: Final = 0.9


@dataclass(frozen=True)
class SgdSettings:
    """How a classifier is trained by SGD; no weight decay.

    Attributes:
        rate: highest learning rate; in ``SGD_PROBES`` of a batch of 256.
        nesterov: Nesterov's momentum instead of the plain one.
        schedule: of the rate.
        epochs: passes over the training images.
    """

    rate: float
    nesterov: bool
    schedule: ScheduleConfig
    epochs: int


def train_by_sgd(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    images: ImageSet,
    batch_size: int,
    runtime: Runtime,
    settings: SgdSettings,
    *,
    frozen: bool = False,
    seed: int,
) -> nn.Module:
    """A linear classifier on a copy of an encoder, which is frozen or learns too."""
    views = encoder.config.views
    batches = crop_and_flip(images, views, runtime, batch_size=batch_size, seed=seed)
    steps = settings.epochs * batches.order.steps_per_epoch
    # A copy: freezing sets requires_grad, and learning moves the weights and batch-norm statistics.
    # Frozen it is the encoder that is kept, with its layer and whitening; the network alone learns.
    network = copy.deepcopy(encoder if frozen else encoder.network)
    classifier = with_linear_head(
        network, encoder.config, len(labelled.classes), frozen=frozen, seed=seed
    ).to(next(network.parameters()).device)
    learning = [one for one in classifier.parameters() if one.requires_grad]
    optimizer = torch.optim.SGD(learning, lr=0.0, momentum=_MOMENTUM, nesterov=settings.nesterov)

    def rate(step: int) -> float:
        return learning_rate(
            settings.schedule, peak=settings.rate, step=step, steps_per_epoch=1, total_steps=steps
        )

    what = "Training a linear classifier by SGD" if frozen else "Fine-tuning"
    told = runtime.counting(what)
    train_on_labels(classifier, batches, optimizer, rate, steps=steps, on_images=told)
    return classifier
