"""Images that are far from all others, by the distance to their nearest neighbours."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.embeddings.neighbours import Neighbours, nearest
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError

NEIGHBOURS: Final = 10
_FAR: Final = 3.5  # modified z-scores, as Iglewicz and Hoaglin (1993) advise
_DEVIATIONS: Final = 0.6745  # median absolute deviation of a normal variable, in standard ones


@dataclass(frozen=True, eq=False)
class Outliers:
    """How far each image is from its neighbours.

    Attributes:
        distances: float64 (images,), mean cosine distance to the nearest ``neighbours`` images
            (Angiulli and Pizzuti 2002).
        scores: float64 (images,), modified z-scores of the logarithms of the distances.
        rows: int64 (images,), the farthest first.
        neighbours: how many of each image were looked at.
    """

    distances: NDArray[np.float64]
    scores: NDArray[np.float64]
    rows: NDArray[np.int64]
    neighbours: int

    @property
    def far(self) -> int:
        """Images with a score above 3.5; they stand first in ``rows``."""
        return int((self.scores > _FAR).sum())

    def sentences(self) -> list[str]:
        """What was found, in words."""
        return [
            f"An image's distance is the mean of (1 - cosine) to its {self.neighbours} nearest "
            f"others: {np.median(self.distances):.4f} in the median, {self.distances.max():.4f} at "
            "most.",
            f"{self.far:,} of {len(self.rows):,} images are outliers: their score, the modified z "
            f"of the distance's logarithm, exceeds {_FAR}.",
        ]


def find_outliers(
    vectors: VectorSet,
    k: int = NEIGHBOURS,
    *,
    found: Neighbours | None = None,
    device: str = "cpu",
) -> Outliers:
    """Ranks images by the mean distance to their k nearest others.

    One neighbour alone would hide two copies of a strange image; several do not.

    Args:
        vectors: of the set.
        k: others of each image.
        found: k or more of them, if they are known already.
        device: where products are computed.

    Raises:
        ConfigError: there is no neighbour to look at.
    """
    require_neighbours(vectors, k)
    if found is None:
        found = nearest(vectors.features, vectors.features, k, exclude_own_row=True, device=device)
    near = found.similarities[:, :k]
    distances = np.maximum(1 - near.astype(np.float64), 0).mean(axis=1)
    logs = np.log(np.maximum(distances, np.finfo(np.float32).eps))
    away = logs - np.median(logs)
    spread = float(np.median(np.abs(away)))
    scores = _DEVIATIONS * away / spread if spread else np.zeros_like(away)
    rows = np.argsort(-distances, kind="stable")
    return Outliers(distances, scores, rows, near.shape[1])


def require_neighbours(vectors: VectorSet, k: int) -> None:
    """Refuses to look at no neighbours.

    Raises:
        ConfigError: k is below one, or there is one image only.
    """
    if k < 1:
        raise ConfigError(f"--neighbours must be positive; got {k}.")
    if len(vectors) < 2:
        raise ConfigError(f"{vectors.source} has one image; wanted two or more.")
