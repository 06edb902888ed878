"""The images of a gallery: one set of vectors, and perhaps another one of the same images."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.embeddings.neighbours import Neighbours, nearest
from diptych.embeddings.vectors import VectorSet
from diptych.errors import EmbeddingsError
from diptych.runs.atomic import atomic_path

Rows = NDArray[np.int64]

NEIGHBOURS: Final = 20
"""Nearest images of each that are kept: as many as any panel looks at."""

MOST_IMAGES: Final = 2_000_000

_DIGEST_LETTERS: Final = 16


@dataclass(frozen=True, eq=False)
class Run:
    """The vectors of one encoder for images of the gallery.

    Attributes:
        name: ``A`` or ``B``.
        vectors: of images that the gallery has, in its order.
        rows: int64 (vectors,), the image of the gallery that each is of.
        places: int64 (images of the gallery,), the vector of each; -1 for none.
        digest: changes when vectors, names or labels do.
    """

    name: str
    vectors: VectorSet
    rows: Rows
    places: Rows
    digest: str

    def nearest_to(self, query: NDArray[np.float32], k: int) -> Neighbours:
        """The k images nearest to a vector (dim,), as rows of the gallery; each array is (k,)."""
        found = nearest(query[None], self.vectors.features, k)
        return Neighbours(self.rows[found.rows[0]], found.similarities[0])

    def nearest_to_row(self, row: int, k: int) -> Neighbours:
        """The k images nearest to an image of the gallery, without itself.

        Raises:
            EmbeddingsError: this run has no vector of it.
        """
        place = int(self.places[row])
        if place < 0:
            raise EmbeddingsError(f"Run {self.name} has no vector of image {row}.")
        found = self.nearest_to(self.vectors.features[place], k + 1)
        others = found.rows != row
        # Of more than k copies the image itself may not be among those found.
        others[-1] &= not others.all()
        return Neighbours(found.rows[others], found.similarities[others])


@dataclass(frozen=True, eq=False)
class Runs:
    """One run, or two of the same images.

    Attributes:
        first: of all images of the gallery.
        second: to compare with, if any.
    """

    first: Run
    second: Run | None = None

    def __len__(self) -> int:
        return len(self.first.vectors)

    def __iter__(self) -> Iterator[Run]:
        return iter([self.first] if self.second is None else [self.first, self.second])

    @property
    def names(self) -> Sequence[str]:
        """Of the images."""
        return self.first.vectors.names

    def by_name(self) -> Mapping[str, Run]:
        """The runs by their names."""
        return {run.name: run for run in self}


def open_runs(vectors: VectorSet, against: VectorSet | None = None) -> Runs:
    """Puts the vectors of two encoders side by side, by the names of the images.

    Raises:
        EmbeddingsError: a name is there twice, there are too many images, or the two sets have none
            in common.
    """
    if len(vectors) > MOST_IMAGES:
        raise EmbeddingsError(
            f"{vectors.source} has {len(vectors):,} images; a gallery shows {MOST_IMAGES:,} at "
            "most. Embed a part of them."
        )
    _require_distinct(vectors)
    every = np.arange(len(vectors))
    first = Run("A", vectors, every, every, digest_of(vectors))
    if against is None:
        return Runs(first)
    _require_distinct(against)
    place = {name: index for index, name in enumerate(against.names)}
    found = np.array([place.get(name, -1) for name in vectors.names], np.int64)
    rows = np.flatnonzero(found >= 0)
    if not len(rows):
        raise EmbeddingsError(
            f"{against.source} has no image of {vectors.source}: wanted vectors of the same "
            f"images, with the same names, as {vectors.names[0]!r}."
        )
    places = np.full(len(vectors), -1, np.int64)
    places[rows] = np.arange(len(rows))
    common = _select(against, found[rows])
    return Runs(first, Run("B", common, rows, places, digest_of(common)))


def digest_of(vectors: VectorSet) -> str:
    """Some letters that change when vectors, names or labels do."""
    digest = hashlib.sha256(repr(vectors.features.shape).encode())
    digest.update(np.ascontiguousarray(vectors.features, "<f4").data)
    for texts in (vectors.names, vectors.labels or ()):
        digest.update(b"\0\0")
        for text in texts:
            digest.update(b"\0" if text is None else text.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()[:_DIGEST_LETTERS]


def kept_array(
    folder: Path, name: str, digest: str, make: Callable[[], NDArray[np.generic]]
) -> NDArray[np.generic]:
    """An array that is made once, and again when what it follows from has changed.

    Args:
        folder: where it is kept, as ``NAME-DIGEST.npy``; others of that name are removed.
        name: what it is.
        digest: of what it follows from.
        make: gives it.
    """
    file = folder / f"{name}-{digest}.npy"
    try:
        return np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # not there, or damaged: made anew
        made = make()
    for old in folder.glob(f"{name}-*.npy"):
        old.unlink(missing_ok=True)
    with atomic_path(file) as temporary, open(temporary, "wb") as opened:
        np.save(opened, made, allow_pickle=False)
    return made


def _require_distinct(vectors: VectorSet) -> None:
    seen = set[str]()
    for name in vectors.names:
        if name in seen:
            raise EmbeddingsError(
                f"{vectors.source} has two images called {name!r}: wanted a name of its own for "
                "each, by which labels are kept."
            )
        seen.add(name)


def _select(vectors: VectorSet, rows: Rows) -> VectorSet:
    labels = vectors.labels
    return VectorSet(
        vectors.source,
        vectors.features[rows],
        [vectors.names[row] for row in rows.tolist()],
        None if labels is None else [labels[row] for row in rows.tolist()],
        None,
        vectors.settings,
        vectors.path,
    )
