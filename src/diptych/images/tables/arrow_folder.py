"""Folders that Hugging Face's ``save_to_disk`` wrote.

They are read as the Arrow files that they are: a loader that restores objects from what lies beside
those would have to be trusted.
"""

import json
import os
from collections.abc import Callable, Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

import numpy as np

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.collection import Skipped
from diptych.images.decode import read_bytes
from diptych.images.index import file_stamp
from diptych.images.listing import Listing
from diptych.images.splits import Found, choose_splits
from diptych.images.tables.arrow import (
    Columns,
    find_columns,
    import_arrow,
    labels_of,
    name_rows,
    paths_of,
    reading,
    row_image,
)

_SPLITS: Final = "dataset_dict.json"
_PARTS: Final = ("state.json", "dataset_info.json")
_LARGEST_NOTE: Final = 64 * 2**20  # bytes


def is_saved(path: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return (path / _SPLITS).is_file() or all((path / name).is_file() for name in _PARTS)


def find_saved(path: Path, config: ImagesConfig) -> Found:
    """The images to learn from and, of a folder with splits, the held-out ones.

    Raises:
        ImagesError: there is no column of images, or a file is missing or damaged.
    """
    parts = {"": path}
    if (path / _SPLITS).is_file():
        names = _note(path / _SPLITS).get("splits")
        parts = {name: path / name for name in _plain_names(names, path / _SPLITS)}
    chosen = choose_splits(parts, str(path))
    return Found(
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
        stamp=lambda index: stamps[int(np.searchsorted(starts, index, side="right")) - 1],
    )


def _mapped(file: Path) -> Any:
    ipc = import_arrow("pyarrow.ipc")
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
        file = (path / named).resolve()
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
