"""Training on labels by gradient steps: what supervised runs, fine-tuning and SGD probes share."""

import copy
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.sections import RunConfig, ScheduleConfig, ViewsConfig
from diptych.errors import TrainingError
from diptych.evaluation.features import encode
from diptych.evaluation.frozen_features import common_settings, compared
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.subject import Subject
from diptych.images.collection import ImageSet
from diptych.images.order import Order
from diptych.models.encoders import count_features
from diptych.models.weights import PretrainedEncoder
from diptych.optimization.optimizers import set_learning_rate
from diptych.optimization.schedules import learning_rate
from diptych.runtime.device import choose_device, views_device
from diptych.views.batches import ViewBatches

CROP_AND_FLIP: Final = "crop(area=0.08..1) + flip"
"""What the papers do to images while they learn from labels (SimCLR, appendix B.5 and B.6)."""


class Classifier(nn.Module):
    """An encoder with a linear layer on it.

    Attributes:
        encoder: from (batch, channels, side, side) to (batch, features).
        head: from features to logits.
        frozen: the encoder stays as it is, in evaluation mode.
    """

    def __init__(
        self, encoder: nn.Module, features: int, classes: int, *, frozen: bool, seed: int
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(not frozen)
        self.frozen = frozen
        self.head = nn.Linear(features, classes)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> "Classifier":
        """Batch norms of a frozen encoder keep to their running statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) to logits (batch, classes)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(images)
        logits: Tensor = self.head(features)
        return logits


def on_top_of(
    network: nn.Module, config: RunConfig, classes: int, *, frozen: bool, seed: int
) -> Classifier:
    """A linear classifier on an encoder that sees what a run's config says."""
    features = count_features(
        network, channels=config.images.channels, side_pixels=config.views.side_pixels
    )
    return Classifier(network, features, classes, frozen=frozen, seed=seed)


def train_on_labels(
    classifier: nn.Module,
    batches: ViewBatches,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    *,
    steps: int,
    clip_norm: float | None = None,
) -> None:
    """Minimises the mean cross-entropy of all views, step by step; ends in evaluation mode.

    Args:
        classifier: from images to logits, on its device.
        batches: of labelled images.
        optimizer: of what is to move.
        rate: learning rate of a step.
        steps: to take.
        clip_norm: longest gradient; None for no bound.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    device = next(classifier.parameters()).device
    moved = [p for p in classifier.parameters() if p.requires_grad]
    classifier.train()
    for step in range(steps):
        batch = batches.at(step).to(device)
        assert batch.labels is not None
        losses = [functional.cross_entropy(classifier(v), batch.labels) for v in batch.views]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(moved, clip_norm)
        set_learning_rate(optimizer, rate(step))
        optimizer.step()
    if steps and not bool(torch.isfinite(loss)):
        raise TrainingError(
            f"learning from labels went astray: the loss is {float(loss.detach())} after {steps} "
            "steps. Try a lower learning rate."
        )
    classifier.eval()


def crop_and_flip(
    images: ImageSet, views: ViewsConfig, executor: Executor, *, batch_size: int, seed: int
) -> ViewBatches:
    """Batches of labelled images, one view of each, cropped and flipped and no more."""
    plain = replace(views, policy=CROP_AND_FLIP, second=CROP_AND_FLIP, small_views=0)
    order = Order(seed, len(images), min(batch_size, len(images)))
    device = views_device(views.applier, choose_device("auto"))
    return ViewBatches(images, order, plain, executor, view_count=1, device=device)


def predict(
    classifier: nn.Module, images: ImageSet, views: ViewsConfig, executor: Executor
) -> Tensor:
    """The most likely class of each image, seen as it is in evaluation; (images,)."""
    return encode(classifier, images, views, executor).argmax(dim=1)


BATCH: Final = 256


@dataclass(frozen=True)
class SgdProbe:
    """How the classifier learns; no weight decay.

    Attributes:
        rate: of a batch of 256; scaled in proportion to another.
        nesterov: momentum that looks ahead.
        schedule: of the rate.
        epochs: passes over the training images.
    """

    rate: float
    nesterov: bool
    schedule: ScheduleConfig
    epochs: int


SGD_PROBES: Final = {
    # MoCo, section 4.1: rate 30, drops at epochs 60 and 80 of 100.
    "moco": SgdProbe(30.0, False, ScheduleConfig(kind="step", drops=(0.6, 0.8)), 100),
    # SimCLR, appendix B.6: rate 0.1 x batch / 256, 90 epochs.
    "simclr": SgdProbe(0.1, True, ScheduleConfig(kind="cosine"), 90),
}


def measure_linear_sgd(subject: Subject) -> dict[str, Any]:
    """Accuracy of the classifier on every encoder; pixels have none, as they are no network."""
    options, labelled = subject.options, subject.labelled
    probe, epochs = SGD_PROBES[options.sgd], options.sgd_epochs
    predicted = {}
    for name, encoder in subject.encoders.items():
        own = subject.labelled_for(encoder)
        classifier = fit_linear_sgd(encoder, own, probe, subject.executor, epochs=epochs)
        predicted[name] = predict(classifier, own.test, encoder.config.views, subject.executor)
    found, details = compared(predicted, labelled.test_labels)
    settings = common_settings(subject) | {
        "setting": options.sgd,
        "epochs": epochs or probe.epochs,
        "learning_rate": probe.rate,
        "batch_size": BATCH,
    }
    return {
        "linear_sgd": found,
        "details": {
            "linear_sgd": {"settings": settings, "metrics": details, "split": labelled.as_dict()}
        },
    }


def fit_linear_sgd(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    probe: SgdProbe,
    executor: Executor,
    *,
    epochs: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """The frozen encoder with a classifier, from images to logits.

    Args:
        encoder: stays as it is, in evaluation mode.
        labelled: its training part is learned from.
        probe: rate and schedule.
        executor: its threads make views.
        epochs: instead of the probe's own.
        seed: of initial weights, order and views.
    """
    views = encoder.config.views
    batches = crop_and_flip(labelled.train, views, executor, batch_size=BATCH, seed=seed)
    steps = (epochs or probe.epochs) * batches.order.steps_per_epoch
    network = copy.deepcopy(encoder.network)  # its memory of what is frozen is not shared
    classifier = on_top_of(
        network, encoder.config, len(labelled.classes), frozen=True, seed=seed
    ).to(next(network.parameters()).device)
    optimizer = torch.optim.SGD(
        classifier.head.parameters(), lr=0.0, momentum=0.9, nesterov=probe.nesterov
    )
    peak = probe.rate * batches.order.batch_size / 256

    def rate(step: int) -> float:
        return learning_rate(
            probe.schedule, peak=peak, step=step, steps_per_epoch=1, total_steps=steps
        )

    train_on_labels(classifier, batches, optimizer, rate, steps=steps)
    return classifier
