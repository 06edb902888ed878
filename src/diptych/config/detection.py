"""Settings of detection transfer, with units in the names. Imports no torch."""

import math
from dataclasses import dataclass
from typing import Final, Literal

from diptych.errors import ConfigError

DetectionNorm = Literal["frozen", "batch", "sync"]
DetectionSchedule = Literal["cosine", "step"]

USUAL_SIDE: Final = 800
"""Shorter side, in pixels, that Faster R-CNN's anchors of 32 to 512 pixels are made for."""


@dataclass(frozen=True)
class DetectionConfig:
    """How a Faster R-CNN with a feature pyramid is fine-tuned.

    Attributes:
        epochs: passes over the training images.
        batch_size: images in a batch.
        learning_rate: peak, of SGD with momentum 0.9.
        weight_decay: of every weight.
        schedule: after warm-up, a cosine to 0, or a tenth after 2/3 and again after 8/9 (as
            Detectron's 1x has it).
        warmup_steps: over which the rate rises linearly; a quarter of all steps at most.
        norm: of the backbone, see ``diptych.evaluation.detection.detector``.
        side: shorter side of an image, in pixels; the longer one is at most 5/3 of it.
        jitter: the shorter side is drawn from side x (1 - jitter) to side x (1 + jitter).
        pyramid_channels: of the feature pyramid; 256 in the paper.
        proposals: regions sampled per image to train the box head; 512 in the paper.
        seeds: detectors of each backbone.
    """

    epochs: int = 12
    batch_size: int = 4
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    schedule: DetectionSchedule = "cosine"
    warmup_steps: int = 100
    norm: DetectionNorm = "batch"
    side: int = 320
    jitter: float = 0.2
    pyramid_channels: int = 256
    proposals: int = 512
    seeds: int = 1

    def __post_init__(self) -> None:
        for name, lowest in _LOWEST.items():
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= lowest):
                raise ConfigError(f"detection: {name} must be {lowest} or more; got {value!r}.")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(
                f"detection: learning_rate must be positive; got {self.learning_rate}."
            )
        if self.jitter > _MOST_JITTER:
            raise ConfigError(
                f"detection: jitter must lie between 0 and {_MOST_JITTER}; got {self.jitter}."
            )


_LOWEST: Final[dict[str, float]] = {
    "epochs": 1,
    "batch_size": 1,
    "weight_decay": 0,
    "warmup_steps": 0,
    "side": 32,
    "jitter": 0,
    "pyramid_channels": 1,
    "proposals": 1,
    "seeds": 1,
}
_MOST_JITTER: Final = 0.5


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
        return config.learning_rate * 0.1 ** ((3 * step >= 2 * steps) + (9 * step >= 8 * steps))
    done = (step - warmup) / (steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
