"""Classifiers trained by SGD: fine-tuning with the encoder, and a linear one on the frozen encoder.

Fine-tuning is of encoder and classifier together, on all, a tenth or a hundredth of the labels.
SimCLR, section 4 and appendix B.5: Nesterov's momentum 0.9, rate 0.05 x batch / 256, no weight
decay, crop and flip, 60 epochs of 1% of the labels and 30 of 10%. Ours differ for small sets, where
so few and so small steps would move nothing: a batch is a tenth of the images, 16 at least and 256
at most, and the rate goes with the root of the batch. It falls by a cosine.

That schedule suits a pretrained encoder. For a random one, the baseline with labels alone, longer
schedules and other rates are tried too, and the one that is best on a part of its labels is taken,
so that a gain is not due to a schedule that is too short for the baseline. With three seeds that
baseline takes five times as long as a pretrained encoder, and all of fine-tuning three times as
long as without it.
"""

import copy
import math
from dataclasses import dataclass, replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from diptych.config.run import RunConfig, ScheduleConfig, StepConfig
from diptych.errors import FeaturesError, TrainingError
from diptych.evaluation.confidence import over_seeds
from diptych.evaluation.knn import accuracy
from diptych.evaluation.knn_and_linear import common_settings, compared
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.subject import TRAINED, UNTRAINED, Subject
from diptych.evaluation.supervised import (
    REFERENCE_BATCH,
    crop_and_flip,
    in_whole_groups,
    predict,
    train_on_labels,
    with_linear_head,
)
from diptych.images.collection import ImageSet, balanced_share
from diptych.models.weights import PretrainedEncoder
from diptych.optimization.optimizers import learning_rate
from diptych.runtime.devices import Runtime

FEW_EPOCHS: Final = 60  # of 1% of the labels and less
EPOCHS: Final = 30
RATE: Final = 0.05  # of a batch of 256
LEAST_BATCH: Final = 16
LONGER: Final = 3  # times as many epochs, of the encoder that begins from nothing
BASELINE_RATES: Final = (0.2, 0.05)  # that it is tried with, of a batch of 256
ASTRAY: Final = (FeaturesError, TrainingError)  # the first where the last step alone overflows
SHARES_OF_RATE: Final = (1.0, 0.25, 0.0625)  # tried in turn, where a seed goes astray
_MOMENTUM: Final = 0.9
_LEAST_OF_A_CLASS: Final = 5  # labelled images; of fewer, no part can choose a schedule


class FineTuningSchedule(NamedTuple):
    """How long fine-tuning goes on, and how fast.

    Attributes:
        epochs: passes over the labelled images.
        rate: highest learning rate, of a batch of 256.
        tried: schedules that it was the best of; 1 where it was not chosen.
    """

    epochs: int
    rate: float
    tried: int = 1


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


def measure_finetune(subject: Subject) -> dict[str, Any]:
    """Accuracy after fine-tuning each encoder on shares of the labels, with several seeds.

    The seeds choose the labelled images and their order, the same for every encoder, so that
    differences are paired. The untrained encoder is plain supervised learning from as many labels,
    with the schedule that ``baseline_schedule`` finds.
    """
    options, labelled = subject.options, subject.labelled
    means: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    for share in options.finetune_shares:
        epochs = options.finetune_epochs or (FEW_EPOCHS if share <= 0.01 else EPOCHS)
        usual = FineTuningSchedule(epochs, RATE)
        baseline = baseline_schedule(subject.untrained, labelled, share, subject.runtime, usual)
        tuned = {
            name: _over_seeds(encoder, share, subject, baseline if name == UNTRAINED else usual)
            for name, encoder in subject.encoders.items()
        }
        reached = {name: [one.accuracy for one in seeds] for name, seeds in tuned.items()}
        key = f"{share:.4g}"
        means[key] = {name: float(np.mean(values)) for name, values in reached.items()}
        details[key] = _with_intervals(reached) | {
            "images": len(balanced_share(labelled.train_labels.numpy(), share, 0)),
            "learning_rates": {name: [one.rate for one in seeds] for name, seeds in tuned.items()},
            "untrained_schedule": {
                "epochs": baseline.epochs,
                "learning_rate": baseline.rate,
                "tried": baseline.tried,
            },
        }
    settings = common_settings(subject) | {
        "seeds": options.seeds,
        "epochs": options.finetune_epochs,
        "learning_rate": RATE,
        "batch_size": REFERENCE_BATCH,
    }
    table = {"settings": settings, "shares": details, "split": labelled.as_dict()}
    return {"finetune": means, "details": {"finetune": table}}


def baseline_schedule(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    share: float,
    runtime: Runtime,
    usual: FineTuningSchedule,
) -> FineTuningSchedule:
    """The schedule with which a random encoder learns most from a share of the labels.

    The usual one, and ``BASELINE_RATES`` in ``LONGER`` times as many epochs, are tried on four
    fifths of the share and compared on the fifth, of one seed. Where a class has too few images for
    that it is the longer one with the first of the rates.

    Args:
        encoder: as it was before training; is left as it is.
        labelled: its training part is divided; the test part is not looked at.
        share: of that, the same of each class.
        runtime: to train it on.
        usual: of an encoder that was pretrained.
    """
    longer = [FineTuningSchedule(LONGER * usual.epochs, rate) for rate in BASELINE_RATES]
    rows = balanced_share(labelled.train_labels.numpy(), share, 0)
    labels = labelled.train_labels.numpy()[rows]
    if np.unique(labels, return_counts=True)[1].min() < _LEAST_OF_A_CLASS:
        return longer[0]
    # Within the share: with labels from outside, the baseline would have more of them than the
    # encoder that it is compared with.
    chosen = balanced_share(labels, 1 / _LEAST_OF_A_CLASS, 0)
    rest = np.setdiff1d(np.arange(len(rows)), chosen)
    judged, truth = labelled.train.select(rows[chosen]), torch.from_numpy(labels[chosen])
    best, most = usual, -1.0
    candidates = [usual, *longer]
    for schedule in candidates:
        try:
            classifier = fine_tune(encoder, labelled, rows[rest], runtime, schedule, seed=0)
        except TrainingError:  # a rate that it cannot learn at
            continue
        right = accuracy(predict(classifier, judged, encoder.config.views, runtime), truth)
        # Of equals the first, which is the shortest.
        if right > most:
            best, most = schedule, right
    return best._replace(tried=len(candidates))


