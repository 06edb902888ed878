"""Protocols on frozen features: kNN, and a linear classifier by L-BFGS or by SGD."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from diptych.config.run import ScheduleConfig, StepConfig
from diptych.evaluation.confidence import (
    BootstrapEstimate,
    Statistic,
    accuracy_of,
    estimate,
    mean_per_class,
)
from diptych.evaluation.knn import accuracy, knn_predict, leave_one_out
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.linear import L2_SWEEPS, fit_linear
from diptych.evaluation.split import Split, units_of, unlabelled_split
from diptych.evaluation.subject import TRAINED, Subject
from diptych.evaluation.supervised import (
    REFERENCE_BATCH,
    crop_and_flip,
    predict,
    train_on_labels,
    with_linear_head,
)
from diptych.images.collection import ImageSet
from diptych.models.weights import PretrainedEncoder
from diptych.optimization.schedules import learning_rate
from diptych.runtime.runtime import Runtime


def measure_knn(subject: Subject) -> dict[str, Any]:
    """Weighted kNN (InstDisc, section 3.4), for every encoder and for pixels.

    Where there is one set of labelled images without groups, ``knn_leave_one_out`` classifies each
    of them by all the others as well.
    """
    labelled, options = subject.labelled, subject.options
    how = {"k": options.neighbours, "temperature": options.knn_temperature}
    predicted = {
        name: knn_predict(train, labelled.train_labels, test, **how)  # type: ignore[arg-type]
        for name, (train, test) in subject.features.items()
    }
    found, metrics = compared(predicted, labelled.test_labels)
    settings = common_settings(subject) | {
        "knn_neighbours": min(options.neighbours, len(labelled.train)),
        "knn_temperature": options.knn_temperature,
    }
    result: dict[str, Any] = {
        "knn": found,
        "protocol": settings,
        "details": {"knn": {"settings": settings, "metrics": metrics, "split": labelled.as_dict()}},
    }
    if labelled.whole is not None and labelled.shared is None:
        result["knn_leave_one_out"] = _left_out(subject)
        split = _all_by_others(subject, labelled.whole).as_dict()
        own = {"knn_neighbours": min(options.neighbours, len(labelled.whole) - 1)}
        result["details"]["knn_leave_one_out"] = {"settings": settings | own, "split": split}
    return result


def measure_linear(subject: Subject) -> dict[str, Any]:
    """Multinomial logistic regression by L-BFGS (SimCLR, appendix B.8)."""
    labelled, sweep = subject.labelled, L2_SWEEPS[subject.options.l2_sweep]
    predicted, strengths = {}, {}
    for name, (train, test) in subject.features.items():
        classifier = fit_linear(
            train, labelled.train_labels, strengths=sweep, groups=labelled.units
        )
        predicted[name] = classifier.predict(test)
        strengths[name] = classifier.l2
    found, metrics = compared(predicted, labelled.test_labels)
    settings = common_settings(subject) | {"linear_l2": strengths}
    return {
        "linear": found,
        "protocol": settings,
        "details": {
            "linear": {"settings": settings, "metrics": metrics, "split": labelled.as_dict()}
        },
    }


def common_settings(subject: Subject) -> dict[str, Any]:
    """On which images, and what part of the encoder."""
    labelled, options = subject.labelled, subject.options
    return {
        "images": labelled.fingerprint,
        "train_images": len(labelled.train),
        "test_images": len(labelled.test),
        "classes": len(labelled.classes),
        "chance": labelled.chance,
        "head_layers": options.head_layers,
        "crops": options.crops,
    }


def compared(
    predicted: Mapping[str, Tensor], truth: Tensor
) -> tuple[dict[str, float], dict[str, Any]]:
    """Accuracies by name, and the metrics of them with intervals.

    Args:
        predicted: (images,) for every encoder.
        truth: (images,).
    """
    classes = truth.numpy()
    metrics = {
        "accuracy": with_intervals(
            {name: accuracy_of((p == truth).numpy()) for name, p in predicted.items()}, len(truth)
        ),
        "mean_per_class": with_intervals(
            {name: mean_per_class(p.numpy(), classes) for name, p in predicted.items()}, len(truth)
        ),
    }
    return {name: accuracy(p, truth) for name, p in predicted.items()}, metrics


def with_intervals(figures: Mapping[str, Statistic], images: int) -> dict[str, Any]:
    """Intervals of a figure of every encoder, and of the trained one's gain over each other."""
    found: dict[str, BootstrapEstimate] = {
        name: estimate(figure, images) for name, figure in figures.items()
    }
    best = found[TRAINED]
    return {
        "intervals": {name: one.interval().as_dict() for name, one in found.items()},
        "gains": {
            name: best.minus(one).interval().as_dict()
            for name, one in found.items()
            if name != TRAINED
        },
    }


