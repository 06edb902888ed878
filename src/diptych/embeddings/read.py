"""Embeddings back from disk, all shards of them or an error that says what is missing."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from pyarrow import parquet

from diptych.embeddings.embedder import Vectors
from diptych.embeddings.shard_files import MANIFEST, Note, differences, read_note, read_set_manifest
from diptych.embeddings.shards import Shard
from diptych.errors import EmbeddingsError
from diptych.escaping import unescaped
from diptych.images.collection import CompactNames
from diptych.images.inventory import listed

_CHUNK: Final = 4096  # rows


class Chunk(NamedTuple):
    """Some consecutive rows.

    Attributes:
        names: of the images.
        features: (rows, dim).
        labels: names of their classes; None where the set has none.
    """

    names: list[str]
    features: Vectors
    labels: list[str | None] | None


@dataclass(frozen=True)
class Embeddings:
    """The vectors of a set of images, in the order of the set. Nothing is read before it is used.

    Attributes:
        folder: where they lie.
        settings: all that they follow from.
        files: one for each shard, in order.
        counts: rows of each file.
    """

    folder: Path
    settings: dict[str, Any]
    files: tuple[Path, ...]
    counts: tuple[int, ...]

    def __len__(self) -> int:
        return sum(self.counts)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.settings["dim"])

    def chunks(self, rows: int = _CHUNK) -> Iterator[Chunk]:
        """All rows, at most so many at once in memory.

        Raises:
            EmbeddingsError: a file is damaged.
        """
        for batch in self._batches(rows, None):
            labels = batch["label"].to_pylist() if "label" in batch.schema.names else None
            if labels is not None:
                labels = [None if label is None else unescaped(label) for label in labels]
            yield Chunk(_names(batch), self._matrix(batch["feature"]), labels)

    @cached_property
    def names(self) -> CompactNames:
        """Of all images, in a compact form."""
        found = (_names(batch) for batch in self._batches(_CHUNK, ["name"]))
        return CompactNames.of(name for some in found for name in some)

    @cached_property
    def features(self) -> Vectors:
        """(images, dim), all in memory."""
        whole = np.empty((len(self), self.dim), dtype=self.settings["precision"])
        self._fill(whole)
        return whole

    def mapped(self, file: str | Path) -> Vectors:
        """(images, dim), mapped from a .npy file that is written first, chunk by chunk.

        Args:
            file: replaced if it is there.
        """
        path = Path(file)
        shape, kind = (len(self), self.dim), np.dtype(self.settings["precision"])
        if not len(self):  # nothing can be mapped
            return np.empty(shape, kind)
        whole = np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
        self._fill(whole)
        whole.flush()
        mapped: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped

    def _fill(self, whole: Vectors) -> None:
        start = 0
        for batch in self._batches(_CHUNK, ["feature"]):
            whole[start : start + len(batch)] = self._matrix(batch["feature"])
            start += len(batch)

    def _matrix(self, column: Any) -> Vectors:
        matrix: Vectors = column.flatten().to_numpy().reshape(-1, self.dim)
        return matrix

    def _batches(self, rows: int, columns: list[str] | None) -> Iterator[Any]:
        for path in self.files:
            try:
                with (
                    open(path, "rb") as opened,
                    parquet.ParquetFile(opened, page_checksum_verification=True) as file,
                ):
                    yield from file.iter_batches(rows, columns=columns)
            except (OSError, ValueError) as error:
                raise EmbeddingsError(
                    f"{path} is damaged: {error}. Remove it, and make it again by `diptych embed`."
                ) from error


def read_embeddings(folder: str | Path) -> Embeddings:
    """Opens what ``diptych embed`` wrote.

    Args:
        folder: with all shards.

    Raises:
        EmbeddingsError: shards are missing, are damaged, or are not all of the same set.
    """
    path = Path(folder)
    manifest = read_set_manifest(path)
    count = int(manifest.settings["shards"])
    names = [Shard(index, count).file_name for index in range(count)]
    _require_no_others(path, names)
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise EmbeddingsError(
            f"{path} is incomplete: {listed(missing)} of {count} shards {_are(missing)} missing. "
            f"Make {_them(missing)} by `diptych embed` with --shard i/{count}, or --shards {count}."
        )
    files = tuple(path / name for name in names)
    counts = tuple(_count(file, manifest) for file in files)
    return Embeddings(path, dict(manifest.settings), files, counts)


def _names(batch: Any) -> list[str]:
    """As the file system has them."""
    return [unescaped(name) for name in batch["name"].to_pylist()]


def _require_no_others(path: Path, names: list[str]) -> None:
    others = sorted({file.name for file in path.glob("features-*.parquet")} - set(names))
    if others:
        raise EmbeddingsError(
            f"{path} holds more than one set: {listed(others)} {_are(others)} none of the "
            f"{len(names)} shards that {MANIFEST} tells of. Remove {_them(others)}."
        )


def _count(file: Path, manifest: Note) -> int:
    try:
        note, count = read_note(file)
    except (OSError, ValueError) as error:
        raise EmbeddingsError(
            f"{file} is damaged: {error}. Remove it, and make it again by `diptych embed`."
        ) from error
    found = differences(note.settings, manifest.settings)
    if found:
        raise EmbeddingsError(
            f"{file} is not of the same set as {MANIFEST}: {'; '.join(found)}. Remove it, and make "
            "it again by `diptych embed`."
        )
    return count


def _are(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _them(names: list[str]) -> str:
    return "it" if len(names) == 1 else "them"
