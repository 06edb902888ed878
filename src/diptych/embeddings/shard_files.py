"""Embeddings on disk: Parquet files of names, labels and vectors, one a shard, and a manifest."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from diptych.config.downstream import Precision
from diptych.embeddings.embedder import Vectors
from diptych.embeddings.shards import CHECKSUM_BYTES
from diptych.errors import EmbeddingsError
from diptych.escaping import escaped
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
    """What differs, in words: one for each entry, those inside of others by dotted names.

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
