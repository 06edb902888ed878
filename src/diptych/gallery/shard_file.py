"""One shard on disk: a Parquet file of names, labels and vectors, written as they are computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from diptych.gallery.aside import written_aside
from diptych.gallery.embedder import Vectors
from diptych.gallery.note import KEY, Note
from diptych.gallery.settings import Precision
from diptych.images.extras import import_extra

_GROUP_BYTES: Final = 16 * 2**20  # of vectors: what is held in memory before it is written
_MOST_GROUP_ROWS: Final = 2**16


def arrow(module: str = "pyarrow") -> Any:
    """Pyarrow, or one of its modules.

    Raises:
        ImagesError: it is not installed.
    """
    return import_extra(module, "parquet", "embeddings on disk")


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

    def add(self, names: Sequence[str], labels: Sequence[str | None], vectors: Vectors) -> None:
        """Adds rows.

        Args:
            names: one for each row.
            labels: one for each row; ignored where the file has none.
            vectors: (rows, dim).
        """
        begin = 0
        while begin < len(names):
            held, room = len(self._names), len(self._vectors) - len(self._names)
            some = slice(begin, begin + room)
            self._names += map(_utf8, names[some])
            self._labels += labels[some]
            self._vectors[held : len(self._names)] = vectors[some]
            begin += room
            if len(self._names) == len(self._vectors):
                self.flush()

    def flush(self) -> None:
        """Writes what is held as a row group."""
        if not self._names:
            return
        pa = arrow()
        numbers = pa.array(self._vectors[: len(self._names)].reshape(-1))
        columns = {
            "name": pa.array(self._names, pa.string()),
            "label": pa.array(self._labels, pa.string()),
            "feature": pa.FixedSizeListArray.from_arrays(numbers, type=self._kind),
        }
        chosen = {name: columns[name] for name in self._schema.names}
        self._writer.write_table(pa.table(chosen, schema=self._schema))
        self._names.clear()
        self._labels.clear()


@contextmanager
def written_shard(
    path: Path, note: Note, *, dim: int, precision: Precision, labelled: bool
) -> Iterator[ShardWriter]:
    """A shard that is there once the block ends, and not before.

    Args:
        path: of the file.
        note: what it says of itself.
        dim: length of a vector.
        precision: of its numbers.
        labelled: whether there is a column of labels.
    """
    pa, parquet = arrow(), arrow("pyarrow.parquet")
    numbers = pa.float32() if precision == "float32" else pa.float16()
    fields = [pa.field("name", pa.string(), nullable=False)]
    fields += [pa.field("label", pa.string())] if labelled else []
    fields += [pa.field("feature", pa.list_(numbers, dim), nullable=False)]
    schema = pa.schema(fields, metadata={KEY: note.encode()})
    with (
        written_aside(path) as aside,
        parquet.ParquetWriter(
            aside,
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
    with arrow("pyarrow.parquet").ParquetFile(path) as file:
        data = (file.schema_arrow.metadata or {}).get(KEY)
        if data is None:
            raise ValueError("it holds no embeddings")
        return Note.decode(data), int(file.metadata.num_rows)


def _utf8(name: str) -> str:
    """A name that is no UTF-8 with its odd bytes written out."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