def _all_by_others(subject: Subject, whole: ImageSet) -> Split:
    """The split of each image against all others."""
    contents = units_of(whole, None)
    copies = None if contents is None else np.bincount(contents)[contents] > 1
    return replace(
        unlabelled_split(None, whole, subject.seen),
        repeated=copies,
        left_out=subject.labelled.left_out,
        remarks=("Each of them is classified by all others.",),
    )


def _left_out(subject: Subject) -> dict[str, float]:
    labelled, options = subject.labelled, subject.options
    labels = torch.cat([labelled.train_labels, labelled.test_labels])
    found = {}
    for name, (train, test) in subject.features.items():
        predicted = leave_one_out(
            torch.cat([train, test]),
            labels,
            k=options.neighbours,
            temperature=options.knn_temperature,
        )
        found[name] = accuracy(predicted, labels)
    return found


@dataclass(frozen=True)
class SgdProbe:
    """How the classifier is trained by SGD; no weight decay.

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
    "moco": SgdProbe(
        30.0, False, ScheduleConfig(kind="step", step=StepConfig(drops=(0.6, 0.8))), 100
    ),
    # SimCLR, appendix B.6: rate 0.1 x batch / 256, 90 epochs.
    "simclr": SgdProbe(0.1, True, ScheduleConfig(kind="cosine"), 90),
}


def measure_linear_sgd(subject: Subject) -> dict[str, Any]:
    """A linear classifier by SGD on every encoder; pixels have none, as they are no network."""
    options, labelled = subject.options, subject.labelled
    probe, epochs = SGD_PROBES[options.sgd], options.sgd_epochs
    predicted = {}
    for name, encoder in subject.encoders.items():
        own = subject.labelled_for(encoder)
        classifier = fit_linear_sgd(encoder, own, probe, subject.runtime, epochs=epochs)
        predicted[name] = predict(classifier, own.test, encoder.config.views, subject.runtime)
    found, details = compared(predicted, labelled.test_labels)
    settings = common_settings(subject) | {
        "setting": options.sgd,
        "epochs": epochs or probe.epochs,
        "learning_rate": probe.rate,
        "batch_size": REFERENCE_BATCH,
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
    runtime: Runtime,
    *,
    epochs: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """The frozen encoder with a classifier, from images to logits.

    Args:
        encoder: stays as it is, in evaluation mode.
        labelled: its training part is learned from.
        probe: rate and schedule.
        runtime: to train it on.
        epochs: instead of the probe's own.
        seed: of initial weights, order and views.
    """
    views = encoder.config.views
    batches = crop_and_flip(labelled.train, views, runtime, batch_size=REFERENCE_BATCH, seed=seed)
    steps = (epochs or probe.epochs) * batches.order.steps_per_epoch
    network = copy.deepcopy(encoder.network)  # requires_grad is set on the copy only
    classifier = with_linear_head(
        network, encoder.config, len(labelled.classes), frozen=True, seed=seed
    ).to(next(network.parameters()).device)
    optimizer = torch.optim.SGD(
        classifier.head.parameters(), lr=0.0, momentum=0.9, nesterov=probe.nesterov
    )
    peak = probe.rate * batches.order.batch_size / REFERENCE_BATCH

    def rate(step: int) -> float:
        return learning_rate(
            probe.schedule, peak=peak, step=step, steps_per_epoch=1, total_steps=steps
        )

    told = runtime.counting("Training a linear classifier by SGD")
    train_on_labels(classifier, batches, optimizer, rate, steps=steps, on_images=told)
    return classifier
