"""What a run found and does not use, as its page shows it."""

import csv
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from diptych.images.inventory import Skipped

_SHOWN: Final = 50


@dataclass(frozen=True)
class LeftOutTable:
    """The table of ``skipped.csv`` by kinds.

    Attributes:
        rows: one for each part and reason with one name and the sum of the counts, the largest
            first.
        more: kinds that are not among the rows.
    """

    rows: tuple[Skipped, ...]
    more: int = 0


def left_out_table(skipped: Path) -> LeftOutTable | None:
    """Reads ``skipped.csv``; None where it is missing."""
    if not skipped.exists():
        return None
    kinds = dict[tuple[str, str], Skipped]()
    with open(skipped, newline="", encoding="utf-8", errors="replace") as file:
        for row in csv.DictReader(file):
            one = Skipped(row["name"], row["reason"], row.get("part") or "", _count(row))
            same = kinds.get((one.part, one.reason))
            kinds[one.part, one.reason] = (
                one if same is None else replace(same, count=same.count + one.count)
            )
    rows = sorted(kinds.values(), key=lambda one: -one.count)
    return LeftOutTable(tuple(rows[:_SHOWN]), max(0, len(rows) - _SHOWN))


def _count(row: dict[str, str]) -> int:
    count = row.get("count") or ""  # files of before had a row for each
    return int(count) if count.isdecimal() else 1