def fine_tune(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    rows: NDArray[np.int64],
    runtime: Runtime,
    schedule: FineTuningSchedule,
    *,
    seed: int,
) -> nn.Module:
    """A copy of an encoder with a linear classifier, trained together.

    Args:
        encoder: is left as it is.
        labelled: its training part is learned from.
        rows: of that, the images to learn from.
        runtime: to train it on.
        schedule: how long, and how fast.
        seed: of the images' order and their views.

    Returns:
        From images to logits, in evaluation mode.
    """
    images = labelled.train.select(rows)
    batch_size = _batch_size(encoder.config, len(images))
    peak = schedule.rate * math.sqrt(batch_size / REFERENCE_BATCH)
    settings = SgdSettings(peak, True, ScheduleConfig(kind="cosine"), schedule.epochs)
    return _train_by_sgd(encoder, labelled, images, batch_size, runtime, settings, seed=seed)


def _batch_size(config: RunConfig, images: int) -> int:
    """A tenth of the images; in whole groups where the norm takes its statistics from groups."""
    size = min(images, max(LEAST_BATCH, min(REFERENCE_BATCH, images // 10)))
    return in_whole_groups(config, size)


class _Tuned(NamedTuple):
    """What one seed reached, and at what rate; at None where none led to finite weights."""

    accuracy: float
    rate: float | None


def _over_seeds(
    encoder: PretrainedEncoder, share: float, subject: Subject, schedule: FineTuningSchedule
) -> list[_Tuned]:
    """What fine-tuning with each seed reached.

    Raises:
        TrainingError, FeaturesError: none learned at any rate.
    """
    labelled, found = subject.labelled_for(encoder), list[_Tuned]()
    for seed in range(subject.options.seeds):
        # By labels and seed alone, so every encoder learns from the same images: gains over seeds
        # are in pairs.
        rows = balanced_share(labelled.train_labels.numpy(), share, seed)
        try:
            found.append(_fine_tuned(encoder, labelled, rows, subject.runtime, schedule, seed))
        except ASTRAY as error:
            # Counted, not left out: without its worst seeds an encoder would look better.
            astray = error
            found.append(_Tuned(labelled.chance, None))
    if all(one.rate is None for one in found):
        raise astray
    return found


def _fine_tuned(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    rows: NDArray[np.int64],
    runtime: Runtime,
    schedule: FineTuningSchedule,
    seed: int,
) -> _Tuned:
    """Accuracy at the rate of a schedule, or the first lower one that does not lead astray."""
    for share in SHARES_OF_RATE:
        tried = schedule._replace(rate=share * schedule.rate)
        try:
            classifier = fine_tune(encoder, labelled, rows, runtime, tried, seed=seed)
            predicted = predict(classifier, labelled.test, encoder.config.views, runtime)
        except ASTRAY as error:
            astray = error
            continue
        return _Tuned(accuracy(predicted, labelled.test_labels), tried.rate)
    raise astray


def _with_intervals(reached: dict[str, list[float]]) -> dict[str, Any]:
    """Over seeds: of every encoder, and of the trained one's gain over each other."""
    best = reached[TRAINED]
    gains = {
        name: over_seeds([a - b for a, b in zip(best, values, strict=True)]).as_dict()
        for name, values in reached.items()
        if name != TRAINED
    }
    return {
        "seeds": reached,
        "intervals": {name: over_seeds(values).as_dict() for name, values in reached.items()},
        "gains": gains,
    }


# --- a linear classifier by SGD, the encoder frozen -----------------------------------------------


SGD_PROBES: Final = {
    # MoCo, section 4.1: rate 30, drops at epochs 60 and 80 of 100.
    "moco": SgdSettings(
        30.0, False, ScheduleConfig(kind="step", step=StepConfig(drops=(0.6, 0.8))), 100
    ),
    # SimCLR, appendix B.6: rate 0.1 x batch / 256, 90 epochs.
    "simclr": SgdSettings(0.1, True, ScheduleConfig(kind="cosine"), 90),
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
    probe: SgdSettings,
    runtime: Runtime,
    *,
    epochs: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """The frozen encoder with a classifier, from images to logits.

    Args:
        encoder: stays as it is, in evaluation mode.
        labelled: its training part is learned from.
        probe: its rate is scaled in proportion to the batch.
        runtime: to train it on.
        epochs: instead of the probe's own.
        seed: of initial weights, order and views.
    """
    batch_size = min(REFERENCE_BATCH, len(labelled.train))
    peak = probe.rate * batch_size / REFERENCE_BATCH
    settings = replace(probe, rate=peak, epochs=epochs or probe.epochs)
    return _train_by_sgd(
        encoder, labelled, labelled.train, batch_size, runtime, settings, frozen=True, seed=seed
    )


def _train_by_sgd(
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
