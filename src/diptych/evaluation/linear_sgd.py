"""A linear classifier on a frozen encoder by SGD over cropped and flipped images."""

import copy
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from diptych.configs import ScheduleConfig
from diptych.evaluation.classifying import crop_and_flip, on_top_of, predict, train_on_labels
from diptych.evaluation.frozen import common_settings, compared
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.subject import Subject
from diptych.model.saved import PretrainedEncoder
from diptych.optimization.schedules import learning_rate

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
