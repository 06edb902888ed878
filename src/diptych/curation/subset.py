"""Which images to label next: far from those there are, like many others, typical, or uncertain.

All of them work on vectors of unit length, whose products are cosines. What is labelled already
counts as chosen. Products are computed in blocks, so the memory grows with the images and not with
their square.
"""

import csv
import heapq
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.curation.thumbnails import Thumbnails
from diptych.embeddings.neighbours import unit_length
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError, EmbeddingsError
from diptych.escaping import unescaped

Way = Literal["k-centre", "facility-location", "typical", "uncertain"]
Rows = NDArray[np.int64]

LABELS: Final = "labels"
"""Instead of a list of names: the images that have a label among the vectors."""

_BLOCK: Final = 1024  # images at once
_RECOUNTED: Final = 64  # candidates of facility location whose gains are computed together
_MOST_CLUSTERS: Final = 500
_LEAST_OF_A_CLUSTER: Final = 5
_NEIGHBOURS: Final = 20


class Chosen(NamedTuple):
    """Images to label, in the order in which they were chosen.

    Attributes:
        rows: int64 (chosen,), of the vectors.
        scores: (chosen,), what each was chosen for; ``SCORES`` says what that is.
    """

    rows: Rows
    scores: NDArray[np.float64]


SCORES: Final[Mapping[Way, str]] = {
    "k-centre": "distance to the nearest image that is labelled or was chosen before",
    "facility-location": "mean similarity that it adds, of all images to the nearest chosen one",
    "typical": "one over its mean distance to its neighbours in its cluster",
    "uncertain": "one minus the gap between the two most probable classes",
}


def choose_subset(
    features: NDArray[np.float32],
    budget: int,
    by: Way,
    *,
    labelled: Rows | None = None,
    probabilities: NDArray[np.float64] | None = None,
    seed: int = 0,
) -> Chosen:
    """Chooses images to label.

    Args:
        features: (images, dim).
        budget: images to choose, fewer than are not labelled.
        by: ``k-centre``, the farthest from all that are chosen, one after the other (Sener and
            Savarese 2018, 1708.00489); ``facility-location``, those to which all images are most
            similar, by lazy greedy (Minoux 1978), in a time that grows with the square of the
            images; ``typical``, of each cluster the image in its densest part (TypiClust, Hacohen
            et al. 2022, 2202.02794), for few labels; ``uncertain``, those of which a classifier is
            least sure, by the margin of its two best answers (Scheffer et al. 2001).
        labelled: rows that are labelled already.
        probabilities: (images, classes), for ``uncertain``.
        seed: of the clusters.

    Raises:
        ConfigError: the budget does not fit, or probabilities are missing.
    """
    own = np.unique(np.array([], dtype=np.int64) if labelled is None else labelled)
    if len(own) and (own[0] < 0 or own[-1] >= len(features)):
        raise ConfigError(f"labelled rows must lie from 0 to {len(features) - 1:,}; got {own}.")
    free = len(features) - len(own)
    if not 1 <= budget <= free:
        raise ConfigError(
            f"--budget must lie between 1 and {free:,}, the images without a label; got {budget:,}."
        )
    if by == "uncertain":
        if probabilities is None or len(probabilities) != len(features):
            raise ConfigError(
                "by uncertain needs a classifier: --model FOLDER, as `diptych classify fit` wrote "
                "it on the same encoder."
            )
        return _uncertain(probabilities, budget, own)
    unit = unit_length(features)
    if by == "typical":
        return _typical(unit, budget, own, seed)
    return (_k_centre if by == "k-centre" else _facility_location)(unit, budget, own)


def _k_centre(unit: Tensor, budget: int, labelled: Rows) -> Chosen:
    nearest = torch.full((len(unit),), -2.0)  # cosine of each image to the nearest chosen one
    for begin in range(0, len(labelled), _BLOCK):
        block = unit[torch.from_numpy(labelled[begin : begin + _BLOCK])]
        nearest = torch.maximum(nearest, (unit @ block.T).amax(dim=1))
    nearest[torch.from_numpy(labelled)] = torch.inf
    rows, scores = list[int](), list[float]()
    for _ in range(budget):
        # Without any, the one nearest to the mean of all begins.
        first = not rows and not len(labelled)
        row = int((unit @ unit.mean(dim=0)).argmax() if first else nearest.argmin())
        scores.append(2.0 if first else _distance(float(nearest[row])))
        nearest = torch.maximum(nearest, unit @ unit[row])
        nearest[row] = torch.inf
        rows.append(row)
    return Chosen(np.array(rows), np.array(scores))


