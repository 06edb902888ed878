"""What embeddings are made of, apart from the encoder and the images. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from diptych.errors import ConfigError

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class EmbedSettings:
    """How images become vectors.

    Attributes:
        layer: ``h``, the encoder's features; ``hidden 1`` and so on, or ``g``, of the head.
        precision: numbers that the vectors are stored in.
        normalize: to length one, for cosines.
        crops: what is seen of an image: its centre, or the mean over five views.
        batch_size: images that the network sees at once.
        column: of Parquet files: the one with the images; the run's when not given.
        max_unreadable_share: a shard with more unreadable images is not finished.
    """

    layer: str = "h"
    precision: Precision = "float32"
    normalize: bool = False
    crops: Literal["center", "five"] = "center"
    batch_size: int = 256
    column: str | None = None
    max_unreadable_share: float = 0.1

    def __post_init__(self) -> None:
        if self.precision not in ("float32", "float16"):
            raise ConfigError(f"--precision is float32 or float16; got {self.precision!r}.")
        if self.crops not in ("center", "five"):
            raise ConfigError(f"--crops is center or five; got {self.crops!r}.")
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be positive; got {self.batch_size}.")
        if not 0 <= self.max_unreadable_share <= 1:
            raise ConfigError(
                f"--max-unreadable-share must lie between 0 and 1; got {self.max_unreadable_share}."
            )
