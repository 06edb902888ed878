"""What embeddings are made of, apart from the encoder and the images. Imports no torch."""

from dataclasses import dataclass
from typing import Literal

from diptych.errors import ConfigError

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class EmbedSettings:
    """How images become vectors."""

    layer: str = "h"
    """What to store: h, the encoder's features; or of the head `hidden 1`, `hidden 2`, ..., g."""
    precision: Precision = "float32"
    """Numbers that vectors are stored in."""
    normalize: bool = False
    """Store vectors of length one."""
    crops: Literal["center", "five"] = "center"
    """What is seen of an image: its centre, or the mean over five views, corners and centre."""
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
        if self.batch_size < 1:
            raise ConfigError(f"--batch-size must be positive; got {self.batch_size}.")
        if not 0 <= self.max_unreadable_share <= 1:
            raise ConfigError(
                f"--max-unreadable-share must lie between 0 and 1; got {self.max_unreadable_share}."
            )
