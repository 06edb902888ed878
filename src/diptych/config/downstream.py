"""What is done with a trained encoder: settings of detection, of embeddings, of classifiers."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from diptych.config.checks import Checks
from diptych.errors import ConfigError

DetectionNorm = Literal["frozen", "batch", "sync"]
DetectionSchedule = Literal["cosine", "step"]

USUAL_SIDE: Final = 800
"""Shorter side, in pixels, that Faster R-CNN's anchors of 32 to 512 pixels are made for."""


@dataclass(frozen=True)
class DetectionConfig:
    """How a Faster R-CNN with a feature pyramid is fine-tuned."""

    epochs: int = 12
    """Passes over the training images."""
    batch_size: int = 4
    """Images in a batch."""
    learning_rate: float = 0.01
    """Peak learning rate of SGD with momentum 0.9."""
    weight_decay: float = 1e-4
    """Of every weight."""
    schedule: DetectionSchedule = "cosine"
    """After warm-up: a `cosine` to 0, or `step`, a tenth after 2/3 and again after 8/9 of the steps
    (as Detectron's 1x has it)."""
    warmup_steps: int = 100
    """Steps over which the learning rate rises linearly; a quarter of all at most."""
    norm: DetectionNorm = "batch"
    """Batch norms of the ResNet: `frozen` as constants, `batch` trained over the batch, `sync` over
    the batches of all processes. Both of the latter also normalise the pyramid."""
    side: int = 320
    """Shorter side of an image, in pixels; the longer one is 5/3 of it at most."""
    jitter: float = 0.2
    """In training the shorter side is drawn from (1 - jitter) to (1 + jitter) times `side`."""
    pyramid_channels: int = 256
    """Channels of the feature pyramid; 256 in the paper."""
    proposals: int = 512
    """Regions of each image that train the box head; 512 in the paper."""
    seeds: int = 1
    """Detectors of each backbone; asking for more later adds to those there are."""

    def __post_init__(self) -> None:
        check = Checks("detection", self)
        check.finite()
        check.positive("learning_rate")
        check.not_negative("weight_decay", "warmup_steps")
        check.at_least(1, "epochs", "batch_size", "pyramid_channels", "proposals", "seeds")
        check.at_least(32, "side")
        check.between(0, 0.5, "jitter")


def detection_learning_rate(config: DetectionConfig, step: int, steps: int) -> float:
    """The learning rate of a step, from 0, of so many.

    >>> config = DetectionConfig(learning_rate=1.0, warmup_steps=2, schedule="step")
    >>> [round(detection_learning_rate(config, step, 18), 3) for step in (0, 1, 2, 11, 12, 16)]
    [0.5, 1.0, 1.0, 1.0, 0.1, 0.01]
    """
    warmup = min(config.warmup_steps, steps // 4)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "step":
        # In whole numbers, as 2/3 is no float and a drop could come a step late.
        return config.learning_rate * 0.1 ** ((3 * step >= 2 * steps) + (9 * step >= 8 * steps))
    done = (step - warmup) / (steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class EmbedSettings:
    """How images become vectors."""

    layer: str = "h"
    """What to store: h, the encoder's features; of the head `hidden 1`, `hidden 2`, ..., g; or a
    layer of the encoder by its own name, as layer3 or blocks.5, averaged over places."""
    maps: bool = False
    """Store the layer's whole map, channels x height x width numbers, instead of the average. With
    h: the encoder's last map."""
    precision: Precision = "float32"
    """Numbers that vectors are stored in."""
    normalize: bool = False
    """Store vectors of length one."""
    crops: Literal["center", "five"] = "center"
    """Encode the centre of an image, or five crops (corners and centre), whose mean is taken."""
    batch_size: int = 256
    """Images that the network sees at once."""
    column: str | None = None
    """Of Parquet files: the column with the images; the run's when not given."""
    max_unreadable_share: float = 0.1
    """A shard with more unreadable images than this share is not finished."""

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "float16"):
            raise ConfigError(f"--precision is float32 or float16; got {self.precision!r}.")
        if self.crops not in ("center", "five"):
            raise ConfigError(f"--crops is center or five; got {self.crops!r}.")
        if self.maps and self.crops != "center":
            raise ConfigError(
                "--maps go with --crops center: maps of other crops are other places."
            )
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be positive; got {self.batch_size}.")
        if not 0 <= self.max_unreadable_share <= 1:
            raise ConfigError(
                f"--max-unreadable-share must lie between 0 and 1; got {self.max_unreadable_share}."
            )


@dataclass(frozen=True)
class ClassifierSettings:
    """How labelled images become a classifier."""

    kind: Literal["linear", "knn", "finetune"] = "linear"
    """A linear classifier on frozen features; the vote of the nearest labelled images; or encoder
    and linear classifier trained together, which takes minutes to hours."""
    crops: Literal["center", "five"] = "center"
    """What is seen of an image: its centre, or five crops (corners and centre), whose features are
    averaged; of linear and knn."""
    neighbours: int = 20
    """Of knn: images that vote."""
    knn_temperature: float = 0.07
    """Of knn: a vote weighs exp(cosine / temperature)."""
    epochs: int = 30
    """Of finetune: passes over the labelled images."""
    seed: int = 0
    """Of the parts that choose the penalty and the calibration, and of fine-tuning."""

    def __post_init__(self) -> None:
        check = Checks("classify", self)
        check.finite()
        check.at_least(1, "neighbours", "epochs")
        check.at_least(0.001, "knn_temperature")
        check.at_least(0, "seed")
        if self.crops == "five" and self.kind == "finetune":
            raise ConfigError("--crops five goes with linear and knn; fine-tuning sees the centre.")
