"""Embeddings on disk: Parquet files of names, labels and vectors, one a shard, and a manifest.

They are read back all together, or with an error that says what is missing.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from diptych.config.downstream import Precision
from diptych.embeddings.encode_views import Vectors
from diptych.embeddings.shards import CHECKSUM_BYTES, Shard
from diptych.errors import EmbeddingsError
from diptych.escaping import escaped, unescaped
from diptych.images.collection import CompactNames
from diptych.images.inventory import listed
from diptych.runs.atomic import atomic_path, atomic_write

FORMAT: Final = 2
"""Version of the files."""


KEY: Final = b"diptych"
"""Of the note in a Parquet file's metadata, which is written last."""


@dataclass(frozen=True)
class Note:
    """What is known of a shard.

    Attributes:
        settings: all that the vectors follow from, the same in every shard of a set.
        shard: what is this shard's own.
        made: from where, for people; nothing is compared.
    """

    settings: Mapping[str, Any]
    shard: Mapping[str, Any]
    made: Mapping[str, Any]

    def encode(self) -> bytes:
        """As JSON."""
        document = {"format": FORMAT, "settings": self.settings, "shard": self.shard}
        return json.dumps(document | {"made": self.made}, indent=1).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Note":
        """Reads what ``encode`` wrote.

        Raises:
            ValueError: it is something else, or of another version.
        """
        document = json.loads(data)
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError(f"its note is not of format {FORMAT}")
        parts = [document.get(name) for name in ("settings", "shard", "made")]
        if not all(isinstance(part, dict) for part in parts):
            raise ValueError("its note is damaged")
        return cls(*parts)  # type: ignore[arg-type]


def differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What differs: a sentence for each entry, nested ones by dotted names.

    >>> differences({"dim": 4, "views": {"side": 32}}, {"dim": 4, "views": {"side": 96}})
    ['views.side: 32 there, 96 now']
    """
    found = []
    for name in [*there, *(name for name in wanted if name not in there)]:
        one, other = there.get(name), wanted.get(name)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            found += [f"{name}.{inner}" for inner in differences(one, other)]
        elif one != other:
            found.append(f"{name}: {_short(one)} there, {_short(other)} now")
    return found


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= 40 else text[:12] + "..."


MANIFEST: Final = "embeddings.json"
"""Its name."""


def write_or_compare_manifest(folder: Path, note: Note) -> None:
    """Writes the manifest, or compares with the one that is there.

    Raises:
        EmbeddingsError: the folder is that of another set.
    """
    file = folder / MANIFEST
    if not file.exists():
        atomic_write(file, note.encode() + b"\n")
    # Read back even by its writer: another process may have written its own in between.
    refuse_differences(differences(read_set_manifest(folder).settings, note.settings), file)


def read_set_manifest(folder: Path) -> Note:
    """What all shards of a folder share.

    Raises:
        EmbeddingsError: there is no manifest, or it is damaged.
    """
    file = folder / MANIFEST
    try:
        return Note.decode(file.read_bytes())
    except FileNotFoundError as error:
        raise EmbeddingsError(
            f"{folder} holds no embeddings: there is no {MANIFEST}. `diptych embed RUN PATH -o "
            f"{folder}` makes some."
        ) from error
    except (OSError, ValueError) as error:
        raise EmbeddingsError(
            f"{file} is damaged: {error}. Remove it; `diptych embed` writes it again."
        ) from error


def refuse_differences(found: list[str], file: Path) -> None:
    """Refuses a file that differs from what is to be made.

    Raises:
        EmbeddingsError: something differs.
    """
    if found:
        raise EmbeddingsError(
            f"{file} is of other settings, images or another encoder: {'; '.join(found)}. Choose "
            "another folder, or remove this one's files."
        )


_GROUP_BYTES: Final = 16 * 2**20  # of vectors: what is held in memory before it is written
_MOST_GROUP_ROWS: Final = 2**16


class ShardWriter:
    """Takes rows in and writes them in row groups.

    What is held of a group lies in one block. Held in pieces, batch by batch, it would keep the
    memory between them from being used again as a whole, and a process would grow with its shard.
    """

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema
        self._kind = schema.field("feature").type
        numbers = np.dtype(self._kind.value_type.to_pandas_dtype())
        rows = _GROUP_BYTES // (self._kind.list_size * numbers.itemsize)
        shape = (min(max(1, rows), _MOST_GROUP_ROWS), self._kind.list_size)
        self._vectors: Vectors = np.empty(shape, numbers)
        self._names = list[str]()
        self._labels = list[str | None]()
        self._checksums = list[bytes]()

    def add(
        self,
        names: Sequence[str],
        labels: Sequence[str | None],
        checksums: Sequence[bytes],
        vectors: Vectors,
    ) -> None:
        """Adds rows.

        Args:
            names: one for each row.
            labels: one for each row; ignored where the file has none.
            checksums: of the encoded images, one for each row.
            vectors: (rows, dim).
        """
        begin = 0
        while begin < len(names):
            held, room = len(self._names), len(self._vectors) - len(self._names)
            some = slice(begin, begin + room)
            self._names += map(escaped, names[some])
            self._labels += [None if label is None else escaped(label) for label in labels[some]]
            self._checksums += checksums[some]
            self._vectors[held : len(self._names)] = vectors[some]
            begin += room
            if len(self._names) == len(self._vectors):
                self.flush()

    def flush(self) -> None:
        """Writes what is held as a row group."""
        if not self._names:
            return
        # Shares the block's memory, so it must be written before the block is filled again.
        numbers = pa.array(self._vectors[: len(self._names)].reshape(-1))
        columns = {
            "name": pa.array(self._names, pa.string()),
            "label": pa.array(self._labels, pa.string()),
            "checksum": pa.array(self._checksums, pa.binary(CHECKSUM_BYTES)),
            "feature": pa.FixedSizeListArray.from_arrays(numbers, type=self._kind),
        }
        chosen = {name: columns[name] for name in self._schema.names}
        self._writer.write_table(pa.table(chosen, schema=self._schema))
        self._names.clear()
        self._labels.clear()
        self._checksums.clear()

    def sign(self, note: Note) -> None:
        """Writes what the file says of itself."""
        self._writer.add_key_value_metadata({KEY: note.encode()})


@contextmanager
def new_shard(
    path: Path, *, dim: int, precision: Precision, labelled: bool
) -> Iterator[ShardWriter]:
    """A shard that is there once the block ends, in which it is signed, and not before.

    Args:
        path: of the file.
        dim: length of a vector.
        precision: of its numbers.
        labelled: whether there is a column of labels.
    """
    numbers = pa.float32() if precision == "float32" else pa.float16()
    fields = [pa.field("name", pa.string(), nullable=False)]
    fields += [pa.field("label", pa.string())] if labelled else []
    fields += [pa.field("checksum", pa.binary(CHECKSUM_BYTES), nullable=False)]
    fields += [pa.field("feature", pa.list_(numbers, dim), nullable=False)]
    schema = pa.schema(fields)
    with (
        atomic_path(path) as temporary,
        open(temporary, "wb") as file,  # Arrow itself opens no name that is not UTF-8
        parquet.ParquetWriter(
            file,
            schema,
            compression="none",  # vectors hardly shrink
            use_dictionary=["label"],
            write_statistics=False,
            write_page_checksum=True,
        ) as writer,
    ):
        rows = ShardWriter(writer, schema)
        yield rows
        rows.flush()


def read_note(path: Path) -> tuple[Note, int]:
    """What a shard says of itself, and its number of rows.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or no shard of embeddings.
    """
    with open(path, "rb") as opened, parquet.ParquetFile(opened) as file:
        data = (file.metadata.metadata or {}).get(KEY)
        if data is None:
            raise ValueError("it holds no embeddings")
        return Note.decode(data), int(file.metadata.num_rows)


_CHUNK: Final = 4096  # rows


class Chunk(NamedTuple):
    """Some consecutive rows.

    Attributes:
        names: of the images.
        features: (rows, dim).
        labels: names of their classes; None where the set has none.
        checksums: 16 bytes of each encoded image.
    """

    names: list[str]
    features: Vectors
    labels: list[str | None] | None
    checksums: list[bytes]


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
            checksums = batch["checksum"].to_pylist()
            yield Chunk(_names(batch), self._matrix(batch["feature"]), labels, checksums)

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
                    # One thread, here and wherever Parquet is read from a file of Python's. A
                    # worker of Arrow's pool lets the buffers of a read go after it has returned,
                    # and needs Python's lock for that: at the end of a process, where Python gives
                    # it to no other thread, the process would abort.
                    yield from file.iter_batches(rows, columns=columns, use_threads=False)
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
            f"{len(names)} shards that {MANIFEST} names. Remove {_them(others)}."
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
