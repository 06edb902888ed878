"""Arrow tables with encoded images: their columns and labels, and folders that hold such tables.

Parquet files and Hugging Face data sets share the columns; a folder that ``save_to_disk`` wrote is
read here.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import read_bytes
from diptych.images.collection import CompactNames
from diptych.images.index import file_stamp
from diptych.images.inventory import Skipped, listed
from diptych.images.listing import Listing
from diptych.images.splits import LocatedImages, choose_splits

IMAGE_COLUMNS: Final = ("image", "img", "jpg", "png")
LABEL_COLUMNS: Final = ("label", "labels", "class", "cls")
Labels = tuple[NDArray[np.int64] | None, tuple[str, ...]]
"""Positions in the classes, -1 where a label is missing, and the names of the classes."""


def choose_image_column(
    candidates: Sequence[str], all_columns: Sequence[str], wanted: str | None, origin: str
) -> str:
    """The column that holds the images.

    Args:
        candidates: the columns that could, by their type.
        all_columns: listed in errors.
        wanted: the one that the user chose, or None.
        origin: named in errors.

    Raises:
        ImagesError: there is none, or there are several and no name says which.
    """
    if wanted is not None:
        if wanted in candidates:
            return wanted
        raise ImagesError(
            f"{origin} has no column of encoded images named {wanted!r} (images.column). Its "
            f"columns are {listed(all_columns, most=20)}; those with encoded images: "
            f"{listed(candidates, most=20)}."
        )
    named = [name for name in IMAGE_COLUMNS if name in candidates]
    if named:
        return named[0]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        raise ImagesError(
            f"{origin} has several columns that could hold the images: "
            f"{listed(candidates, most=20)}. Name one of them: images.column of a run, --column "
            "of `diptych embed`."
        )
    raise ImagesError(
        f"{origin} has no column of encoded images. Wanted binary values, or structs with a binary "
        f"field named bytes; its columns are {listed(all_columns, most=20)}."
    )


def number_labels(values: Sequence[Any], names: Sequence[str] | None, origin: str) -> Labels:
    """Labels of any kind as positions in classes.

    Args:
        values: integers or strings; None, -1 and a blank text are no label.
        names: of the classes, where the data set names them; integers are positions in them.
        origin: named in errors.

    >>> number_labels(["cat", "dog", None, "cat"], None, "a table")
    (array([ 0,  1, -1,  0]), ('cat', 'dog'))
    """
    if names is not None:
        return _positions(values, tuple(names), origin)
    values = [None if _is_no_label(value) else value for value in values]
    present = [value for value in values if value is not None]
    if not all(isinstance(value, str | int) for value in present):
        return None, ()  # a number on a scale, a list: nothing that names a class
    if len({isinstance(value, str) for value in present}) > 1:
        raise ImagesError(f"{origin}: some labels are text and some numbers; wanted one kind.")
    found = sorted(set(present))
    position = {value: index for index, value in enumerate(found)}
    numbers = [-1 if value is None else position[value] for value in values]
    return np.array(numbers, dtype=np.int64), tuple(str(value) for value in found)


def label_items(values: Sequence[Any], names: object, origin: str) -> Labels:
    """Labels of a data set in Python, named by its list of classes if that covers all numbers."""
    if not any(value is not None for value in values):
        return None, ()
    good = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    classes: list[str] = list(names) if good else []  # type: ignore[call-overload]
    fits = classes and all(
        value is None or (type(value) is int and -1 <= value < len(classes)) for value in values
    )
    return number_labels(values, classes if fits else None, origin)


def class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """Names of the classes from the note that Hugging Face's writers leave in a schema."""
    try:
        note = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = note["info"]["features"][column]["names"]
    except (ValueError, LookupError, TypeError):  # no note, or one of another form
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if good else None


def _is_no_label(value: object) -> bool:
    # The type first: an array of several numbers is neither equal to -1 nor not.
    return not value.strip() if isinstance(value, str) else isinstance(value, int) and value == -1


def _positions(values: Sequence[Any], names: tuple[str, ...], origin: str) -> Labels:
    numbers = [-1 if value is None else value for value in values]
    wrong = next((n for n in numbers if not isinstance(n, int) or not -1 <= n < len(names)), None)
    if wrong is not None:
        raise ImagesError(
            f"{origin}: the label {wrong!r} is none of 0 .. {len(names) - 1}, the positions of its "
            f"{len(names)} class names; the table is damaged."
        )
    return np.array(numbers, dtype=np.int64), names


@dataclass(frozen=True)
class Columns:
    """The columns that matter.

    Attributes:
        image: values are encoded images, or structs with a field of them.
        is_struct: whether they are structs, as of Hugging Face's Image feature.
        has_path: whether those structs have a path too.
        label: the column of labels, or None.
        class_names: of the labels, where the schema names them.
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
    types = import_module("pyarrow").types  # here, as it takes a while to load
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
    types = import_module("pyarrow").types
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
    """Names of rows: their paths where each has another one, else file and row number.

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
    """Errors inside become an ImagesError that names ``origin``."""
    arrow = import_module("pyarrow")
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


