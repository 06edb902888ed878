"""What a figure found: rows of a table, as JSON and as Markdown."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from measuring import machine
from peers.contenders import OURS

Bound = Literal["at least", "at most"]


@dataclass(frozen=True)
class Row:
    """One measured case, side by side.

    Attributes:
        figure: what was measured.
        case: of what.
        unit: of the values.
        ours: the median of diptych's.
        peers: of each peer's.
        ratio: the goal's figure, as a median over turns where there are several; None where the
            goal is about `ours` itself, and where nothing was compared.
        goal: what the ratio, or `ours`, should be; None where nothing was compared.
        bound: at least or at most that.
        notes: more figures, by name.
    """

    figure: str
    case: str
    unit: str
    ours: float
    peers: Mapping[str, float]
    ratio: float | None
    goal: float | None
    bound: Bound = "at least"
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        """Whether the goal is reached; None where there is none."""
        if self.goal is None:
            return None
        found = self.ours if self.ratio is None else self.ratio
        return found >= self.goal if self.bound == "at least" else found <= self.goal


def compared(
    figure: str,
    case: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    goal: float,
    bound: Bound = "at least",
    **notes: object,
) -> Row:
    """The row of all contenders' values, one a turn; without a ratio where ours stands alone.

    Args:
        figure: what was measured.
        case: of what.
        unit: of the values.
        values: by contender.
        goal: of theirs over ours at least, or of ours over theirs at most.
        bound: which of the two.
        **notes: more figures, by name.
    """
    middle = medians(values)
    ours = middle.pop(OURS)
    if not middle:
        return Row(figure, case, unit, ours, {}, None, None, notes=notes)
    peers = {name: some for name, some in values.items() if name != OURS}
    over = least_ratio if bound == "at least" else most_ratio
    ratio = over(values[OURS], peers)
    return Row(figure, case, unit, ours, middle, ratio, goal, bound, notes)


def least_ratio(ours: Sequence[float], peers: Mapping[str, Sequence[float]]) -> float:
    """Of the median over turns of a peer's value over ours, that of the peer who comes nearest."""
    return min(
        statistics.median(theirs / own for theirs, own in zip(values, ours, strict=True))
        for values in peers.values()
    )


def most_ratio(ours: Sequence[float], peers: Mapping[str, Sequence[float]]) -> float:
    """The same of our value over a peer's, where less is better."""
    return max(
        statistics.median(own / theirs for theirs, own in zip(values, ours, strict=True))
        for values in peers.values()
    )


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each contender."""
    return {name: statistics.median(some) for name, some in values.items()}


def save(
    rows: Sequence[Row],
    file: Path,
    versions: Mapping[str, Any],
    settings: Mapping[str, Any] | None = None,
    *,
    complete: bool = True,
) -> None:
    """Writes the rows with versions, machine, and the settings that they were measured with.

    Args:
        rows: so far.
        file: in the place of what is there.
        versions: of the environments.
        settings: as `Settings.kept` gives them.
        complete: whether these are all rows of the figure.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "rows": [{**asdict(row), "holds": row.holds} for row in rows],
        "complete": complete,
        "settings": settings or {},
        "environments": versions,
        **machine(),
    }
    part = file.with_name(f"{file.name}.part")
    part.write_text(json.dumps(document, indent=1) + "\n")
    part.replace(file)


def serves(file: Path, versions: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether a file has a whole figure, measured here with these settings and versions."""
    if not file.exists():
        return False
    found = json.loads(file.read_text())
    wanted = {
        "complete": True,
        "settings": settings,
        "environments": versions,
        "machine": machine()["machine"],
    }
    return wanted == {name: found.get(name) for name in wanted}


def load(file: Path) -> list[Row]:
    """The rows of a file."""
    rows = json.loads(file.read_text())["rows"]
    return [Row(**{name: row[name] for name in row if name != "holds"}) for row in rows]


def markdown(rows: Sequence[Row]) -> str:
    """A table for each figure; a peer that has no such method has a dash."""
    figures = dict.fromkeys(row.figure for row in rows)
    return "\n".join(_table([row for row in rows if row.figure == one]) for one in figures)


def _table(rows: Sequence[Row]) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    lines = [
        "| " + " | ".join(("figure, case", "unit", "diptych", *names, "ratio", "goal")) + " |",
        "|---|---|" + "---|" * (len(names) + 3),
    ]
    for row in rows:
        values = [_number(row.peers[name]) if name in row.peers else "-" for name in names]
        ratio = "" if row.ratio is None or math.isinf(row.ratio) else f"{row.ratio:.2f}"
        cells = (f"{row.figure}, {row.case}", row.unit, _number(row.ours), *values, ratio)
        lines.append("| " + " | ".join((*cells, _goal(row))) + " |")
    return "\n".join(lines) + "\n"


def _goal(row: Row) -> str:
    if row.goal is None:
        return ""
    return f"{row.bound} {row.goal:g}{'' if row.holds else ', missed'}"


def _number(value: float) -> str:
    if math.isinf(value):
        return "not reached"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
