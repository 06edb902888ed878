"""Figures that scripts of the project's own environment measure; here they become rows.

Losses, views and probes beside lightly's, kornia's, torchvision's, pytorch-metric-learning's and
scikit-learn's; the step and two processes beside the bare network and one process; start and
embedding beside lightly-train, by the interpreter of its environment.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from peers.environments import ROOT, python_of
from peers.results import Row
from peers.settings import Settings

_PEER: Final = "lightly-train"


class Script(NamedTuple):
    """A benchmark of its own.

    Attributes:
        file: in `benchmarks/`.
        figure: what the table calls it.
        with_peer: whether it takes turns with lightly-train.
    """

    file: str
    figure: str
    with_peer: bool = False


SCRIPTS: Final = {
    "step": Script("step_ceiling.py", "step over the bare network"),
    "processes": Script("two_processes.py", "two processes"),
    "start": Script("start.py", "start", with_peer=True),
    "opening": Script("opening.py", "opening a set"),
    "embed": Script("embed.py", "embedding", with_peer=True),
    "loss": Script("loss.py", "NT-Xent"),
    "views": Script("views.py", "views"),
    "probes": Script("probes.py", "probes"),
}


def rows_of(script: Script) -> Callable[[Settings], list[Row]]:
    """What measures the figures of a script."""

    def measure(settings: Settings) -> list[Row]:
        settings.scratch.mkdir(parents=True, exist_ok=True)
        file = settings.scratch / f"{Path(script.file).stem}.json"
        command = [sys.executable, str(ROOT / "benchmarks" / script.file), "--json", str(file)]
        if script.with_peer:
            command += [f"--{_PEER}", str(python_of(settings.environments, _PEER))]
        subprocess.run([*command, *["--quick"] * settings.quick], check=True)
        found = json.loads(file.read_text())["figures"]
        return [
            Row(script.figure, name, "ratio", 1.0, {}, one["value"], one["goal"], one["bound"])
            for name, one in found.items()
        ]

    return measure
