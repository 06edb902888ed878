"""What every benchmark shares: its flags, a table on the screen, figures as JSON."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it should be, at least or at most."""

    name: str
    value: float
    goal: float
    bound: Literal["at least", "at most"] = "at least"

    @property
    def holds(self) -> bool:
        """Whether the goal is reached."""
        return self.value >= self.goal if self.bound == "at least" else self.value <= self.goal


def add_arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the flags of every benchmark, for one that adds its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--quick", action="store_true", help="end within two minutes")
    return parser


def parse_arguments(description: str | None) -> argparse.Namespace:
    """The flags of every benchmark."""
    return add_arguments(description).parse_args()


def resident_bytes(kind: Literal["VmRSS", "VmHWM"]) -> int:
    """Memory that this process holds now (VmRSS), or held at most so far (VmHWM).

    Not getrusage's ru_maxrss: that one begins at what the parent process held.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(kind))


def machine() -> dict[str, dict[str, Any]]:
    """What figures were measured on, and with which versions."""
    return {
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("diptych", "torch", "numba", "numpy")},
        },
    }


def processor() -> str:
    """The name of the processor, where the system tells."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def publish(figures: Sequence[Figure], title: str, file: Path | None) -> None:
    """Prints the figures as a table and writes them as JSON if a file is given."""
    table = Table(title=title, title_justify="left")
    for column in ("figure", "measured", "goal", ""):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for one in figures:
        mark = "holds" if one.holds else "missed"
        table.add_row(one.name, f"{one.value:.3f}", f"{one.bound} {one.goal:.3f}", mark)
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    if file is not None:
        document = {
            "figures": {
                one.name: {
                    "value": one.value,
                    "goal": one.goal,
                    "bound": one.bound,
                    "holds": one.holds,
                }
                for one in figures
            },
            **machine(),
        }
        file.write_text(json.dumps(document, indent=1) + "\n")
