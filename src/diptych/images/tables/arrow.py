"""What Parquet files and saved Hugging Face folders share: Arrow tables with encoded images."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.names import CompactNames
from diptych.images.tables.columns import (
    LABEL_COLUMNS,
    Labels,
    choose_image_column,
    class_names,
    number_labels,
)


def import_arrow(module: str = "pyarrow") -> Any:
    """Pyarrow, or one of its modules, which take a while to load."""
    return import_module(module)


@dataclass(frozen=True)
class Columns:
    """The columns that matter.

    Attributes:
        image: values are encoded images, or structs with a field of them.
        is_struct: whether they are structs, as of Hugging Face's Image feature.
        has_path: whether those structs have a path too.
        label: the column of labels, or None.
        class_names: of the labels, where the schema tells them.
    """

    image: str
    is_struct: bool
    has_path: bool
    label: str | None
    class_names: tuple[str, ...] | None

    @property
    def encoded(self) -> str:
        """The dotted name of the encoded images alone."""
        return f"{self.image}.bytes" if self.is_struct else self.image

    @property
    def beside(self) -> list[str]:
        """Dotted names of what is read besides them."""
        path = [f"{self.image}.path"] if self.has_path else []
        return path + ([self.label] if self.label else [])


def find_columns(schema: Any, wanted: str | None, origin: str) -> Columns:
    """Which columns of an Arrow schema hold images and labels; see ``choose_image_column``."""
    types = import_arrow().types
    candidates = [field.name for field in schema if _holds_images(field.type, types)]
    image = choose_image_column(candidates, schema.names, wanted, origin)
    kind = schema.field(image).type
    is_struct = types.is_struct(kind)
    has_path = is_struct and kind.get_field_index("path") >= 0
    fit = [name for name in LABEL_COLUMNS if schema.names.count(name) == 1]
    label = next((name for name in fit if _holds_labels(schema.field(name).type, types)), None)
    names = None if label is None else class_names(schema.metadata, label)
    return Columns(
        image,
        is_struct,
        has_path and types.is_string(kind.field("path").type),
        label,
        None if names is None else tuple(names),
    )


def encoded_images(column: Any) -> Any:
    """Of an array of images, plain or in structs, the array of their bytes, null where missing."""
    types = import_arrow().types
    if not types.is_struct(column.type):
        return column
    # Flattened, not just taken out: a field knows nothing of the nulls of the struct around it.
    return column.flatten()[column.type.get_field_index("bytes")]


def row_image(row: Any, columns: Columns, read_path: Callable[[str], bytes]) -> bytes:
    """The encoded image of an array of one row; a row without bytes may name a file.

    Raises:
        UnreadableImage: it has neither.
    """
    data: bytes | None = encoded_images(row)[0].as_py()
    if data is not None:
        return data
    place = row.type.get_field_index("path") if columns.has_path else -1
    path = row.flatten()[place][0].as_py() if place >= 0 else None
    if not path:
        raise UnreadableImage("the row holds neither bytes nor a path")
    return read_path(path)


def paths_of(table: Any, columns: Columns) -> list[str | None]:
    """The paths that a table keeps beside its images; None for each where it has none."""
    if not columns.has_path:
        return [None] * table.num_rows
    found = list[str | None]()
    for column in table.column(columns.image).chunks:
        found += column.flatten()[column.type.get_field_index("path")].to_pylist()
    return found


def labels_of(tables: Sequence[Any], columns: Columns, origin: str) -> Labels:
    """The labels of all rows of some tables, and their classes."""
    if columns.label is None:
        return None, ()
    values = [value for table in tables for value in table.column(columns.label).to_pylist()]
    return number_labels(values, columns.class_names, origin)


def name_rows(paths: Sequence[Sequence[str | None]], stems: Sequence[str]) -> CompactNames:
    """Names of rows: their paths where all have one of their own, else file and row number.

    >>> list(name_rows([["a.png"], ["b.png"]], ["x", "y"])), list(name_rows([[None]], ["x"]))
    (['a.png', 'b.png'], ['x:0'])
    """
    together = [path for some in paths for path in some]
    if all(together) and len(set(together)) == len(together):
        return CompactNames.of(str(path) for path in together)
    return CompactNames.of(
        f"{stem}:{row}" for stem, some in zip(stems, paths, strict=True) for row in range(len(some))
    )


@contextmanager
def reading(origin: str) -> Iterator[None]:
    """Whatever is found wrong inside is said of ``origin``."""
    arrow = import_arrow()
    try:
        yield
    except ImagesError:
        raise
    except (arrow.ArrowException, OSError, ValueError, LookupError, MemoryError) as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        raise ImagesError(f"{origin} is damaged or cannot be read: {line}") from error


def _holds_images(kind: Any, types: Any) -> bool:
    if types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _holds_images(kind.field(place).type, types)
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _holds_labels(kind: Any, types: Any) -> bool:
    return bool(types.is_integer(kind) or types.is_string(kind) or types.is_large_string(kind))
