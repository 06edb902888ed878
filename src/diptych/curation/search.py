"""The images of a set that are nearest to others: exactly, or by an index that looks at a part."""

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.embeddings.embed import embed
from diptych.embeddings.neighbours import Neighbours, nearest, unit_length
from diptych.embeddings.vectors import VectorSet, made_alike, read_vectors, require_comparable
from diptych.errors import ConfigError, EmbeddingsError
from diptych.images.codecs.decode import EXTENSIONS
from diptych.models.start import open_encoder

IndexKind = Literal["exact", "faiss"]

_SAMPLE: Final = 256  # queries that recall is measured on
_RECALL: Final = 0.95
_AT: Final = 10
_ROWS_A_CELL: Final = 39  # fewer, and faiss warns that the cells are not well placed


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The nearest images of each query.

    Attributes:
        queries: names of the queries.
        found: rows of the set that was searched, and their cosines.
        sentence: how it was searched.
        rows: of the queries, where they are of the set itself.
        pictured: the queries as a set, where they are not.
    """

    queries: list[str]
    found: Neighbours
    sentence: str
    rows: list[int] | None = None
    pictured: VectorSet | None = None


def find_row(vectors: VectorSet, image: str) -> int | None:
    """The row of an image of the set, by its number or its name; None for another image.

    Raises:
        ConfigError: there is no row of that number.
    """
    if Path(image).exists():
        return None
    if image.isdecimal():
        if int(image) >= len(vectors):
            raise ConfigError(
                f"--image {image}: {vectors.source} has {len(vectors):,} images, rows 0 to "
                f"{len(vectors) - 1}."
            )
        return int(image)
    return next((row for row, name in enumerate(vectors.names) if name == image), None)


def search_rows(
    vectors: VectorSet, rows: list[int], k: int, *, index: IndexKind = "exact", device: str = "cpu"
) -> SearchResult:
    """The k images nearest to some of the set itself, without these themselves."""
    queries = vectors.features[rows]
    found, sentence = _search(vectors, queries, k + 1, index, device)
    # A copy may come before the image itself, or push it out: then the last one goes.
    own = found.rows == np.array(rows)[:, None]
    own[:, -1] |= ~own.any(axis=1)
    shape = (len(rows), found.rows.shape[1] - 1)
    others = Neighbours(*(column[~own].reshape(shape) for column in found))
    return SearchResult([vectors.names[row] for row in rows], others, sentence, rows=rows)


def search_images(
    vectors: VectorSet,
    queries: VectorSet,
    k: int,
    *,
    index: IndexKind = "exact",
    device: str = "cpu",
) -> SearchResult:
    """The k images of ``vectors`` that are nearest to each of ``queries``.

    Raises:
        EmbeddingsError: they are not of the same encoder and layer.
    """
    require_comparable(vectors, queries)
    found, sentence = _search(vectors, queries.features, k, index, device)
    return SearchResult(list(queries.names), found, sentence, pictured=queries)


def embed_queries(
    vectors: VectorSet,
    source: str,
    images: str,
    *,
    encoder: str | None = None,
    device: str = "auto",
) -> VectorSet:
    """Vectors of images made as those of a set were: with its layer, side, crops and length.

    Args:
        vectors: the set; its settings say how.
        source: what ``diptych embed`` took for it.
        images: a file, or anything that ``diptych embed`` takes.
        encoder: of weights from elsewhere that do not show it, the network that they are of.
        device: where the network runs.

    Raises:
        EmbeddingsError: the set does not say how it was made, or the source is another encoder.
        ImagesError: the images cannot be read.
    """
    made: dict[str, Any] = dict(vectors.settings or {})
    if not made:
        raise EmbeddingsError(
            f"{vectors.source} does not say how its vectors were made, so no image can be embedded "
            "in the same way. Embed the query yourself and search by a row."
        )
    settings = made_alike(made) | {"max_unreadable_share": 0.0, "encoder": encoder}
    if open_encoder(source, encoder=encoder).run is None:  # what it sees was chosen for the set
        settings["side_pixels"] = made.get("views", {}).get("side_pixels")
    with tempfile.TemporaryDirectory() as folder:
        path, out = images, Path(folder) / "vectors"
        if _is_image(images):
            listed = Path(folder) / "queries.txt"
            listed.write_bytes(bytes(Path(images).absolute()) + b"\n")
            path = str(listed)
        embed(source, path, out, device=device, **settings)
        found = read_vectors(out)
    if path != images:  # the list is gone now; the image is found by its name
        found = replace(found, path=None)
    require_comparable(vectors, found)
    return found


def _is_image(path: str) -> bool:
    return Path(path).is_file() and Path(path).suffix.lower() in EXTENSIONS


def _search(
    vectors: VectorSet, queries: NDArray[np.float32], k: int, index: IndexKind, device: str
) -> tuple[Neighbours, str]:
    if k < 1:
        raise ConfigError(f"--k must be positive; got {k}.")
    if index == "exact":
        found = nearest(queries, vectors.features, k, device=device)
        return found, f"All {len(vectors):,} images were compared (exact search)."
    made = FaissIndex.of(vectors.features)
    found = made.nearest(queries, k)
    return found, made.sentence()


@dataclass(frozen=True, eq=False)
class FaissIndex:
    """An inverted file of faiss: vectors in cells, of which a query looks at the nearest.

    Attributes:
        index: of faiss.
        recall: share of the 10 nearest by exact search that it finds, on images of the set.
        seconds: that building and choosing took.
        images: in it.
    """

    index: Any
    recall: float
    seconds: float
    images: int

    @classmethod
    def of(cls, features: NDArray[np.float32], *, recall: float = _RECALL) -> "FaissIndex":
        """Puts vectors into cells; looks at twice as many until the recall is reached.

        Raises:
            ConfigError: faiss is not installed.
        """
        faiss = _faiss()
        begun = time.perf_counter()
        unit = unit_length(features).numpy()
        cells = max(1, min(round(4 * len(unit) ** 0.5), len(unit) // _ROWS_A_CELL))
        quantizer = faiss.IndexFlatIP(unit.shape[1])
        index = faiss.IndexIVFFlat(quantizer, unit.shape[1], cells, faiss.METRIC_INNER_PRODUCT)
        index.train(unit)
        index.add(unit)
        rows = np.linspace(0, len(unit) - 1, min(_SAMPLE, len(unit))).astype(np.int64)
        wanted = nearest(unit[rows], unit, _AT).rows
        reached = 0.0
        for index.nprobe in _doubled(cells):
            reached = recall_at(wanted, index.search(unit[rows], wanted.shape[1])[1])
            if reached >= recall:
                break
        return cls(index, reached, time.perf_counter() - begun, len(unit))

    def nearest(self, queries: NDArray[np.float32], k: int) -> Neighbours:
        """As ``nearest`` of exact search; -1 and minus infinity where too few were looked at."""
        unit = unit_length(queries).numpy()
        similarities, rows = self.index.search(unit, min(k, self.images))
        return Neighbours(rows.astype(np.int64), similarities)

    def sentence(self) -> str:
        """How it was searched, in words."""
        return (
            f"faiss looked at {self.index.nprobe:,} of {self.index.nlist:,} cells of "
            f"{self.images:,} images; it finds {self.recall:.1%} of the {_AT} nearest of exact "
            f"search. Building took {self.seconds:.1f} s."
        )


def recall_at(wanted: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Mean share of each row of ``wanted`` that is in the same row of ``found``."""
    return float((wanted[:, :, None] == found[:, None, :]).any(axis=2).mean())


def _doubled(most: int) -> list[int]:
    """1, 2, 4 and so on, and the last."""
    return [2**i for i in range(most.bit_length()) if 2**i < most] + [most]


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise ConfigError(
            "--index faiss needs faiss. Install it with `pip install 'diptych[search]'`, or leave "
            "the flag out for exact search."
        ) from error
    return faiss
