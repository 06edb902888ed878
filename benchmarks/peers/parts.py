"""Losses and views beside lightly's, kornia's, torchvision's and pytorch-metric-learning's.

Both are measured by scripts of the project's own environment, in which all take turns in one
process; here their figures become rows.
"""

import json
import subprocess
import sys
from pathlib import Path

from peers.environments import ROOT
from peers.results import Row
from peers.settings import Settings


def loss(settings: Settings) -> list[Row]:
    """NT-Xent: time and memory of the peers over ours."""
    return _rows(settings, "loss.py", "NT-Xent")


def views(settings: Settings) -> list[Row]:
    """Views: our images per second and core over the peers'."""
    return _rows(settings, "views.py", "views")


def _rows(settings: Settings, script: str, figure: str) -> list[Row]:
    settings.scratch.mkdir(parents=True, exist_ok=True)
    file = settings.scratch / f"{Path(script).stem}.json"
    command = [sys.executable, str(ROOT / "benchmarks" / script), "--json", str(file)]
    subprocess.run([*command, *["--quick"] * settings.quick], check=True)
    found = json.loads(file.read_text())["figures"]
    return [
        Row(figure, name, "ratio", 1.0, {}, one["value"], one["goal"], one["bound"])
        for name, one in found.items()
    ]
