"""Columns that colour the map: classes or numbers, one value for each image."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diptych.curation.copies import Copies
from diptych.curation.mislabelled import Mislabelled
from diptych.curation.outliers import Outliers
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError
from diptych.escaping import readable, unescaped
from diptych.gallery.labels import LabelStore
from diptych.gallery.panels import Clusters, Findings
from diptych.gallery.pieces import Piece

Values = NDArray[np.int16] | NDArray[np.float32]

NONE: Final = -1
MOST_CLASSES: Final = 32_000  # codes have 16 bits
MOST_COLUMNS: Final = 100  # of a table
_FEW: Final = 50  # different whole numbers in a column of a table that are taken for classes


@dataclass(frozen=True)
class Column:
    """One value for each image.

    Attributes:
        name: of the column.
        kind: what the values are.
        values: int16 codes, -1 for none; or float32, NaN for none. Raises NotReady.
        classes: names of the classes.
        ready: whether the values are there.
    """

    name: str
    kind: Literal["class", "number"]
    values: Callable[[], Values]
    classes: Callable[[], Sequence[str]] = tuple
    ready: Callable[[], bool] = lambda: True

    def described(self) -> dict[str, Any]:
        """As JSON: what a legend needs."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind, "ready": self.ready()}
        if not found["ready"]:
            return found
        if self.kind == "class":
            return found | {"classes": list(self.classes())}
        values = self.values()
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        return found | {"low": low, "high": high}

    def text(self, row: int) -> Any:
        """The value of an image as JSON; None for none."""
        value = self.values()[row]
        if self.kind == "class":
            return None if value < 0 else self.classes()[int(value)]
        return float(value) if np.isfinite(value) else None


def columns_of(
    vectors: VectorSet, findings: Piece[Findings], labels: LabelStore, table: Path | None
) -> list[Column]:
    """All columns of a gallery.

    Raises:
        ConfigError: the table cannot be used.
    """
    found = [] if vectors.labels is None else [_texts("label", vectors.labels)]
    found.append(
        Column("given label", "class", lambda: labels.codes()[1], lambda: tuple(labels.classes()))
    )
    found += _found(findings, len(vectors))
    return found + ([] if table is None else read_table(table, vectors.names))


def _found(findings: Piece[Findings], count: int) -> list[Column]:
    def ready() -> bool:
        return findings.ready

    def kept(values: Callable[[Findings], Values]) -> Callable[[], Values]:
        made: list[Values] = []

        def get() -> Values:
            if not made:
                made.append(values(findings.get()))
            return made[0]

        return get

    def names() -> Sequence[str]:
        found = findings.get().clusters
        return () if isinstance(found, str) else [f"cluster {i + 1}" for i in range(found.count)]

    return [
        Column("cluster", "class", kept(lambda one: _clusters(one.clusters, count)), names, ready),
        Column(
            "outlier score", "number", kept(lambda one: _scores(one.outliers, count)), tuple, ready
        ),
        Column(
            "contradicted",
            "number",
            kept(lambda one: _doubts(one.mislabelled, count)),
            tuple,
            ready,
        ),
        Column(
            "copies", "number", kept(lambda one: groups_of_copies(one.copies, count)), tuple, ready
        ),
    ]


def _clusters(found: Clusters | str, count: int) -> NDArray[np.int16]:
    return np.full(count, NONE, np.int16) if isinstance(found, str) else found.of.astype(np.int16)


def _scores(found: Outliers | str, count: int) -> NDArray[np.float32]:
    return _nothing(count) if isinstance(found, str) else found.scores.astype(np.float32)


def _doubts(found: Mislabelled | str, count: int) -> NDArray[np.float32]:
    values = _nothing(count)
    if not isinstance(found, str):
        values[found.rows] = found.other - found.own
    return values


def groups_of_copies(found: Copies | str, count: int) -> NDArray[np.float32]:
    """(images,): the number of the group of copies that an image is in, NaN for none."""
    values = _nothing(count)
    for number, rows in enumerate([] if isinstance(found, str) else found.groups()):
        values[rows] = number
    return values


def _nothing(count: int) -> NDArray[np.float32]:
    return np.full(count, np.nan, np.float32)


def _texts(name: str, texts: Sequence[str | None]) -> Column:
    classes = sorted({one for one in texts if one})
    code = {one: number for number, one in enumerate(classes[:MOST_CLASSES])}
    values = np.array([code.get(one or "", NONE) for one in texts], np.int16)
    shown = [readable(one) for one in classes[:MOST_CLASSES]]
    return Column(name, "class", lambda: values, lambda: shown)


def read_table(file: Path, names: Sequence[str]) -> list[Column]:
    """Columns of a CSV file with a column ``name``, joined to the images by it.

    A column of numbers only is one of numbers, unless it has few different whole ones.

    Raises:
        ConfigError: the file cannot be read, has no such column, or no image of the gallery.
    """
    try:
        with open(file, newline="", encoding="utf-8-sig", errors="surrogateescape") as opened:
            rows = list(csv.DictReader(opened, strict=True))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"--table {file} cannot be read: {error}.") from error
    if not rows or "name" not in rows[0]:
        raise ConfigError(f"--table {file}: wanted a table with a column 'name'.")
    wanted = [one for one in rows[0] if one not in (None, "name")]
    if len(wanted) > MOST_COLUMNS:
        raise ConfigError(
            f"--table {file} has {len(wanted):,} columns; wanted {MOST_COLUMNS} at most."
        )
    place = {unescaped(row["name"] or ""): row for row in rows}
    found = [place.get(name) for name in names]
    if not any(one is not None for one in found):
        raise ConfigError(
            f"--table {file} has no image of the gallery; wanted names as {names[0]!r}."
        )
    return [
        _guessed(name, [None if row is None else row[name] or None for row in found])
        for name in wanted
    ]


def _guessed(name: str, texts: Sequence[str | None]) -> Column:
    try:
        numbers = np.array([np.nan if one is None else float(one) for one in texts], np.float32)
    except ValueError:
        return _texts(readable(name), texts)
    known = numbers[np.isfinite(numbers)]
    if len(np.unique(known)) <= _FEW and (known == np.round(known)).all():
        return _texts(readable(name), texts)
    return Column(readable(name), "number", lambda: numbers)
