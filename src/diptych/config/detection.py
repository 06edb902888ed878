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
