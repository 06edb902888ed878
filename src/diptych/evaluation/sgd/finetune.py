"""Fine-tuning: encoder and classifier trained together, on all or some of the labels.

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

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.run import RunConfig, ScheduleConfig
from diptych.evaluation.confidence import (
    BootstrapEstimate,
    Interval,
    Statistic,
    estimate,
    over_seeds,
)
from diptych.evaluation.knn import accuracy
from diptych.evaluation.knn_and_linear import common_settings
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.sgd.kept_answers import ASTRAY, kept_answers
from diptych.evaluation.sgd.train_by_sgd import SgdSettings, train_by_sgd
from diptych.evaluation.subject import TRAINED, UNTRAINED, Subject
from diptych.evaluation.train_on_labels import REFERENCE_BATCH, in_whole_groups, predict
from diptych.images.collection import ImageSet, balanced_share
from diptych.images.groups import stratified_group_split
from diptych.models.weights import PretrainedEncoder
from diptych.runtime.devices import Runtime

FEW_EPOCHS: Final = 60  # of 1% of the labels and less
EPOCHS: Final = 30
RATE: Final = 0.05  # of a batch of 256
LEAST_BATCH: Final = 16
LONGER: Final = 3  # times as many epochs, of the encoder that begins from nothing
BASELINE_RATES: Final = (0.2, 0.05)  # that it is tried with, of a batch of 256
SHARES_OF_RATE: Final = (1.0, 0.25, 0.0625)  # tried in turn, where a seed goes astray
OVER: Final = "seeds and test images"
"""What intervals of fine-tuning are over; those of earlier versions are over seeds alone."""

_LEAST_OF_A_CLASS: Final = 5  # labelled images or groups; of fewer, none can choose a schedule


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


def measure_finetune(subject: Subject) -> dict[str, Any]:
    """Accuracy after fine-tuning each encoder on shares of the labels, with several seeds.

    The seeds choose the labelled images and their order, the same for every encoder, so that
    differences are paired. The untrained encoder is plain supervised learning from as many labels,
    with the schedule that ``baseline_schedule`` finds. Intervals are over seeds and test images.
    """
    options, labelled = subject.options, subject.labelled
    means: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    for share in options.finetune_shares:
        epochs = options.finetune_epochs or (FEW_EPOCHS if share <= 0.01 else EPOCHS)
        usual = FineTuningSchedule(epochs, RATE)
        baseline = baseline_schedule(subject, share, usual)
        tuned = {
            name: _over_seeds(encoder, share, subject, baseline if name == UNTRAINED else usual)
            for name, encoder in subject.encoders.items()
        }
        key = f"{share:.4g}"
        details[key] = _with_intervals(tuned, labelled.test_units) | {
            "images": len(balanced_share(labelled.train_labels.numpy(), share, 0)),
            "learning_rates": {name: [one.rate for one in seeds] for name, seeds in tuned.items()},
            "untrained_schedule": {
                "epochs": baseline.epochs,
                "learning_rate": baseline.rate,
                "tried": baseline.tried,
            },
        }
        reached = details[key]["seeds"]
        means[key] = {name: float(np.mean(values)) for name, values in reached.items()}
    settings = common_settings(subject) | {
        "seeds": options.seeds,
        "epochs": options.finetune_epochs,
        "learning_rate": RATE,
        "batch_size": REFERENCE_BATCH,
    }
    table = {"settings": settings, "shares": details, "split": labelled.as_resampled()}
    return {"finetune": means, "details": {"finetune": table}}


def baseline_schedule(
    subject: Subject, share: float, usual: FineTuningSchedule
) -> FineTuningSchedule:
    """The schedule with which a random encoder learns most from a share of the labels.

    The usual one, and ``BASELINE_RATES`` in ``LONGER`` times as many epochs, are tried on four
    fifths of the share and compared on the fifth, of one seed; copies of an image, and images of
    one group, are on one side. Where a class has too few images or groups for that it is the longer
    one with the first of the rates.

    Args:
        subject: its untrained encoder learns. The training part is divided; the test part is not
            looked at.
        share: of the training part, the same of each class.
        usual: of an encoder that was pretrained.
    """
    encoder, labelled = subject.untrained, subject.labelled_for(subject.untrained)
    longer = [FineTuningSchedule(LONGER * usual.epochs, rate) for rate in BASELINE_RATES]
    rows = balanced_share(labelled.train_labels.numpy(), share, 0)
    labels = labelled.train_labels.numpy()[rows]
    units = rows if labelled.units is None else labelled.units[rows]
    class_of_unit = np.unique(np.stack([labels, units]), axis=1)[0]
    if np.unique(class_of_unit, return_counts=True)[1].min() < _LEAST_OF_A_CLASS:
        return longer[0]
    # Within the share: with labels from outside, the baseline would have more of them than the
    # encoder that it is compared with. In whole groups: of an image that it learned, or its copy,
    # the longest schedule knows the class by heart.
    rest, chosen, _ = stratified_group_split(labels, units)
    judged, truth = labelled.train.select(rows[chosen]), torch.from_numpy(labels[chosen])
    best, most = usual, -1.0
    candidates = [usual, *longer]
    for schedule in candidates:
        try:
            said = _fine_tuned_answers(subject, encoder, labelled, rows[rest], judged, schedule, 0)
        except ASTRAY:  # a rate that it cannot learn at
            continue
        right = accuracy(said, truth)
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
    return train_by_sgd(encoder, labelled, images, batch_size, runtime, settings, seed=seed)


def _batch_size(config: RunConfig, images: int) -> int:
    """A tenth of the images; in whole groups where the norm takes its statistics from groups."""
    size = min(images, max(LEAST_BATCH, min(REFERENCE_BATCH, images // 10)))
    return in_whole_groups(config, size)


class _Tuned(NamedTuple):
    """What one seed reached.

    Attributes:
        accuracy: on the test images.
        right: (images,), 1 for each that is right and 0 for others; chance for all of them where no
            rate led to finite weights.
        rate: at which it learned; None where none led to finite weights.
    """

    accuracy: float
    right: NDArray[np.float64]
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
            found.append(_fine_tuned(subject, encoder, labelled, rows, schedule, seed))
        except ASTRAY as error:
            # Counted, not left out: without its worst seeds an encoder would look better.
            astray, chance = error, labelled.chance
            found.append(_Tuned(chance, np.full(len(labelled.test), chance), None))
    if all(one.rate is None for one in found):
        raise astray
    return found


def _fine_tuned(
    subject: Subject,
    encoder: PretrainedEncoder,
    labelled: Labelled,
    rows: NDArray[np.int64],
    schedule: FineTuningSchedule,
    seed: int,
) -> _Tuned:
    """What is right at the rate of a schedule, or the first lower one that does not lead astray."""
    test = labelled.test
    for share in SHARES_OF_RATE:
        tried = schedule._replace(rate=share * schedule.rate)
        try:
            said = _fine_tuned_answers(subject, encoder, labelled, rows, test, tried, seed)
        except ASTRAY as error:
            astray = error
            continue
        right = (said == labelled.test_labels).numpy().astype(np.float64)
        return _Tuned(float(right.mean()), right, tried.rate)
    raise astray


def _fine_tuned_answers(
    subject: Subject,
    encoder: PretrainedEncoder,
    labelled: Labelled,
    rows: NDArray[np.int64],
    judged: ImageSet,
    schedule: FineTuningSchedule,
    seed: int,
) -> Tensor:
    """The class that an encoder, fine-tuned on some images, gives others; see ``kept_answers``."""

    def learned() -> Tensor:
        classifier = fine_tune(encoder, labelled, rows, subject.runtime, schedule, seed=seed)
        return predict(classifier, judged, encoder.config.views, subject.runtime)

    settings = {
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "judged": judged.fingerprint(),
        "epochs": schedule.epochs,
        "rate": schedule.rate,
        "seed": seed,
    }
    name = f"{len(rows)}-images-seed{seed}"
    return kept_answers(subject, encoder, labelled, judged, name, settings, learned)


def _with_intervals(
    tuned: Mapping[str, Sequence[_Tuned]], units: NDArray[np.int64] | None
) -> dict[str, Any]:
    """Of every encoder, and of the trained one's gain over each other, over seeds and test images.

    Args:
        tuned: for every encoder what each seed reached.
        units: (test images,), the same number for images that belong together; None where none do.
    """
    reached = {name: [one.accuracy for one in seeds] for name, seeds in tuned.items()}
    drawn = {
        name: estimate(_mean_right(seeds), len(seeds[0].right), units=units)
        for name, seeds in tuned.items()
    }
    best = reached[TRAINED]
    gains = {
        name: _wider(
            over_seeds([a - b for a, b in zip(best, values, strict=True)]),
            drawn[TRAINED].minus(drawn[name]),
        )
        for name, values in reached.items()
        if name != TRAINED
    }
    return {
        "seeds": reached,
        "intervals": {
            name: _wider(over_seeds(values), drawn[name]).as_dict()
            for name, values in reached.items()
        },
        "gains": {name: one.as_dict() for name, one in gains.items()},
        "over": OVER,
    }


def _mean_right(seeds: Sequence[_Tuned]) -> Statistic:
    """Accuracy on resamples of the test images, in the mean over seeds."""
    right = np.mean([one.right for one in seeds], axis=0)
    return lambda counts: counts @ right / counts.sum(axis=1)


def _wider(seeds: Interval, images: BootstrapEstimate) -> Interval:
    """An interval over seeds, widened by that of their mean over test images.

    The seeds have the same test images, so that what they have in common does not show in their
    spread: with 40 images, each of three seeds may gain the same one. Both errors are independent,
    so squares of the halves are added.
    """
    drawn = images.interval()
    below = math.hypot(seeds.value - seeds.low, drawn.value - drawn.low)
    above = math.hypot(seeds.high - seeds.value, drawn.high - drawn.value)
    return Interval(seeds.value, seeds.value - below, seeds.value + above)
