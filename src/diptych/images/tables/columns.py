"""Tables with a column of images: which column it is, and what the labels beside it mean."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ImagesError
from diptych.images.inventory import listed

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
            f"{listed(candidates, most=20)}. Choose one by --images.column NAME."
        )
    raise ImagesError(
        f"{origin} has no column of encoded images. Wanted binary values, or structs with a binary "
        f"field named bytes; its columns are {listed(all_columns, most=20)}."
    )


def number_labels(values: Sequence[Any], names: Sequence[str] | None, origin: str) -> Labels:
    """Labels of any kind as positions in classes.

    Args:
        values: integers or strings; None, -1 and a blank text are no label.
        names: of the classes, where a data set tells them; integers are positions in them.
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


def class_names(metadata: Mapping[bytes, bytes] | None, column: str) -> list[str] | None:
    """Names of the classes from the note that Hugging Face's writers leave in a schema."""
    try:
        note = json.loads((metadata or {}).get(b"huggingface", b"{}"))
        names = note["info"]["features"][column]["names"]
    except (ValueError, LookupError, TypeError):  # no such note, or not one that we know
        return None
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return names if good else None


def _is_no_label(value: object) -> bool:
    return value == -1 or (isinstance(value, str) and not value.strip())


def _positions(values: Sequence[Any], names: tuple[str, ...], origin: str) -> Labels:
    numbers = [-1 if value is None else value for value in values]
    wrong = next((n for n in numbers if not isinstance(n, int) or not -1 <= n < len(names)), None)
    if wrong is not None:
        raise ImagesError(
            f"{origin}: the label {wrong!r} is none of 0 .. {len(names) - 1}, the positions of its "
            f"{len(names)} class names; the table is damaged."
        )
    return np.array(numbers, dtype=np.int64), names
