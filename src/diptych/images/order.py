"""In which order images are visited: a pure function of the seed and the step.

The position of a run in its data is one integer, the step, so a resumed run meets the images that
the unbroken one would have met.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ConfigError

SMALLEST_BATCH = 2  # an image is told from another one
ORDER_STREAM = 0x4F524452  # "ORDR": keeps these draws apart from any other use of the seed


@dataclass(frozen=True)
class Order:
    """Batches of image indices, shuffled anew in each epoch.

    Attributes:
        seed: of the run.
        image_count: images in the set.
        batch_size: images in a batch. What is left over at the end of an epoch is not visited in
            that epoch; the next one shuffles anew.
    """

    seed: int
    image_count: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.image_count < SMALLEST_BATCH:
            raise ConfigError(
                f"contrast needs {SMALLEST_BATCH} images at least; got {self.image_count}. Give a "
                "path that holds more."
            )
        if self.image_count < self.batch_size:
            raise ConfigError(
                f"training.batch_size = {self.batch_size} needs at least that many images; got "
                f"{self.image_count}. Use --batch-size {self.image_count} or less."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.image_count // self.batch_size

    def batch(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a step, counted from 0, and the indices of its images, (batch,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return epoch, _shuffled(self.seed, epoch, self.image_count)[start : start + self.batch_size]


@lru_cache(maxsize=2)
def _shuffled(seed: int, epoch: int, image_count: int) -> NDArray[np.int64]:
    key = np.array([seed, ORDER_STREAM], dtype=np.uint64)
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, epoch], dtype=np.uint64))
    return np.random.Generator(bits).permutation(image_count)