_SPLITS: Final = "dataset_dict.json"
_PARTS: Final = ("state.json", "dataset_info.json")
_LARGEST_NOTE: Final = 64 * 2**20  # bytes


def is_saved(path: str | Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""

    def there(name: str) -> bool:
        return os.path.isfile(os.path.join(path, name))

    return there(_SPLITS) or all(map(there, _PARTS))


def find_saved(path: str | Path, config: ImagesConfig) -> LocatedImages:
    """The images to learn from and, of a folder with splits, the held-out ones.

    Raises:
        ImagesError: there is no column of images, or a file is missing or damaged.
    """
    path = Path(path)
    parts = {"": path}
    if (path / _SPLITS).is_file():
        names = _note(path / _SPLITS).get("splits")
        parts = {name: path / name for name in _plain_names(names, path / _SPLITS)}
    chosen = choose_splits(parts, str(path))
    return LocatedImages(
        list_saved(parts[chosen.train], config, chosen.train),
        (list_saved(parts[name], config, name) for name in chosen.held_out),
        train_part=chosen.train,
        left_out=tuple(Skipped(name, "a part of no known name", name) for name in chosen.unused),
        remarks=chosen.remarks,
    )


def list_saved(path: Path, config: ImagesConfig, part: str = "") -> Listing:
    """The rows of one saved data set, which stay in their memory-mapped files."""
    state = _note(path / _PARTS[0])
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise ImagesError(
            f"{path} keeps an order of its rows beside them, as old versions of datasets did; load "
            "it and save it anew with a current one."
        )
    entries = state.get("_data_files")
    if isinstance(entries, list):
        entries = [one.get("filename") if isinstance(one, dict) else one for one in entries]
    files = [path / name for name in _plain_names(entries, path / _PARTS[0])]
    tables = [_mapped(file) for file in files]
    with reading(str(path)):
        columns = find_columns(tables[0].schema, config.column, str(path))
        tables = [_checked(table, columns) for table in tables]
        paths = [paths_of(table, columns) for table in tables]
    labels, classes = labels_of(tables, columns, str(path))
    stamps = [file_stamp(file) for file in files]
    starts = np.cumsum([0] + [table.num_rows for table in tables])
    return Listing(
        str(path),
        name_rows(paths, [file.stem for file in files]),
        _reader(path, tables, columns),
        labels,
        classes,
        part,
        # From the right: an empty table begins where the next does, and must not be found.
        stamp=lambda index: stamps[int(np.searchsorted(starts, index, side="right")) - 1],
    )


def _mapped(file: Path) -> Any:
    ipc = import_module("pyarrow.ipc")
    # Arrow itself opens no name that is not UTF-8. The table keeps the memory mapped.
    with reading(str(file)), open(file, "rb") as opened:
        return ipc.open_stream(mmap(opened.fileno(), 0, access=ACCESS_READ)).read_all()


def _checked(table: Any, columns: Columns) -> Any:
    """The columns that matter, their offsets compared with what is there."""
    kept = table.select([name for name in (columns.image, columns.label) if name is not None])
    kept.validate(full=True)  # or a damaged offset would read outside of the file
    return kept


def _reader(path: Path, tables: Sequence[Any], columns: Columns) -> Callable[[int], bytes]:
    chunks = [chunk for table in tables for chunk in table.column(columns.image).chunks]
    starts = np.cumsum([0] + [len(chunk) for chunk in chunks])

    def read(index: int) -> bytes:
        place = int(np.searchsorted(starts, index, side="right")) - 1
        row = chunks[place].slice(index - int(starts[place]), 1)
        return row_image(row, columns, read_inside)

    def read_inside(named: str) -> bytes:
        # resolve follows links too, so that none leads out unseen.
        try:
            file = (path / named).resolve()
        except (OSError, ValueError, RuntimeError) as error:  # no path, or a loop of links
            raise UnreadableImage(f"the row names no file: {error}") from error
        if not file.is_relative_to(path.resolve()):
            raise UnreadableImage("the row names a file outside of the saved folder")
        return read_bytes(file)

    return read


def _note(file: Path) -> dict[str, Any]:
    try:
        with open(file, "rb") as opened:
            found = json.loads(opened.read(_LARGEST_NOTE))
    except (OSError, ValueError, RecursionError) as error:
        raise ImagesError(f"{file} cannot be read: {error}. Save the data set anew.") from error
    if not isinstance(found, dict):
        raise ImagesError(f"{file} is not what save_to_disk writes. Save the data set anew.")
    return found


def _plain_names(names: Any, file: Path) -> list[str]:
    """Names of entries of the folder itself, and nothing that leads elsewhere."""
    good = isinstance(names, list) and all(
        isinstance(name, str) and name not in ("", ".", "..") and os.path.basename(name) == name
        for name in names
    )
    if not good or not names:
        raise ImagesError(
            f"{file} should list names of files or folders beside it; got {str(names)[:200]}. Save "
            "the data set anew."
        )
    return list(names)
