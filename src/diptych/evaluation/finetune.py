"""Fine-tuning: encoder and classifier learn together from all, a tenth or a hundredth of labels.

SimCLR, section 4 and appendix B.5: Nesterov's momentum 0.9, rate 0.05 x batch / 256, no weight
decay, crop and flip, 60 epochs of 1% of the labels and 30 of 10%. Ours differ for small sets, where
so few and so small steps would move nothing: a batch is a tenth of the images, 16 at least and 256
at most, and the rate goes with the root of the batch. It falls by a cosine.
"""

import copy
import math
from concurrent.futures import Executor
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from diptych.configs import RunConfig, ScheduleConfig
from diptych.evaluation.classifying import crop_and_flip, on_top_of, predict, train_on_labels
from diptych.evaluation.confidence import over_seeds
from diptych.evaluation.frozen import common_settings
from diptych.evaluation.knn import accuracy
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.subject import TRAINED, Subject
from diptych.images.selection import balanced_share
from diptych.model.saved import PretrainedEncoder
from diptych.optimization.schedules import learning_rate

FEW_EPOCHS: Final = 60  # of 1% of the labels and less
EPOCHS: Final = 30
RATE: Final = 0.05  # of a batch of 256
SMALLEST_BATCH: Final = 16
BATCH: Final = 256
_MOMENTUM: Final = 0.9


def measure_finetune(subject: Subject) -> dict[str, Any]:
    """Accuracy after fine-tuning each encoder on shares of the labels, with several seeds.

    The seeds choose the labelled images and their order, the same for every encoder, so that
    differences are of pairs. The untrained encoder learns the same way: that is plain supervised
    learning from as many labels.
    """
    options, labelled = subject.options, subject.labelled
    means: dict[str, dict[str, float]] = {}
    details: dict[str, Any] = {}
    for share in options.finetune_shares:
        reached = {
            name: [_accuracy(encoder, share, seed, subject) for seed in range(options.seeds)]
            for name, encoder in subject.encoders.items()
        }
        key = f"{share:.4g}"
        means[key] = {name: float(np.mean(values)) for name, values in reached.items()}
        details[key] = _with_intervals(reached) | {
            "images": len(balanced_share(labelled.train_labels.numpy(), share, 0))
        }
    settings = common_settings(subject) | {
        "seeds": options.seeds,
        "epochs": options.finetune_epochs,
        "learning_rate": RATE,
        "batch_size": BATCH,
    }
    table = {"settings": settings, "shares": details, "split": labelled.as_dict()}
    return {"finetune": means, "details": {"finetune": table}}


def fine_tune(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    share: float,
    executor: Executor,
    *,
    seed: int,
    epochs: int | None = None,
) -> nn.Module:
    """A copy of an encoder with a linear classifier, trained together.

    Args:
        encoder: is left as it is.
        labelled: its training part is learned from.
        share: of that, the same of each class.
        executor: its threads make views.
        seed: chooses the images, their order and their views.
        epochs: 30, or 60 of 1% of the labels and less, when not given.

    Returns:
        From images to logits, in evaluation mode.
    """
    network = copy.deepcopy(encoder.network).train()
    rows = balanced_share(labelled.train_labels.numpy(), share, seed)
    images = labelled.train.select(rows)
    views = encoder.config.views
    batches = crop_and_flip(
        images, views, executor, batch_size=_batch_size(encoder.config, len(images)), seed=seed
    )
    epochs = epochs or (FEW_EPOCHS if share <= 0.01 else EPOCHS)
    steps = epochs * batches.order.steps_per_epoch
    device = next(network.parameters()).device
    classifier = on_top_of(
        network, encoder.config, len(labelled.classes), frozen=False, seed=seed
    ).to(device)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=0.0, momentum=_MOMENTUM, nesterov=True)
    peak = RATE * math.sqrt(batches.order.batch_size / BATCH)

    def rate(step: int) -> float:
        return learning_rate(
            ScheduleConfig(kind="cosine"),
            peak=peak,
            step=step,
            steps_per_epoch=1,
            total_steps=steps,
        )

    train_on_labels(classifier, batches, optimizer, rate, steps=steps)
    return classifier


def _batch_size(config: RunConfig, images: int) -> int:
    """A tenth of the images; in whole groups where the norm takes its statistics from groups."""
    size = min(images, max(SMALLEST_BATCH, min(BATCH, images // 10)))
    group = config.norm.images_per_group
    return size // group * group if config.norm.is_grouped and size > group else size


def _accuracy(encoder: PretrainedEncoder, share: float, seed: int, subject: Subject) -> float:
    labelled, epochs = subject.labelled, subject.options.finetune_epochs
    classifier = fine_tune(encoder, labelled, share, subject.executor, seed=seed, epochs=epochs)
    views = encoder.config.views
    predicted = predict(classifier, labelled.test, views, subject.executor)
    return accuracy(predicted, labelled.test_labels)


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
