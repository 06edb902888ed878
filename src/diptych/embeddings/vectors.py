"""Vectors of images from a file or a folder, whole and checked, for search and curation."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute as pc
from pyarrow import parquet

from diptych.embeddings.shard_files import (
    KEY,
    MANIFEST,
    Note,
    differences,
    read_embeddings,
    read_set_manifest,
)
from diptych.embeddings.shards import CHECKSUM_BYTES
from diptych.errors import EmbeddingsError
from diptych.escaping import unescaped
from diptych.images.sources.known_sets import is_photographs

NAME, LABEL, CHECKSUM, FEATURE = "name", "label", "checksum", "feature"
"""Columns of a table of vectors; of a CSV the features are the columns ``feature_0`` and so on."""

FORMATS: Final = (".parquet", ".npy", ".csv")


@dataclass(frozen=True, eq=False)
class VectorSet:
    """Vectors of images, all in memory.

    Attributes:
        source: the file or folder that they are from.
        features: float32 (images, dim), all of them finite.
        names: of the images, below ``root``.
        labels: names of classes, one for each image, None for none; None where nothing is known.
        checksums: 16 bytes of each image; None where they are not known.
        settings: all that the vectors follow from (encoder, layer, views); empty if not known.
        path: of the images, or the name of built-in ones; None if not known or not here.
    """

    source: Path
    features: NDArray[np.float32]
    names: Sequence[str]
    labels: Sequence[str | None] | None = None
    checksums: Sequence[bytes] | None = None
    settings: Mapping[str, Any] | None = None
    path: str | None = None

    def __post_init__(self) -> None:
        shape = self.features.shape
        if len(shape) != 2 or not shape[0] or not shape[1]:
            raise EmbeddingsError(
                f"{self.source}: wanted vectors (images, dim), one image at least; got {shape}."
            )
        for what, given in (("names", self.names), ("labels", self.labels)):
            if given is not None and len(given) != shape[0]:
                raise EmbeddingsError(
                    f"{self.source}: {shape[0]:,} vectors and {len(given):,} {what}; wanted one of "
                    "each for an image."
                )
        bad = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
        if len(bad):
            raise EmbeddingsError(
                f"{self.source}: {len(bad):,} vectors are not of finite numbers, first that of "
                f"{self.names[int(bad[0])]!r}. Make them again, or leave these images out."
            )

    def __len__(self) -> int:
        return len(self.features)

    @property
    def root(self) -> Path | None:
        """The folder that names of images are below; None where they are in no folder."""
        return Path(self.path) if self.path is not None and Path(self.path).is_dir() else None

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.features.shape[1])

    def classes(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """(images,) class numbers, -1 for none, and names of the classes.

        Raises:
            EmbeddingsError: there are no labels.
        """
        if self.labels is None or all(one is None for one in self.labels):
            raise EmbeddingsError(
                f"{self.source} has no labels: wanted a column {LABEL!r}, which `diptych embed` "
                "writes of a folder with a folder for each class."
            )
        names = tuple(sorted({one for one in self.labels if one is not None}))
        number = {name: index for index, name in enumerate(names)}
        found = [-1 if one is None else number[one] for one in self.labels]
        return np.array(found, dtype=np.int64), names


def read_vectors(path: str | Path) -> VectorSet:
    """Reads vectors: of ``diptych embed``, or of any other program in one of these forms.

    A folder of ``diptych embed``; a Parquet file with the columns ``name`` and ``feature`` (a list
    of numbers) and perhaps ``label`` and ``checksum``; a CSV file with ``name``, ``feature_0``,
    ``feature_1`` and so on; an .npy file (images, dim) with a table of the same name that ends in
    .csv and has ``name`` and perhaps ``label`` and ``checksum`` (hexadecimal) in the same order.

    Raises:
        EmbeddingsError: it is none of these, is damaged, or holds numbers that are not finite.
    """
    file = Path(path)
    if file.is_dir():
        return _read_folder(file)
    if not file.exists():
        raise EmbeddingsError(
            f"{file} is not there: wanted the vectors of images, as `diptych embed RUN PATH -o "
            f"{file}` writes them."
        )
    readers = {".parquet": _read_parquet, ".npy": _read_npy, ".csv": _read_csv}
    if file.suffix.lower() not in readers:
        raise EmbeddingsError(
            f"{file}: wanted a folder of `diptych embed`, or a file that ends in "
            f"{', '.join(FORMATS)}."
        )
    try:
        return readers[file.suffix.lower()](file)
    except (OSError, ValueError, KeyError, pa.ArrowException, csv.Error) as error:
        raise EmbeddingsError(f"{file} cannot be read as vectors of images: {error}.") from error


def require_comparable(one: VectorSet, other: VectorSet) -> None:
    """Refuses two sets that are not of the same encoder and layer, as far as that is known.

    Raises:
        EmbeddingsError: they differ.
    """
    if one.dim != other.dim:
        raise EmbeddingsError(
            f"{one.source} has vectors of {one.dim} numbers, {other.source} of {other.dim}: wanted "
            "those of the same encoder and layer."
        )
    if not one.settings or not other.settings:
        return
    found = differences(_compared(one.settings), _compared(other.settings))
    if found:
        raise EmbeddingsError(
            f"The vectors of {one.source} (there) and {other.source} (now) cannot be compared, as "
            f"they were made differently: {'; '.join(found)}. Embed both with the same encoder and "
            "settings."
        )


def made_alike(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of ``embed`` or ``Embedder`` by which other images become comparable vectors."""
    return {
        "layer": settings.get("layer", "h"),
        "maps": "map" in settings,
        "normalize": bool(settings.get("normalized", False)),
        "crops": settings.get("views", {}).get("crops", "center"),
    }


