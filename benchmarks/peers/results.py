"""What a figure found: rows of a table, as JSON and as Markdown."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from measuring import machine


@dataclass(frozen=True)
class Row:
    """One measured case, side by side.

    Attributes:
        figure: what was measured.
        case: of what.
        unit: of the values.
        ours: the median of diptych's.
        peers: of each peer's.
        ratio: the goal's figure, as a median over turns where there are several.
        goal: what the ratio should be.
        bound: at least or at most that.
        notes: more figures, by name.
    """

    figure: str
    case: str
    unit: str
    ours: float
    peers: Mapping[str, float]
    ratio: float
    goal: float
    bound: Literal["at least", "at most"] = "at least"
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether the goal is reached."""
        return self.ratio >= self.goal if self.bound == "at least" else self.ratio <= self.goal


def least_ratio(ours: Sequence[float], peers: Mapping[str, Sequence[float]]) -> float:
    """Of the median over turns of a peer's value over ours, that of the peer who comes nearest."""
    return min(
        statistics.median(theirs / own for theirs, own in zip(values, ours, strict=True))
        for values in peers.values()
    )


def medians(values: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Of each contender."""
    return {name: statistics.median(some) for name, some in values.items()}


def save(rows: Sequence[Row], file: Path, versions: Mapping[str, Any]) -> None:
    """Writes the rows with versions and machine."""
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "rows": [{**asdict(row), "holds": row.holds} for row in rows],
        "environments": versions,
        **machine(),
    }
    file.write_text(json.dumps(document, indent=1) + "\n")


def load(file: Path) -> list[Row]:
    """The rows of a file."""
    rows = json.loads(file.read_text())["rows"]
    return [Row(**{name: row[name] for name in row if name != "holds"}) for row in rows]


def markdown(rows: Sequence[Row]) -> str:
    """One table of all rows; a peer that has no such method has a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row.peers))
    lines = [
        "| " + " | ".join(("figure, case", "unit", "diptych", *names, "ratio", "goal")) + " |",
        "|---|---|" + "---|" * (len(names) + 3),
    ]
    for row in rows:
        values = [_number(row.peers[name]) if name in row.peers else "-" for name in names]
        goal = f"{row.bound} {row.goal:g}{'' if row.holds else ', missed'}"
        cells = (f"{row.figure}, {row.case}", row.unit, _number(row.ours), *values)
        lines.append("| " + " | ".join((*cells, f"{row.ratio:.2f}", goal)) + " |")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
