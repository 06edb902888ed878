"""Exact search beside a bare product and top-k, and faiss, usearch and LanceDB beside exact search.

The bare way is one product of unit vectors and one top-k a block of queries, on the same threads;
it has the vectors normalised already. The others search the same vectors, 10 nearest of 1,000
queries: recall at 10 against exact, seconds to build, milliseconds a query, and the memory that
building took. A library that is not installed is left out.

    python benchmarks/search.py                       # 1,000,000 x 128 made vectors
    python benchmarks/search.py --vectors features/   # also these
    python benchmarks/search.py --quick               # 50,000 made vectors
"""

import importlib.util
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

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
            wanted = table.search(query).metric("cosine").nprobes(20).refine_factor(4).limit(K)
            return list(wanted.to_arrow()["row"].to_pylist())

        return np.array([one(query) for query in queries])

    return search


BUILDERS = {"faiss": build_faiss, "usearch": build_usearch, "lancedb": build_lancedb}


def compare(title: str, features: NDArray[np.float32]) -> dict[str, float]:
    """Prints a table, and returns each one's recall."""
    queries = features[:: max(1, len(features) // QUERIES)][:QUERIES]
    begun = time.perf_counter()
    wanted = nearest(queries, features, K).rows
    columns = ("", "recall at 10", "build, s", "query, ms", "memory, MB")
    table = Table(*columns, title=title, title_justify="left")
    per_query = 1000 * (time.perf_counter() - begun) / len(queries)
    table.add_row("exact", "1.000", "0", f"{per_query:.2f}", "0")
    recalls = {}
    for name, build in BUILDERS.items():
        if importlib.util.find_spec(name) is None:
            table.add_row(name, "not installed", "", "", "")
            continue
        before, begun = resident_bytes("VmRSS"), time.perf_counter()
        search = build(features)
        seconds, memory = time.perf_counter() - begun, resident_bytes("VmRSS") - before
        begun = time.perf_counter()
        found = search(queries)
        per_query = 1000 * (time.perf_counter() - begun) / len(queries)
        recalls[name] = recall_at(wanted, found)
        figures = (recalls[name], seconds, per_query, memory / 2**20)
        table.add_row(name, *(f"{one:.3f}" for one in figures))
    Console().print(table)
    return recalls


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--vectors", type=Path, help="of `diptych embed`, compared as well")
    arguments = parser.parse_args()
    print(f"{torch.get_num_threads()} threads")
    features = made_vectors(50_000 if arguments.quick else 1_000_000)
    ratio = exact_over_bare(features)
    figures = [Figure("time of exact search over the bare way", ratio, EXACT_GOAL, "at most")]
    sets = {f"{len(features):,} made vectors": features}
    if arguments.vectors is not None:
        read = read_vectors(arguments.vectors).features
        sets[f"{len(read):,} of {arguments.vectors}"] = read
    for title, some in sets.items():
        for name, recall in compare(title, some).items():
            if name == "faiss":
                figures.append(Figure(f"recall of faiss, {title}", recall, RECALL_GOAL))
    publish(figures, "Search", arguments.json)


if __name__ == "__main__":
    main()
