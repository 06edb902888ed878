"""Exact search beside a bare product and top-k, and faiss, usearch and LanceDB beside exact search.

The bare way is one product of unit vectors and one top-k a block of queries, on the same threads;
it has the vectors normalised already. The others search the same vectors, 10 nearest of 1,000
queries, each in a process of its own: recall at 10 against exact, seconds to build, milliseconds a
query, and the memory that building took at most. A library that is not installed is left out.

    python benchmarks/search.py                       # 1,000,000 x 128 made vectors
    python benchmarks/search.py --vectors features/   # also these
    python benchmarks/search.py --exact               # only exact search beside the bare way
    python benchmarks/search.py --quick               # 50,000 made vectors
"""

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
import torch
from measuring import Figure, add_arguments, publish, resident_bytes
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from diptych.curation.search import FaissIndex, recall_at
from diptych.embeddings.neighbours import nearest, unit_length
from diptych.embeddings.vectors import read_vectors

K, QUERIES = 10, 1000
EXACT_GOAL, RECALL_GOAL = 1.1, 0.95
Rows = NDArray[np.int64]
Search = Callable[[NDArray[np.float32]], Rows]


def made_vectors(count: int, dim: int = 128) -> NDArray[np.float32]:
    """In clusters that lie close to a space of 16 dimensions, as features do."""
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(16, dim)).astype(np.float32)
    centres = rng.normal(size=(1000, 16)).astype(np.float32)
    inner = centres[rng.integers(0, 1000, count)]
    inner = inner + 0.5 * rng.standard_normal((count, 16), dtype=np.float32)
    return inner @ plane + 0.3 * rng.standard_normal((count, dim), dtype=np.float32)


def exact_over_bare(features: NDArray[np.float32]) -> float:
    """Median of three turns of both."""
    queries, unit = features[:QUERIES], unit_length(features)
    ratios = []
    for _ in range(4):
        begun = time.perf_counter()
        (unit[:QUERIES] @ unit.T).topk(K, dim=1)
        bare = time.perf_counter() - begun
        begun = time.perf_counter()
        nearest(queries, features, K)
        ratios.append((time.perf_counter() - begun) / bare)
    return float(np.median(ratios[1:]))  # the first warms up


def build_faiss(features: NDArray[np.float32]) -> Search:
    index = FaissIndex.of(features)
    print(index.sentence())
    return lambda queries: index.nearest(queries, K).rows


def build_usearch(features: NDArray[np.float32]) -> Search:
    from usearch.index import Index

    index = Index(ndim=features.shape[1], metric="cos", dtype="f32")
    index.add(np.arange(len(features)), features)
    return lambda queries: np.asarray(index.search(queries, K).keys).astype(np.int64)


def build_lancedb(features: NDArray[np.float32]) -> Search:
    import lancedb
    import pyarrow as pa
    from lancedb.index import IvfPq

    folder = tempfile.mkdtemp()
    lists = pa.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1])
    data = pa.table({"row": np.arange(len(features)), "vector": lists})
    table = lancedb.connect(folder).create_table("vectors", data)
    table.create_index("vector", config=IvfPq(distance_type="cosine"))

    def search(queries: NDArray[np.float32]) -> Rows:
        def one(query: NDArray[np.float32]) -> list[int]:
            builder: Any = table.search(query)
            wanted = builder.distance_type("cosine").nprobes(20).refine_factor(4).limit(K)
            return list(wanted.to_arrow()["row"].to_pylist())

        return np.array([one(query) for query in queries])

    return search


BUILDERS = {"faiss": build_faiss, "usearch": build_usearch, "lancedb": build_lancedb}


def compare(title: str, features: NDArray[np.float32]) -> dict[str, float]:
    """Prints a table, and returns each one's recall."""
    queries = _queries_of(features)
    begun = time.perf_counter()
    wanted = nearest(queries, features, K).rows
    columns = ("", "recall at 10", "build, s", "query, ms", "memory, MB")
    table = Table(*columns, title=title, title_justify="left")
    per_query = 1000 * (time.perf_counter() - begun) / len(queries)
    table.add_row("exact", "1.000", "0", f"{per_query:.2f}", "0")
    recalls = {}
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "features.npy", Path(folder) / "found.npy"
        np.save(given, features)
        for name in BUILDERS:
            if importlib.util.find_spec(name) is None:
                table.add_row(name, "not installed", "", "", "")
                continue
            # In a process of its own: memory that another has given back would be used again.
            command = [sys.executable, __file__, "--library", name, str(given), str(found)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            *said, figures = answer.splitlines()
            print(*said, sep="\n", end="\n" if said else "")
            recalls[name] = recall_at(wanted, np.load(found))
            table.add_row(
                name, f"{recalls[name]:.3f}", *(f"{one:.3f}" for one in json.loads(figures))
            )
    Console().print(table)
    return recalls


def measure_library(name: str, given: Path, found: Path) -> None:
    """Builds and searches; prints seconds to build, milliseconds a query and megabytes at most."""
    features = np.load(given)
    importlib.import_module(name)
    before, begun = resident_bytes("VmRSS"), time.perf_counter()
    search = BUILDERS[name](features)
    seconds, memory = time.perf_counter() - begun, resident_bytes("VmHWM") - before
    queries = _queries_of(features)
    begun = time.perf_counter()
    np.save(found, search(queries))
    per_query = 1000 * (time.perf_counter() - begun) / len(queries)
    print(json.dumps([seconds, per_query, memory / 2**20]))


def _queries_of(features: NDArray[np.float32]) -> NDArray[np.float32]:
    return features[:: max(1, len(features) // QUERIES)][:QUERIES]


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--vectors", type=Path, help="of `diptych embed`, compared as well")
    parser.add_argument("--exact", action="store_true", help="leave the libraries out")
    parser.add_argument("--library", nargs=3, help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.library is not None:
        name, *paths = arguments.library
        measure_library(name, *map(Path, paths))
        return
    print(f"{torch.get_num_threads()} threads")
    features = made_vectors(50_000 if arguments.quick else 1_000_000)
    ratio = exact_over_bare(features)
    figures = [Figure("time of exact search over the bare way", ratio, EXACT_GOAL, "at most")]
    sets = {f"{len(features):,} made vectors": features}
    if arguments.vectors is not None:
        read = read_vectors(arguments.vectors).features
        sets[f"{len(read):,} of {arguments.vectors}"] = read
    for title, some in [] if arguments.exact else sets.items():
        for name, recall in compare(title, some).items():
            if name == "faiss":
                figures.append(Figure(f"recall of faiss, {title}", recall, RECALL_GOAL))
    publish(figures, "Search", arguments.json)


if __name__ == "__main__":
    main()
