"""Runs made through the command line, each in a process of its own, and what came of them."""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.logging.metrics import read_metrics

# Runs a command and writes the peak memory of that one process, in megabytes, to a file.
_MEASURED = """
import resource, subprocess, sys
code = subprocess.run(sys.argv[2:]).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
open(sys.argv[1], "w").write(str(peak))
sys.exit(code)
"""


@dataclass(frozen=True)
class Run:
    """What came of one run.

    Attributes:
        folder: of the run.
        metrics: its lines, oldest first.
        evaluation: as ``evaluation.json`` has it.
        minutes: of `diptych pretrain`, start and images included.
        peak_megabytes: highest resident memory of that process.
    """

    folder: Path
    metrics: list[dict[str, Any]]
    evaluation: dict[str, Any]
    minutes: float
    peak_megabytes: float

    @property
    def last(self) -> dict[str, Any]:
        """The last line of the metrics."""
        return self.metrics[-1]

    @property
    def gain(self) -> float:
        """Points of kNN accuracy over the untrained encoder."""
        knn = self.evaluation["knn"]
        return float(100 * (knn["trained"] - knn["untrained"]))


def diptych(*arguments: str) -> list[str]:
    """The command of a verb."""
    return [sys.executable, "-m", "diptych", *arguments]


def pretrain_and_evaluate(images: str, flags: Sequence[str], folder: Path) -> Run:
    """`diptych pretrain` and `diptych evaluate`, as a user would run them."""
    given = [*flags, "--no-report", "--quiet", "--out", str(folder)]
    peak = folder.with_name(f"{folder.name}.peak")
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", _MEASURED, str(peak), *diptych("pretrain", images, *given)],
        check=True,
    )
    minutes = (time.perf_counter() - begun) / 60
    subprocess.run(diptych("evaluate", str(folder)), check=True, stdout=subprocess.DEVNULL)
    return Run(
        folder,
        read_metrics(folder / "metrics.jsonl"),
        json.loads((folder / "evaluation.json").read_text()),
        minutes,
        float(peak.read_text()),
    )
