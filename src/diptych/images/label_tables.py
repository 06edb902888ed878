"""Tables beside the images: a column for each name, and labels that are taken from one."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError
from diptych.escaping import unescaped
from diptych.images.collection import ImageSet
from diptych.images.listing import Listing

NO_LABELS: Final = "none"
WHAT_A_NAME_IS: Final = (
    "A name is a path from the folder of the images, or of their part (train, test, ...)."
)


def read_column(path: Path, column: str, setting: str) -> dict[str, str]:
    """The text that each name has in a column of a CSV file, which has a column ``name`` too.

    Args:
        path: of the file.
        column: that is wanted.
        setting: that named it, for errors.

    Raises:
        ConfigError: the file cannot be read, lacks a column, or has two texts for a name.
    """
    try:
        # utf-8-sig: spreadsheets begin a table by a mark, which would become part of `name`.
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            reader = csv.DictReader(file)
            present = reader.fieldnames or []
            if "name" not in present or column not in present:
                raise ConfigError(
                    f"{setting}: {path} needs the columns 'name' and {column!r}; it has "
                    f"{', '.join(present) or 'none'}."
                )
            found = dict[str, str]()
            for row in reader:
                name, text = unescaped(row["name"] or ""), (row[column] or "").strip()
                if found.setdefault(name, text) != text:
                    raise ConfigError(
                        f"{setting}: {path} has two rows for {name!r}, with {found[name]!r} "
                        f"and {text!r} as {column}. Wanted one. {WHAT_A_NAME_IS}"
                    )
    except FileNotFoundError as error:
        raise ConfigError(
            f"{setting}: there is no table {path}. Wanted a CSV file with the columns 'name' and "
            f"{column!r}."
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{setting}: cannot read {path}: {error}") from error
    return found


def with_given_labels(
    parts: tuple[Listing | ImageSet, ...], config: ImagesConfig
) -> tuple[Listing | ImageSet, ...]:
    """The parts of a set with the labels that ``images.labels`` says, if it says any.

    An image that is not in the table, or has an empty text there, has no label.

    Raises:
        ConfigError: the table cannot be read, or knows none of the images.
    """
    if config.labels is None:
        return parts
    if config.labels == NO_LABELS:
        return tuple(replace(one, labels=None, classes=()) for one in parts)
    path, _, column = config.labels.rpartition(":")
    table = read_column(Path(path), column, "images.labels")
    classes = tuple(sorted({text for text in table.values() if text}))
    numbers = {text: number for number, text in enumerate(classes)}
    labels = [
        np.array([numbers.get(table.get(name, ""), -1) for name in one.names], dtype=np.int64)
        for one in parts
    ]
    if not any((of_part >= 0).any() for of_part in labels):
        first = next((repr(name) for one in parts for name in one.names), "none")
        raise ConfigError(
            f"images.labels: {path} has no label for any of the images, as {first}. "
            f"{WHAT_A_NAME_IS}"
        )
    return tuple(
        replace(one, labels=of_part, classes=classes)
        for one, of_part in zip(parts, labels, strict=True)
    )