def _distance(cosine: float) -> float:
    """Between two vectors of length one."""
    return float(np.sqrt(max(0.0, 2.0 - 2.0 * cosine)))


def _facility_location(unit: Tensor, budget: int, labelled: Rows) -> Chosen:
    """Greedy, with gains computed anew only where they may still be the largest.

    A gain can only fall as images are chosen, so one that was largest and stays above all others'
    old gains is the largest.
    """
    covered = torch.zeros(len(unit))  # similarity (1 + cosine) / 2 to the nearest chosen one
    for begin in range(0, len(labelled), _BLOCK):
        block = unit[torch.from_numpy(labelled[begin : begin + _BLOCK])]
        covered = torch.maximum(covered, ((1.0 + unit @ block.T) / 2).amax(dim=1))
    free = np.setdiff1d(np.arange(len(unit)), labelled)
    heap = [
        (-gain, int(row))
        for begin in range(0, len(free), _BLOCK)
        for gain, row in zip(
            _gains(unit, covered, free[begin : begin + _BLOCK]),
            free[begin : begin + _BLOCK],
            strict=True,
        )
    ]
    heapq.heapify(heap)
    rows, scores = list[int](), list[float]()
    while len(rows) < budget:
        gain, row = _largest(heap, partial(_gains, unit, covered))
        covered = torch.maximum(covered, (1.0 + unit @ unit[row]) / 2)
        rows.append(row)
        scores.append(gain / len(unit))
    return Chosen(np.array(rows), np.array(scores))


def _largest(
    heap: list[tuple[float, int]], gains: Callable[[Rows], list[float]]
) -> tuple[float, int]:
    """Takes the row with the largest gain from a heap of gains, most of them old."""
    fresh = list[tuple[float, int]]()
    while heap and (not fresh or heap[0] < min(fresh)):
        # Several at once: one product of matrices takes hardly longer than one of vectors.
        some = [heapq.heappop(heap)[1] for _ in range(min(_RECOUNTED, len(heap)))]
        counted = gains(np.array(some))
        fresh += [(-gain, row) for gain, row in zip(counted, some, strict=True)]
    best = min(fresh)
    fresh.remove(best)
    for one in fresh:
        heapq.heappush(heap, one)
    return -best[0], best[1]


def _gains(unit: Tensor, covered: Tensor, rows: Rows) -> list[float]:
    """What each row would add to the similarities of all images to the nearest chosen one."""
    candidates = unit[torch.from_numpy(rows)]
    found = torch.zeros(len(rows), dtype=torch.float64)
    for begin in range(0, len(unit), 8 * _BLOCK):
        some = unit[begin : begin + 8 * _BLOCK]
        similar = (some @ candidates.T).add_(1.0).div_(2.0)
        similar.sub_(covered[begin : begin + len(some), None]).clamp_(min=0.0)
        found += similar.sum(dim=0, dtype=torch.float64)
    gains: list[float] = found.tolist()
    return gains


def _typical(unit: Tensor, budget: int, labelled: Rows, seed: int) -> Chosen:
    """One image after the other from the largest of the clusters with the fewest that are chosen.

    A cluster of fewer than five images is passed over as long as others have any left.
    """
    from sklearn.cluster import KMeans, MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    count = min(len(labelled) + budget, _MOST_CLUSTERS, len(unit))
    method = KMeans if count <= 50 else MiniBatchKMeans
    with warnings.catch_warnings():
        # Copies of images may leave clusters empty, which does no harm here.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = method(count, n_init=1, random_state=seed).fit_predict(unit.numpy())
    sizes = np.bincount(clusters, minlength=count)
    taken = np.bincount(clusters[labelled], minlength=count)
    own = np.zeros(len(unit), dtype=np.bool_)
    own[labelled] = True
    waiting = {
        cluster: _by_typicality(unit, np.flatnonzero(clusters == cluster), own)
        for cluster in range(count)
    }
    rows, scores = list[int](), list[float]()
    while len(rows) < budget:
        able = [cluster for cluster, left in waiting.items() if left]
        large = [cluster for cluster in able if sizes[cluster] >= _LEAST_OF_A_CLUSTER]
        cluster = min(large or able, key=lambda one: (taken[one], -sizes[one], one))
        score, row = waiting[cluster].pop()
        taken[cluster] += 1
        rows.append(row)
        scores.append(score)
    return Chosen(np.array(rows), np.array(scores))


