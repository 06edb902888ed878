"""Maps of vectors by umap-learn, openTSNE and PaCMAP: CPU seconds, memory, trustworthiness.

Each map is drawn in a process of its own, on one thread and with one seed. UMAP and openTSNE get
the exact neighbours that the gallery has already; PaCMAP finds those that it needs by itself. The
first call counts, with what is imported and compiled; then the second in the same process.
Trustworthiness (Venna and Kaski 2001) is of the 10 nearest on the map, over 1,000 images: 1 where
all of them are near among the vectors too. A library that is not installed is left out.

    python benchmarks/maps.py                        # 10,000 and 100,000 made vectors
    python benchmarks/maps.py --vectors features/    # these
    python benchmarks/maps.py --quick                # 2,000 made vectors
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import Figure, add_arguments, publish, resident_bytes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from search import made_vectors

from diptych.embeddings.neighbours import Neighbours, nearest, unit_length
from diptych.embeddings.vectors import read_vectors
from diptych.gallery.map import NEIGHBOURS, first_directions, umap_of

GOAL, SAMPLE, NEAR = 0.85, 1000, 10
PERPLEXITY = 30
OF_TSNE = 3 * PERPLEXITY
Points = NDArray[np.float32]
Draw = Callable[[NDArray[np.float32], Neighbours], Points]


def draw_umap(features: NDArray[np.float32], found: Neighbours) -> Points:
    k = NEIGHBOURS - 1
    near = Neighbours(found.rows[:, :k], found.similarities[:, :k])
    return umap_of(near, first_directions(features))


def draw_tsne(features: NDArray[np.float32], found: Neighbours) -> Points:
    from openTSNE import TSNE, affinity, nearest_neighbors

    known = nearest_neighbors.PrecomputedNeighbors(found.rows, 1 - found.similarities)
    affinities = affinity.PerplexityBasedNN(knn_index=known, perplexity=PERPLEXITY)
    start = first_directions(features)
    start = 1e-4 * start / start.std()
    return np.asarray(
        TSNE(n_jobs=1, random_state=0).fit(affinities=affinities, initialization=start)
    )


def draw_pacmap(features: NDArray[np.float32], found: Neighbours) -> Points:
    import pacmap

    made = pacmap.PaCMAP(distance="euclidean", random_state=0, apply_pca=True)
    return np.asarray(made.fit_transform(unit_length(features).numpy(), init="pca"))


METHODS: dict[str, tuple[str, Draw]] = {
    "umap-learn": ("umap", draw_umap),
    "openTSNE": ("openTSNE", draw_tsne),
    "PaCMAP": ("pacmap", draw_pacmap),
}


def trustworthiness(features: NDArray[np.float32], points: Points) -> float:
    """Of a sample, with the ranks of cosines among all vectors."""
    count = len(features)
    sample = np.random.default_rng(0).choice(count, min(SAMPLE, count), replace=False)
    unit, lost = unit_length(features).numpy(), 0.0
    for row in sample:
        cosines = unit @ unit[row]
        cosines[row] = np.inf
        rank = np.empty(count, np.int64)
        rank[np.argsort(-cosines, kind="stable")] = np.arange(count)
        apart = ((points - points[row]) ** 2).sum(axis=1)
        apart[row] = np.inf
        near = np.argpartition(apart, NEAR)[:NEAR]
        lost += np.maximum(rank[near] - NEAR, 0).sum()
    return float(1 - lost * 2 / (len(sample) * NEAR * (2 * count - 3 * NEAR - 1)))


def draw_twice(name: str, folder: Path) -> dict[str, Any]:
    """In a process of its own: what the two calls took."""
    features, rows, similarities = (
        np.load(folder / f"{one}.npy") for one in ("features", "rows", "similarities")
    )
    before, seconds, maps = resident_bytes("VmRSS"), [], []
    for _ in range(2):
        begun = time.process_time()  # one thread: what others do on the machine changes little
        maps.append(METHODS[name][1](features, Neighbours(rows, similarities)))
        seconds.append(time.process_time() - begun)
    return {
        "images": len(features),
        "first_seconds": seconds[0],
        "second_seconds": seconds[1],
        "megabytes": (resident_bytes("VmHWM") - before) / 1e6,
        "trustworthiness": trustworthiness(features, maps[0]),
        "equal": bool((maps[0] == maps[1]).all()),
    }


def measure(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--draw", name, "--vectors", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(features: NDArray[np.float32], table: Table) -> list[Figure]:
    figures = []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        found = nearest(features, features, OF_TSNE, exclude_own_row=True)
        np.save(folder / "features.npy", features)
        np.save(folder / "rows.npy", found.rows)
        np.save(folder / "similarities.npy", found.similarities)
        for name, (module, _) in METHODS.items():
            if importlib.util.find_spec(module) is None:
                continue
            one = measure(name, folder)
            table.add_row(
                name,
                f"{one['images']:,}",
                f"{one['first_seconds']:.1f}",
                f"{one['second_seconds']:.1f}",
                f"{one['megabytes']:.0f}",
                f"{one['trustworthiness']:.3f}",
                "yes" if one["equal"] else "no",
            )
            print(name, one, flush=True)
            if name == "umap-learn":
                what = f"{name}, {one['images']:,} images"
                figures.append(Figure(f"{what}: trustworthiness", one["trustworthiness"], GOAL))
                figures.append(Figure(f"{what}: equal at a second call", float(one["equal"]), 1))
    return figures


def sets_of(arguments: argparse.Namespace) -> list[NDArray[np.float32]]:
    if arguments.vectors is not None:
        return [read_vectors(arguments.vectors).features]
    counts = arguments.count or ([2000] if arguments.quick else [10_000, 100_000])
    return [made_vectors(count) for count in counts]


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--vectors", type=Path, help="vectors to draw, in place of made ones")
    parser.add_argument("--count", type=int, nargs="+", help="how many made vectors")
    parser.add_argument("--draw", choices=list(METHODS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.draw:
        print(json.dumps(draw_twice(arguments.draw, arguments.vectors)))
        return
    table = Table(title="Maps on one thread", title_justify="left")
    for column in ("library", "images", "first, s", "again, s", "MB", "trustworthiness", "equal"):
        table.add_column(column, justify="right")
    figures = [one for features in sets_of(arguments) for one in compare(features, table)]
    Console().print(table)
    publish(figures, "Maps of the gallery", arguments.json)


if __name__ == "__main__":
    main()
