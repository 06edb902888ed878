"""Exact and near copies among images, and between two sets, from their vectors.

Of each group one image is kept, and what is left out is no farther from it than the threshold; no
two kept ones are as near. So a chain of images of which each is near the next, such as the frames
of a film, is not taken for copies of its first one. Nothing is deleted.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.curation.threshold import (
    NEIGHBOURS,
    SAME,
    CopyThreshold,
    fit_threshold,
    given_threshold,
)
from diptych.embeddings.neighbours import Neighbours, nearest, unit_length
from diptych.embeddings.vectors import VectorSet, require_comparable
from diptych.errors import ConfigError

Prefer = Callable[[NDArray[np.int64]], NDArray[np.floating]]

_ROWS: Final = 512  # of queries that are searched again at once
_MOST_PAIRS: Final = 50_000_000


@dataclass(frozen=True, eq=False)
class Copies:
    """Groups of copies in one set.

    Attributes:
        threshold: what counts as a copy.
        kept: int64 (images,), row of the image of its group that is kept, itself if it is.
        distances: float32 (images,), cosine distance to that.
        exact: bool (images,), it has the bytes or the vector of the kept image.
        nearest: float32 (images,), distance to the nearest other image.
        neighbours: int64 (images,), which that is.
    """

    threshold: CopyThreshold
    kept: NDArray[np.int64]
    distances: NDArray[np.float32]
    exact: NDArray[np.bool_]
    nearest: NDArray[np.float32]
    neighbours: NDArray[np.int64]

    def copies(self) -> NDArray[np.int64]:
        """Rows that can be left out."""
        return np.flatnonzero(self.kept != np.arange(len(self.kept)))

    def groups(self) -> list[NDArray[np.int64]]:
        """Rows of each group, the kept one first, then by distance; the largest group first."""
        rows = self.copies()
        # Sorted twice, so that the distance decides within a group.
        rows = rows[np.lexsort((rows, self.distances[rows]))]
        rows = rows[np.argsort(self.kept[rows], kind="stable")]
        heads, starts = np.unique(self.kept[rows], return_index=True)
        members = np.split(rows, starts[1:]) if len(heads) else []
        found = [np.append(head, some) for head, some in zip(heads, members, strict=True)]
        return sorted(found, key=lambda group: (-len(group), int(group[0])))

    def conflicts(self, vectors: VectorSet) -> int:
        """Groups whose images have different labels."""
        labels = vectors.labels
        if labels is None:
            return 0
        named = [{labels[int(row)] for row in group} - {None} for group in self.groups()]
        return sum(len(one) > 1 for one in named)


@dataclass(frozen=True, eq=False)
class Overlap:
    """The nearest image of one set to each image of another.

    Attributes:
        threshold: what counts as a copy.
        rows: int64 (images,), of the first set.
        distances: float32 (images,), cosine distance to them.
        exact: bool (images,), it has the same bytes or the same vector.
    """

    threshold: CopyThreshold
    rows: NDArray[np.int64]
    distances: NDArray[np.float32]
    exact: NDArray[np.bool_]

    def copies(self) -> NDArray[np.int64]:
        """Rows of the second set that are copies of an image of the first, the nearest first."""
        found = np.flatnonzero((self.distances <= self.threshold.distance) | self.exact)
        return found[np.argsort(self.distances[found], kind="stable")]


def find_copies(
    vectors: VectorSet,
    threshold: float | None = None,
    *,
    prefer: Prefer | None = None,
    found: Neighbours | None = None,
    device: str = "cpu",
) -> Copies:
    """Groups of exact and near copies; see ``Copies``.

    Args:
        vectors: of the set.
        threshold: largest cosine distance of copies; chosen by ``fit_threshold`` when not given.
        prefer: given the rows that have copies, says for all (images,) how much each is worth; of
            a group the image with the most is kept, and of equals the first row.
        found: the 16 nearest others of each image, or more, if they are known already.
        device: where products are computed.

    Raises:
        ConfigError: the threshold is no distance, or so large that nearly all pairs are near.
    """
    _check(threshold)
    count = len(vectors)
    same = _same(vectors)
    if found is None:
        found = nearest(
            vectors.features, vectors.features, NEIGHBOURS, exclude_own_row=True, device=device
        )
    found = Neighbours(found.rows[:, :NEIGHBOURS], found.similarities[:, :NEIGHBOURS])
    distances = _distances(found.similarities)
    first = distances[:, 0] if distances.shape[1] else np.ones(count, np.float32)
    chosen = _threshold(distances, threshold)
    pairs = _near_pairs(vectors, found.rows, distances, chosen.distance, device)
    alone = np.bincount(same, minlength=count)[same] == 1
    rows = np.flatnonzero(np.array([len(some) > 0 for some in pairs], dtype=bool) | ~alone)
    kept = _keep(count, pairs, same, np.zeros(count) if prefer is None else prefer(rows))
    apart = _apart(vectors, kept)
    return Copies(
        chosen,
        kept,
        apart,
        (same == same[kept]) | (apart <= SAME),
        first,
        found.rows[:, 0] if distances.shape[1] else np.zeros(count, np.int64),
    )


def find_overlap(
    learned: VectorSet, tested: VectorSet, threshold: float | None = None, *, device: str = "cpu"
) -> Overlap:
    """The nearest image of ``learned`` to each of ``tested``, and which of them are copies.

    Raises:
        EmbeddingsError: their vectors are not of the same encoder and layer.
        ConfigError: the threshold is no distance.
    """
    _check(threshold)
    require_comparable(learned, tested)
    found = nearest(tested.features, learned.features, NEIGHBOURS, device=device)
    near = _distances(found.similarities)
    rows, distances = found.rows[:, 0].copy(), near[:, 0].copy()
    exact = distances <= SAME
    if learned.checksums is not None and tested.checksums is not None:
        places = {checksum: row for row, checksum in enumerate(learned.checksums)}
        for row, checksum in enumerate(tested.checksums):
            if checksum in places:
                rows[row], distances[row], exact[row] = places[checksum], 0.0, True
    return Overlap(_threshold(near, threshold), rows, distances, exact)


def _check(threshold: float | None) -> None:
    if threshold is not None and not 0 <= threshold <= 2:
        raise ConfigError(
            f"--threshold is a cosine distance (1 - cosine) from 0 to 2; got {threshold}."
        )


def _distances(similarities: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.maximum(1 - similarities, 0)


def _threshold(distances: NDArray[np.float32], given: float | None) -> CopyThreshold:
    if given is None and distances.shape[1]:
        return fit_threshold(distances)
    first = distances[:, 0] if distances.shape[1] else np.ones(len(distances))
    return given_threshold(first, SAME if given is None else given)


def _same(vectors: VectorSet) -> NDArray[np.int64]:
    """(images,): equal numbers for images with the same bytes."""
    checksums: Sequence[bytes] | None = vectors.checksums
    if checksums is None:
        return np.arange(len(vectors))
    first = dict[bytes, int]()
    return np.array([first.setdefault(one, row) for row, one in enumerate(checksums)])


def _near_pairs(
    vectors: VectorSet,
    rows: NDArray[np.int64],
    distances: NDArray[np.float32],
    most: float,
    device: str,
) -> list[NDArray[np.int64]]:
    """For each image the others no farther than ``most``."""
    near = [some[apart <= most] for some, apart in zip(rows, distances, strict=True)]
    others = len(vectors) - 1
    full = np.array([len(some) == NEIGHBOURS < others for some in near], dtype=bool)
    pairs = sum(map(len, near))
    # Only an image whose last neighbour is that near too may have more.
    for row, some in _within(vectors, np.flatnonzero(full), most, device):
        pairs += len(some) - len(near[row])
        near[row] = some
        if pairs > _MOST_PAIRS:
            raise ConfigError(
                f"more than {_MOST_PAIRS:,} pairs of images are no farther apart than {most:.4f}. "
                "Give a smaller --threshold; see that the encoder tells images apart."
            )
    return near


def _within(
    vectors: VectorSet, wanted: NDArray[np.int64], most: float, device: str
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The rows within a distance of each wanted row, without itself."""
    if not len(wanted):
        return
    unit = unit_length(vectors.features).to(device)
    for some in np.split(wanted, range(_ROWS, len(wanted), _ROWS)):
        close = torch.nonzero(unit[torch.from_numpy(some)] @ unit.T >= 1 - most).cpu().numpy()
        for place, row in enumerate(some.tolist()):
            found = close[np.searchsorted(close[:, 0], place) :, :]
            found = found[: np.searchsorted(found[:, 0], place, side="right"), 1]
            yield row, found[found != row]


def _keep(
    count: int,
    near: list[NDArray[np.int64]],
    same: NDArray[np.int64],
    prefer: NDArray[np.floating],
) -> NDArray[np.int64]:
    """(images,): the kept image of each one's group, chosen in the order of preference."""
    alike: dict[int, list[int]] = {}
    for row, first in enumerate(same.tolist()):
        alike.setdefault(first, []).append(row)
    kept = np.full(count, -1, np.int64)
    for row in np.lexsort((np.arange(count), -prefer)).tolist():
        if kept[row] < 0:
            kept[row] = row
            others = np.concatenate([near[row], alike[int(same[row])]]).astype(np.int64)
            kept[others[kept[others] < 0]] = row
    return kept


def _apart(vectors: VectorSet, kept: NDArray[np.int64]) -> NDArray[np.float32]:
    """(images,), each one's distance to the kept image of its group."""
    distances = np.zeros(len(kept), np.float32)
    rows = np.flatnonzero(kept != np.arange(len(kept)))
    ours, theirs = unit_length(vectors.features[rows]), unit_length(vectors.features[kept[rows]])
    distances[rows] = _distances((ours * theirs).sum(dim=1).numpy())
    return distances