def _by_typicality(unit: Tensor, members: Rows, own: NDArray[np.bool_]) -> list[tuple[float, int]]:
    """The members that are not labelled, the most typical last."""
    inside = unit[torch.from_numpy(members)]
    k = min(_NEIGHBOURS, len(members) - 1)
    found = list[tuple[float, int]]()
    for begin in range(0, len(members), _BLOCK):
        some = members[begin : begin + _BLOCK]
        cosines = inside[begin : begin + _BLOCK] @ inside.T
        cosines[torch.arange(len(some)), begin + torch.arange(len(some))] = -torch.inf
        near = cosines.topk(k, dim=1).values if k else cosines.new_ones(len(some), 1)
        distance = (2.0 - 2.0 * near).clamp(min=0.0).sqrt().mean(dim=1)
        typical = (1.0 / distance.clamp(min=1e-6)).tolist()
        found += [(one, int(row)) for one, row in zip(typical, some, strict=True) if not own[row]]
    return sorted(found, key=lambda one: (one[0], -one[1]))


def _uncertain(probabilities: NDArray[np.float64], budget: int, labelled: Rows) -> Chosen:
    two = np.sort(probabilities, axis=1)[:, -2:]
    doubt = 1.0 - (two[:, 1] - two[:, 0])
    doubt[labelled] = -np.inf
    rows = np.argsort(-doubt, kind="stable")[:budget]
    return Chosen(rows, doubt[rows])


# --- what is labelled -----------------------------------------------------------------------------


@dataclass(frozen=True)
class AlreadyLabelled:
    """Images that are labelled already.

    Attributes:
        rows: of the vectors.
        unknown: names in the list that are none of the vectors'.
    """

    rows: Rows
    unknown: int = 0


def find_labelled(vectors: VectorSet, given: str | None) -> AlreadyLabelled:
    """The images that are labelled already, as rows of the vectors.

    Args:
        vectors: of all images.
        given: None for none; ``labels`` for those with a label among the vectors; a table that ends
            in .csv with a column ``name``; or a list of names or files, one a line, as
            `diptych subset -o next.txt` writes it.

    Raises:
        EmbeddingsError: the vectors have no labels, or the list has none of their names.
        ConfigError: the list cannot be read.
    """
    if given is None:
        return AlreadyLabelled(np.array([], dtype=np.int64))
    if given == LABELS:
        numbers, _ = vectors.classes()
        return AlreadyLabelled(np.flatnonzero(numbers >= 0))
    place = {name: row for row, name in enumerate(vectors.names)}
    names = _names(Path(given))
    if any(os.path.isabs(name) for name in names):
        names = _by_files(names, vectors)
    rows = np.unique(np.array([place[name] for name in names if name in place], dtype=np.int64))
    unknown = sum(name not in place for name in names)
    if not len(rows):
        raise EmbeddingsError(
            f"--labelled {given}: none of its {len(names):,} names is one of {vectors.source}, as "
            f"{vectors.names[0]!r}. Wanted names as they stand there."
        )
    return AlreadyLabelled(rows, unknown)


def _by_files(names: Sequence[str], vectors: VectorSet) -> list[str]:
    """The same names, in the place of the path of an image's file its name among the vectors."""
    files = Thumbnails.of(vectors)
    found = ((files.file(row), name) for row, name in enumerate(vectors.names))
    known = {os.path.abspath(file): name for file, name in found if file is not None}
    return [known.get(name, name) for name in names]


def _names(file: Path) -> list[str]:
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            if file.suffix.lower() == ".csv":
                return [unescaped(row["name"]) for row in csv.DictReader(opened, strict=True)]
            lines = (line.strip() for line in opened)
            return [unescaped(line) for line in lines if line and not line.startswith("#")]
    except FileNotFoundError as error:
        raise ConfigError(
            f"--labelled {file} is not there: wanted a table with a column 'name', a list of names "
            f"one a line, or the word {LABELS!r} for those with a label among the vectors."
        ) from error
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"--labelled {file} cannot be read: {error}.") from error
    except KeyError as error:
        raise ConfigError(f"--labelled {file}: wanted a column 'name'.") from error