def _compared(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What vectors follow from, whatever the images."""
    views = settings.get("views", {})
    kept = {name: settings.get(name) for name in ("encoder", "head", "layer", "normalized", "map")}
    return kept | {"views": {name: views[name] for name in views if name != "max_megapixels"}}


def _read_folder(folder: Path) -> VectorSet:
    if not (folder / MANIFEST).exists():
        raise EmbeddingsError(
            f"{folder} holds no vectors: wanted a folder that `diptych embed` wrote."
        )
    found = read_embeddings(folder)
    labels, checksums = list[str | None](), list[bytes]()
    names = list[str]()
    features = np.empty((len(found), found.dim), np.float32)
    for chunk in found.chunks():
        features[len(names) : len(names) + len(chunk.names)] = chunk.features
        names += chunk.names
        labels += chunk.labels or []
        checksums += chunk.checksums
    made = read_set_manifest(folder).made
    return VectorSet(
        folder,
        features,
        names,
        labels or None,
        checksums,
        found.settings,
        _path_here(made.get("path")),
    )


def _path_here(path: Any) -> str | None:
    # Vectors may come from anybody: what they name is never fetched from elsewhere.
    is_here = isinstance(path, str) and (Path(path).exists() or is_photographs(path))
    return path if is_here else None


def _read_parquet(file: Path) -> VectorSet:
    with open(file, "rb") as opened, parquet.ParquetFile(opened) as whole:
        table = whole.read(use_threads=False)  # as in shard_files
        data = (whole.metadata.metadata or {}).get(KEY)
    lists = table[FEATURE].combine_chunks()
    if lists.null_count or len(pc.unique(pc.list_value_length(lists))) != 1:
        raise ValueError("its vectors are not all of one length")
    features = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    columns = {
        name: table[name].to_pylist() for name in (LABEL, CHECKSUM) if name in table.schema.names
    }
    labels = columns.get(LABEL)
    note = None if data is None else Note.decode(data)
    return VectorSet(
        file,
        features.reshape(len(table), -1),
        [unescaped(str(name)) for name in table[NAME].to_pylist()],
        None if labels is None else [None if x is None else unescaped(str(x)) for x in labels],
        _checksums(columns.get(CHECKSUM)),
        None if note is None else note.settings,
        None if note is None else _path_here(note.made.get("path")),
    )


def _checksums(found: Sequence[Any] | None) -> Sequence[bytes] | None:
    known = found is not None and all(
        isinstance(one, bytes) and len(one) == CHECKSUM_BYTES for one in found
    )
    return found if known else None


def _read_npy(file: Path) -> VectorSet:
    features = np.load(file, allow_pickle=False)
    if not np.issubdtype(features.dtype, np.number):
        raise ValueError(f"wanted numbers, got {features.dtype}")
    rows = _rows(file.with_suffix(".csv"))
    found = _of_rows(file, features.astype(np.float32), rows, file.with_suffix(".json"))
    _require_of_one_writing(found, file.with_suffix(".json"))
    return found


def digest_of_rows(vectors: NDArray[Any], checksums: Sequence[bytes]) -> str:
    """A hash of vectors and of the images that they are of, by which files are known to fit."""
    digest = hashlib.sha256(np.ascontiguousarray(vectors, "<f4").tobytes())
    digest.update(b"".join(checksums))
    return digest.hexdigest()


def _require_of_one_writing(found: VectorSet, note: Path) -> None:
    """Refuses vectors beside the table of others, as after a kill between two files."""
    wanted = Note.decode(note.read_bytes()).shard.get("rows") if note.exists() else None
    if wanted is not None and digest_of_rows(found.features, found.checksums or ()) != wanted:
        raise ValueError(
            f"its rows and those of its table are not those of {note.name}; `diptych embed` writes "
            "all three anew"
        )


def _read_csv(file: Path) -> VectorSet:
    rows = _rows(file)
    columns = [name for name in (rows[0] if rows else ()) if name.startswith(f"{FEATURE}_")]
    columns.sort(key=lambda name: int(name.removeprefix(f"{FEATURE}_")))
    features = np.array([[float(row[name]) for name in columns] for row in rows], np.float32)
    return _of_rows(file, features, rows, file.with_suffix(".json"))


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        raise ValueError(f"there is no {file.name} beside it, a table with the column {NAME!r}")
    # utf-8-sig: spreadsheets begin a table by a mark, which would become part of `name`.
    with open(file, newline="", encoding="utf-8-sig") as opened:
        rows = list(csv.DictReader(opened, strict=True))
    for number, row in enumerate(rows, start=2):
        # Missing fields are None, and those beyond the columns are under None.
        if None in row or None in row.values():
            raise ValueError(f"line {number} of {file.name} has not as many fields as the first")
    if rows and NAME not in rows[0]:
        raise ValueError(f"{file.name} has no column {NAME!r}")
    return rows


def _of_rows(
    file: Path, features: NDArray[np.float32], rows: list[dict[str, str]], manifest: Path
) -> VectorSet:
    """With names, labels and checksums of a table, and what a note beside it says, if any."""
    labels = [unescaped(row[LABEL]) or None for row in rows] if rows and LABEL in rows[0] else None
    note = Note.decode(manifest.read_bytes()) if manifest.exists() else None
    known = bool(rows) and CHECKSUM in rows[0]
    return VectorSet(
        file,
        features,
        [unescaped(row[NAME]) for row in rows],
        labels,
        _checksums([bytes.fromhex(row[CHECKSUM]) for row in rows]) if known else None,
        None if note is None else note.settings,
        None if note is None else _path_here(note.made.get("path")),
    )
