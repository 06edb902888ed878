"""What to look at first: copies, outliers, contradicted labels, and clusters."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.curation.copies import Copies, find_copies
from diptych.curation.mislabelled import Mislabelled, find_mislabelled
from diptych.curation.outliers import Outliers, find_outliers
from diptych.embeddings.neighbours import Neighbours, unit_length
from diptych.embeddings.vectors import VectorSet
from diptych.errors import DiptychError
from diptych.gallery.shown_runs import Rows

SHOWN: Final = 60
"""Rows of an item that are sent; a cluster may have many more."""

_SEED: Final = 0


class Item(NamedTuple):
    """Images that belong together, with a score for each and a line of text."""

    rows: list[int]
    scores: list[float]
    text: str


@dataclass(frozen=True)
class Panel:
    """A list of items, which are made as they are asked for.

    Attributes:
        words: how it was found, in a sentence or two.
        total: items.
        item: the item at a place.
    """

    words: str
    total: int
    item: Callable[[int], Item]


@dataclass(frozen=True, eq=False)
class Clusters:
    """A division of all images by k-means.

    Attributes:
        of: int64 (images,), the cluster of each, the largest cluster first.
        closeness: float32 (images,), cosine to the centre.
        count: of clusters.
    """

    of: Rows
    closeness: NDArray[np.float32]
    count: int

    def members(self, cluster: int) -> Rows:
        """Rows of a cluster, the most typical first."""
        rows = np.flatnonzero(self.of == cluster)
        return rows[np.argsort(-self.closeness[rows], kind="stable")]


def find_clusters(vectors: VectorSet) -> Clusters:
    """Divides images by k-means on vectors of unit length, always in the same way."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    unit = unit_length(vectors.features).numpy()
    count = int(np.clip(round(len(unit) ** 0.5 / 4), min(2, len(unit)), 40))
    with warnings.catch_warnings():
        # Copies of images may leave clusters empty, which does no harm here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = MiniBatchKMeans(count, n_init=3, random_state=_SEED).fit(unit)
    numbers = found.labels_.astype(np.int64)
    centres = unit_length(found.cluster_centers_.astype(np.float32)).numpy()
    sizes = np.bincount(numbers, minlength=count)
    place = np.empty(count, np.int64)
    place[np.argsort(-sizes, kind="stable")] = np.arange(count)
    closeness = np.einsum("nd,nd->n", unit, centres[numbers])
    return Clusters(place[numbers], closeness.astype(np.float32), int((sizes > 0).sum()))


@dataclass(frozen=True, eq=False)
class Findings:
    """All that was found in a set; a sentence instead where something could not be looked for."""

    copies: Copies | str
    outliers: Outliers | str
    mislabelled: Mislabelled | str
    clusters: Clusters | str

    @classmethod
    def of(cls, vectors: VectorSet, near: Neighbours) -> "Findings":
        """Looks for all of it, with the nearest others of each image."""

        def tried(find: Callable[[], Any]) -> Any:
            try:
                return find()
            except DiptychError as error:
                return str(error)

        return cls(
            tried(lambda: find_copies(vectors, found=near)),
            tried(lambda: find_outliers(vectors, found=near)),
            tried(lambda: find_mislabelled(vectors, found=near)),
            tried(lambda: find_clusters(vectors)),
        )

    def panels(self) -> dict[str, Panel]:
        """As the page shows them."""
        return {
            "copies": _or_empty(self.copies, _copies_panel),
            "outliers": _or_empty(self.outliers, _outliers_panel),
            "contradicted": _or_empty(self.mislabelled, _contradicted_panel),
            "clusters": _or_empty(self.clusters, _clusters_panel),
        }


def _or_empty(found: Any, panel: Callable[[Any], Panel]) -> Panel:
    if isinstance(found, str):
        return Panel(found, 0, lambda place: Item([], [], ""))
    return panel(found)


def _copies_panel(found: Copies) -> Panel:
    groups = found.groups()

    def item(place: int) -> Item:
        rows = groups[place]
        shown = rows[:SHOWN]
        exact = int(found.exact[rows[1:]].sum())
        text = f"{len(rows):,} images" + (f", {exact:,} the same as the first" if exact else "")
        return Item(shown.tolist(), found.distances[shown].tolist(), text)

    words = (
        f"Groups of images within a distance (1 - cosine) of {found.threshold.distance:.4f}: "
        f"{len(found.copies()):,} images can be left out of {len(found.kept):,}."
    )
    return Panel(words, len(groups), item)


def _outliers_panel(found: Outliers) -> Panel:
    def item(place: int) -> Item:
        row = int(found.rows[place])
        score = float(found.scores[row])
        text = f"distance {found.distances[row]:.3f}, score {score:.1f}"
        return Item([row], [score], text)

    return Panel(" ".join(found.sentences()), len(found.rows), item)


def _contradicted_panel(found: Mislabelled) -> Panel:
    def item(place: int) -> Item:
        score = float(found.other[place] - found.own[place])
        given = found.classes[found.labels[place]]
        other = found.classes[found.suggested[place]]
        text = f"labelled {given}; neighbours say {other} ({found.other[place]:.0%})"
        return Item([int(found.rows[place])], [score], text)

    return Panel(" ".join(found.sentences()), found.suspected, item)


def _clusters_panel(found: Clusters) -> Panel:
    def item(place: int) -> Item:
        rows = found.members(place)
        shown = rows[:SHOWN]
        return Item(shown.tolist(), found.closeness[shown].tolist(), f"{len(rows):,} images")

    words = (
        f"{found.count} clusters by k-means on vectors of unit length; the first image of each is "
        "the nearest to its centre."
    )
    return Panel(words, found.count, item)
