"""What every benchmark shares: its flags, a table on the screen, figures as JSON."""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table

from diptych import __version__

ROOT: Final = Path(__file__).parents[1]
PACKAGES: Final = (
    *("torch", "torchvision", "numba", "numpy", "pillow", "simplejpeg"),
    *("scikit-learn", "lightly", "kornia", "pytorch-metric-learning"),
)
"""Whose versions are kept with the figures: what computes, and what is compared with."""


@dataclass(frozen=True)
class Figure:
    """One measured figure and what it should be, at least or at most.

    Attributes:
        name: what was measured.
        value: what the goal is about: a ratio, or a measured value itself.
        goal: what it should be.
        bound: at least or at most that.
        unit: of a value that is no ratio, or of what a ratio is made of.
        ours: what a ratio is made of: diptych's value, where the script tells.
        others: and those of other libraries, by name.
    """

    name: str
    value: float
    goal: float
    bound: Literal["at least", "at most"] = "at least"
    unit: str = ""
    ours: float | None = None
    others: Mapping[str, float] = field(default_factory=dict)

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


def machine() -> dict[str, Any]:
    """What figures were measured on, and with which versions."""
    return {
        "machine": {
            "processor": processor(),
            "cores": len(os.sched_getaffinity(0)),
            "system": platform.platform(),
        },
        "versions": {
            "python": platform.python_version(),
            "diptych": __version__,
            **dict(_versions(PACKAGES)),
        },
        "commit": commit(),
    }


def _versions(packages: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Of those that are installed."""
    for name in packages:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue


def commit() -> str:
    """The commit that is checked out, with a "+" where files differ from it; empty without one."""
    command = ["git", "describe", "--always", "--exclude", "*", "--abbrev=40", "--dirty=+"]
    try:
        return subprocess.run(
            command, cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a copy without its history
        return ""


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
                    "unit": one.unit,
                    "ours": one.ours,
                    "others": dict(one.others),
                }
                for one in figures
            },
            **machine(),
        }
        file.write_text(json.dumps(document, indent=1) + "\n")
