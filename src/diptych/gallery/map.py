"""The map: a point of the plane for each image, near those of similar images, by UMAP.

UMAP (McInnes, Healy and Melville 2018, 1802.03426) is given the exact neighbours that are known
already, begins with the two directions in which vectors vary most, and uses one thread and one
seed, so the same vectors have the same map at every call on one machine.

It runs in a process of its own: it compiles for ten seconds at its first run, and holds Python's
lock meanwhile, which would hold up the server. Arrays go there and back as .npy files.
"""

import re
import subprocess
import sys
import tempfile
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.embeddings.neighbours import Neighbours, unit_length
from diptych.gallery.pieces import Failed, Progress

SEED: Final = 0
NEIGHBOURS: Final = 15
"""Of each image, itself included, as UMAP counts them."""

_LEAST_DISTANCE: Final = 0.1  # of points on the map; UMAP's own
_NEGATIVES: Final = 5
_FEW: Final = 8  # images, too few for a graph of neighbours
_SMALL: Final = 10_000  # images, up to which more epochs are worth their time
_ROWS: Final = 20_000  # that the first directions are found from
_LINES: Final = 20  # of what the process said, kept for an error


class MapProcess:
    """A process that draws one map; starts at once, so that it loads while neighbours are found."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="diptych-map-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "diptych.gallery.map", self._folder.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def draw(
        self, features: NDArray[np.float32], found: Neighbours, progress: Progress
    ) -> NDArray[np.float32]:
        """(images, 2) in [-1, 1].

        Args:
            features: (images, dim).
            found: 14 or more nearest others of each image.
            progress: called with the share that is done.

        Raises:
            Failed: the process ended before it was done.
        """
        folder = Path(self._folder.name)
        np.save(folder / "rows.npy", found.rows[:, : NEIGHBOURS - 1].astype(np.int32))
        np.save(folder / "similarities.npy", found.similarities[:, : NEIGHBOURS - 1])
        np.save(folder / "start.npy", first_directions(features))
        process = self._process
        assert process.stdin is not None
        assert process.stderr is not None
        said = list[str]()
        try:
            process.stdin.write("begin\n")
            process.stdin.close()
            for line in process.stderr:  # also ends at the carriage returns of a progress bar
                share = re.search(r"(\d+)%\|", line)
                if share is not None:
                    progress(int(share[1]) / 100)
                said = [*said, line.strip()][-_LINES:]
        except BrokenPipeError:
            pass
        if process.wait() != 0:
            raise Failed(f"The map could not be drawn: {' '.join(said[-3:])}")
        return np.load(folder / "map.npy", allow_pickle=False)

    def close(self) -> None:
        """Ends the process, if it still runs, and removes its files."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stderr):
            with suppress(OSError):  # what could not be written to it any more
                if stream is not None:
                    stream.close()
        self._folder.cleanup()


def first_directions(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """(images, 2): vectors of unit length along the two directions in which they vary most."""
    unit = unit_length(features).numpy()
    some = unit[:: max(1, len(unit) // _ROWS)].astype(np.float64)
    middle = some.mean(axis=0)
    spread = (some - middle).T @ (some - middle)
    _, directions = np.linalg.eigh(spread)
    points = (unit - middle.astype(np.float32)) @ directions[:, ::-1][:, :2].astype(np.float32)
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1])))


def umap_of(
    found: Neighbours, start: NDArray[np.float32], *, verbose: bool = False
) -> NDArray[np.float32]:
    """UMAP's points (images, 2), in [-1, 1].

    Args:
        found: 14 nearest others of each image.
        start: (images, 2), where the points begin.
        verbose: print a progress bar.
    """
    count = len(start)
    if count < _FEW:
        return fit_square(start)
    from umap.umap_ import find_ab_params, fuzzy_simplicial_set, simplicial_set_embedding

    own = np.arange(count, dtype=np.int32)[:, None]
    rows = np.concatenate([own, found.rows.astype(np.int32)], axis=1)
    distances = np.concatenate(
        [np.zeros((count, 1)), np.maximum(1 - found.similarities, 0)], axis=1
    )
    random = np.random.RandomState(SEED)  # the kind that UMAP takes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own affairs, such as images without neighbours
        graph, _, _ = fuzzy_simplicial_set(
            start,
            rows.shape[1],
            random,
            "cosine",
            knn_indices=rows,
            knn_dists=distances.astype(np.float32),
        )
        a, b = find_ab_params(1.0, _LEAST_DISTANCE)
        points, _ = simplicial_set_embedding(
            start,
            graph,
            n_components=2,
            initial_alpha=1.0,
            a=a,
            b=b,
            gamma=1.0,
            negative_sample_rate=_NEGATIVES,
            n_epochs=500 if count <= _SMALL else 200,
            init=_scaled(start),
            random_state=random,
            metric="cosine",
            metric_kwds={},
            densmap=False,
            densmap_kwds={},
            output_dens=False,
            parallel=False,
            verbose=verbose,
        )
    return fit_square(points)


def _scaled(start: NDArray[np.float32]) -> NDArray[np.float32]:
    """As UMAP scales what it begins with, and with noise that sets copies apart."""
    noise = np.random.default_rng(SEED).normal(scale=1e-4, size=start.shape)
    return (10 * start / (np.abs(start).max() or 1.0) + noise).astype(np.float32)


def fit_square(points: NDArray[np.floating]) -> NDArray[np.float32]:
    """Moves and scales points so that they fill [-1, 1] in their longer direction."""
    low, high = points.min(axis=0), points.max(axis=0)
    half = float((high - low).max()) / 2
    found: NDArray[np.float32] = ((points - (low + high) / 2) / (half or 1.0)).astype(np.float32)
    return np.clip(found, -1, 1)


def _main(folder: Path) -> None:
    import umap.umap_  # noqa: F401  takes long: while the other process finds neighbours

    if sys.stdin.readline() != "begin\n":  # the server has ended
        raise SystemExit(1)
    rows, similarities, start = (
        np.load(folder / f"{name}.npy", allow_pickle=False)
        for name in ("rows", "similarities", "start")
    )
    np.save(folder / "map.npy", umap_of(Neighbours(rows, similarities), start, verbose=True))


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
