"""Labels that the neighbours contradict: confident learning on a vote of the nearest images.

Each image's classes get probabilities from its nearest others alone, never from its own label. A
class is confident in an image if it is at least as probable as it is on average for the images
that have its label, so that small classes are judged by their own measure. A label is suspected
where another class is confident and more probable (Northcutt, Jiang and Chuang 2021, section 3.1).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.curation.outliers import require_neighbours
from diptych.embeddings.neighbours import Neighbours, nearest
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE

_ROWS: Final = 4096  # whose probabilities are held at once


@dataclass(frozen=True, eq=False)
class Mislabelled:
    """What the neighbours say of each labelled image's label.

    Attributes:
        rows: int64 (labelled images,), of the set, those of suspected labels first and in each part
            the most doubtful first.
        suspected: how many are.
        labels: int64 (labelled images,), the given classes, in the order of ``rows``.
        suggested: the same, the most probable class that is another.
        own: float64 (labelled images,), probability of the given class.
        other: float64 (labelled images,), that of the suggested one.
        classes: their names.
        neighbours: how many voted.
    """

    rows: NDArray[np.int64]
    suspected: int
    labels: NDArray[np.int64]
    suggested: NDArray[np.int64]
    own: NDArray[np.float64]
    other: NDArray[np.float64]
    classes: tuple[str, ...]
    neighbours: int

    def sentences(self) -> list[str]:
        """What was found, in words."""
        return [
            f"Of {len(self.rows):,} labels of {len(self.classes)} classes {self.suspected:,} are "
            f"contradicted by the {self.neighbours} nearest images: another class is more probable "
            "than the given one, and as probable as it usually is for its own images.",
            "Look at each before you change it: the neighbours are wrong where the encoder is.",
        ]


def find_mislabelled(
    vectors: VectorSet,
    k: int = NEIGHBOURS,
    *,
    found: Neighbours | None = None,
    device: str = "cpu",
) -> Mislabelled:
    """Ranks labelled images by how much their k nearest labelled others contradict the label.

    Args:
        vectors: of the set.
        k: others that vote.
        found: k or more others of every image, if they are known already; of use where all images
            are labelled.
        device: where products are computed.

    Raises:
        EmbeddingsError: there are no labels.
        ConfigError: there is one class only, or no neighbour to look at.
    """
    require_neighbours(vectors, k)
    numbers, classes = vectors.classes()
    rows = np.flatnonzero(numbers >= 0)
    if len(classes) < 2:
        raise ConfigError(
            f"{vectors.source} has labels of one class, {classes[0]!r}; wanted two or more."
        )
    features, labels = vectors.features[rows], numbers[rows]
    if found is None or len(rows) < len(vectors):
        found = nearest(features, features, k, exclude_own_row=True, device=device)
    found = Neighbours(found.rows[:, :k], found.similarities[:, :k])
    voters = labels[found.rows]
    own = np.concatenate(
        [
            votes[np.arange(len(votes)), labels[start : start + len(votes)]]
            for start, votes in _votes(voters, found.similarities, len(classes))
        ]
    )
    usual = np.bincount(labels, own, len(classes)) / np.bincount(labels, minlength=len(classes))
    suggested, other = np.empty_like(labels), np.empty_like(own)
    suspected = np.empty(len(rows), bool)
    for start, votes in _votes(voters, found.similarities, len(classes)):
        some, each = slice(start, start + len(votes)), np.arange(len(votes))
        votes[each, labels[some]] = -1.0
        suggested[some] = votes.argmax(axis=1)
        other[some] = votes[each, suggested[some]]
        suspected[some] = (other[some] > own[some]) & (other[some] >= usual[suggested[some]])
    order = np.lexsort((own - other, ~suspected))
    return Mislabelled(
        rows[order],
        int(suspected.sum()),
        labels[order],
        suggested[order],
        own[order],
        other[order],
        classes,
        found.rows.shape[1],
    )


def _votes(
    voters: NDArray[np.int64], similarities: NDArray[np.float32], classes: int
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """The first row of a block, and (rows, classes) probabilities by weights exp(cosine / T)."""
    for start in range(0, len(voters), _ROWS):
        near = similarities[start : start + _ROWS].astype(np.float64)
        weights = np.exp((near - near[:, :1]) / TEMPERATURE)
        weights /= weights.sum(axis=1, keepdims=True)
        votes = np.zeros((len(near), classes))
        np.add.at(votes, (np.arange(len(near))[:, None], voters[start : start + _ROWS]), weights)
        yield start, votes
