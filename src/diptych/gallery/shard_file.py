"""One shard on disk: a Parquet file of names, labels and vectors, written as they are computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from diptych.escaping import escaped
from diptych.gallery.aside import written_aside
from diptych.gallery.embedder import Vectors
from diptych.gallery.note import KEY, Note
from diptych.gallery.rows import CHECKSUM_BYTES
from diptych.gallery.settings import Precision

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
def written_shard(
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
        written_aside(path) as aside,
        open(aside, "wb") as file,  # Arrow itself opens no name that is not UTF-8
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
