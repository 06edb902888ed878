"""One shard on disk: a Parquet file of names, labels and vectors, written as they are computed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from diptych.gallery.aside import written_aside
from diptych.gallery.embedder import Vectors
from diptych.gallery.note import KEY, Note
from diptych.gallery.settings import Precision
from diptych.images.extras import import_extra

_GROUP_BYTES: Final = 16 * 2**20  # of vectors: what is held in memory before it is written


def arrow(module: str = "pyarrow") -> Any:
    """Pyarrow, or one of its modules.

    Raises:
        ImagesError: it is not installed.
    """
    return import_extra(module, "parquet", "embeddings on disk")


class ShardWriter:
    """Takes rows in and writes them in row groups."""

    def __init__(self, writer: Any, schema: Any) -> None:
        self._writer, self._schema = writer, schema
        self._held: list[Any] = []
        kind = schema.field("feature").type
        row_bytes = kind.list_size * kind.value_type.bit_width // 8
        self._group_rows = max(1, _GROUP_BYTES // row_bytes)

    def add(self, names: Sequence[str], labels: Sequence[str | None], vectors: Vectors) -> None:
        """Adds rows.

        Args:
            names: one for each row.
            labels: one for each row; ignored where the file has none.
            vectors: (rows, dim).
        """
        if not len(names):
            return
        pa = arrow()
        feature = self._schema.field("feature").type
        columns = {
            "name": pa.array([_utf8(name) for name in names], pa.string()),
            "label": pa.array(labels, pa.string()),
            "feature": pa.FixedSizeListArray.from_arrays(
                pa.array(vectors.reshape(-1)), type=feature
            ),
        }
        chosen = {name: columns[name] for name in self._schema.names}
        self._held.append(pa.table(chosen, schema=self._schema))
        if sum(len(table) for table in self._held) >= self._group_rows:
            self.flush()

    def flush(self) -> None:
        """Writes what is held as a row group."""
        if self._held:
            whole = arrow().concat_tables(self._held).combine_chunks()
            self._writer.write_table(whole, row_group_size=self._group_rows)
            self._held.clear()


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
