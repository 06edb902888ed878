"""What a cell gave, as a file; and all cells of a study together."""

import csv
import io
import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from diptych.errors import RunFolderError
from diptych.runs.atomic import atomic_write

RESULT_NAME: Final = "result.json"
_FIXED: Final = ("study", "cell", "seed", "failed", "seconds", "command")
_PLACE: Final = "at "  # before the names of axes in the header of a table


@dataclass(frozen=True)
class CellResult:
    """One run of a cell, measured.

    Attributes:
        study: its name.
        cell: its name.
        seed: of the run.
        place: where the cell stands in the grid.
        measures: by name; shares lie in 0 .. 1.
        command: repeats the training.
        seconds: of training.
        failed: why there is nothing to measure; empty if there is.
        settings: of the run by dotted names; only in the file.
        protocol: how it was measured; only in the file.
    """

    study: str
    cell: str
    seed: int
    place: Mapping[str, str | float]
    measures: Mapping[str, float]
    command: str
    seconds: float
    failed: str = ""
    # Not compared, as results that were read from a table have neither.
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False)
    protocol: Mapping[str, Any] = field(default_factory=dict, compare=False)


class StudyResults:
    """The results of a study, by cell.

    Args:
        found: in any order; seeds are put in order.
        epochs: that the study was asked for, where not its own; cells may have a part of them.
    """

    def __init__(self, found: Iterable[CellResult], epochs: int | None = None) -> None:
        self.epochs = epochs
        self.all = sorted(found, key=lambda one: one.seed)
        self._by_cell: dict[str, list[CellResult]] = {}
        for one in self.all:
            self._by_cell.setdefault(one.cell, []).append(one)

    @property
    def cells(self) -> list[str]:
        """Names of the cells that have results."""
        return list(self._by_cell)

    def of(self, cell: str) -> list[CellResult]:
        """The results of a cell, by seed."""
        return self._by_cell.get(cell, [])

    def values(self, cell: str, measure: str = "knn") -> list[float]:
        """A measure of a cell, one value for each seed that has it."""
        return [one.measures[measure] for one in self.of(cell) if measure in one.measures]

    def mean(self, cell: str, measure: str = "knn") -> float | None:
        """Mean over seeds; None without any."""
        values = self.values(cell, measure)
        return statistics.fmean(values) if values else None

    def error(self, cell: str, measure: str = "knn") -> float | None:
        """Standard error of the mean over seeds; None for fewer than two."""
        values = self.values(cell, measure)
        if len(values) < 2:
            return None
        return statistics.stdev(values) / len(values) ** 0.5

    @property
    def measures(self) -> list[str]:
        """Names of all that was measured, in order."""
        return list(dict.fromkeys(name for one in self.all for name in one.measures))


def write_result(folder: Path, result: CellResult) -> None:
    """Writes ``result.json`` so that it is there as a whole or not at all."""
    atomic_write(folder / RESULT_NAME, (json.dumps(asdict(result), indent=1) + "\n").encode())


def read_result(folder: Path) -> CellResult | None:
    """The result in a cell's folder; None if there is none yet.

    Raises:
        RunFolderError: the file is none of ours, or damaged.
    """
    path = folder / RESULT_NAME
    if not path.is_file():
        return None
    try:
        found = CellResult(**json.loads(path.read_bytes()))
        measured = {str(name): float(value) for name, value in found.measures.items()}
        if not isinstance(found.settings, dict) or len(measured) != len(found.measures):
            raise TypeError("a table is missing")
    except (ValueError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is no result of a cell ({error}). Delete it; the cell is measured again."
        ) from error
    return found


def to_table(results: Iterable[CellResult]) -> str:
    """StudyResults as CSV: one line for each cell and seed."""
    rows = list(results)
    places = list(dict.fromkeys(axis for one in rows for axis in one.place))
    measures = list(dict.fromkeys(name for one in rows for name in one.measures))
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_FIXED[:3], *(_PLACE + axis for axis in places), *measures, *_FIXED[3:]])
    for one in rows:
        writer.writerow(
            [
                *(one.study, one.cell, one.seed),
                *(one.place.get(axis, "") for axis in places),
                # Every digit, so that the table gives the same numbers back.
                *(repr(one.measures[m]) if m in one.measures else "" for m in measures),
                *(one.failed, repr(one.seconds), one.command),
            ]
        )
    return text.getvalue()


def from_table(text: str) -> list[CellResult]:
    """The results that ``to_table`` wrote; settings and protocol are not in it."""
    return [_from_row(row) for row in csv.DictReader(io.StringIO(text, newline=""))]


def _from_row(row: Mapping[str, str]) -> CellResult:
    places = {n.removeprefix(_PLACE): v for n, v in row.items() if n.startswith(_PLACE) and v}
    measures = {
        name: float(value)
        for name, value in row.items()
        if name not in _FIXED and not name.startswith(_PLACE) and value
    }
    return CellResult(
        study=row["study"],
        cell=row["cell"],
        seed=int(row["seed"]),
        place={axis: _number_or_text(value) for axis, value in places.items()},
        measures=measures,
        command=row["command"],
        seconds=float(row["seconds"]),
        failed=row["failed"],
    )


def _number_or_text(value: str) -> str | float:
    try:
        return float(value)
    except ValueError:
        return value
