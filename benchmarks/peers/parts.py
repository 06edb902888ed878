"""Figures that scripts of the project's own environment measure; here they become rows.

Losses, views and probes beside lightly's, kornia's, torchvision's, pytorch-metric-learning's and
scikit-learn's; the step and two processes beside the bare network and one process; start and
embedding beside the other libraries, by the interpreters of their environments.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from peers.contenders import CONTENDERS
from peers.environments import ROOT
from peers.results import Row
from peers.settings import Settings, jpegs

PHOTOGRAPHS: Final = 100  # made for the views, of which 64 are used
PHOTOGRAPH_SIDE: Final = 480


class Script(NamedTuple):
    """A benchmark of its own.

    Attributes:
        file: in `benchmarks/`.
        figure: what the table calls it.
        beside: the libraries whose interpreters it takes, each by a flag of that name.
        jpegs: whether it takes a folder of JPEG files.
    """

    file: str
    figure: str
    beside: tuple[str, ...] = ()
    jpegs: bool = False


SCRIPTS: Final = {
    "step": Script("step_ceiling.py", "step over the bare network"),
    "processes": Script("two_processes.py", "two processes"),
    "start": Script("start.py", "start", ("lightly-train", "lightly", "stable-pretraining")),
    "opening": Script("opening.py", "opening a set"),
    "embed": Script("embed.py", "embedding", ("lightly-train",)),
    "loss": Script("loss.py", "NT-Xent"),
    "views": Script("views.py", "views", jpegs=True),
    "probes": Script("probes.py", "probes"),
}


def rows_of(script: Script) -> Callable[[Settings], list[Row]]:
    """What measures the figures of a script."""

    def measure(settings: Settings) -> list[Row]:
        settings.scratch.mkdir(parents=True, exist_ok=True)
        file = settings.scratch / f"{Path(script.file).stem}.json"
        file.unlink(missing_ok=True)
        subprocess.run(command(script, settings, file), check=True)
        found = json.loads(file.read_text())["figures"]
        return [row_of(script, name, one) for name, one in found.items()]

    return measure


def command(script: Script, settings: Settings, file: Path) -> list[str]:
    """What runs a script, its figures to a file."""
    words = [sys.executable, str(ROOT / "benchmarks" / script.file), "--json", str(file)]
    for name in script.beside:
        if settings.needs(name):
            words += [f"--{name}", str(CONTENDERS[name].python(settings.environments))]
    if script.jpegs:
        folder = settings.scratch / f"photographs-{PHOTOGRAPH_SIDE}"
        words += ["--jpegs", str(jpegs(folder, PHOTOGRAPHS, PHOTOGRAPH_SIDE))]
    return [*words, *["--quick"] * settings.quick]


def row_of(script: Script, name: str, figure: Mapping[str, Any]) -> Row:
    """A figure of a script; without a ratio where its goal is about the value itself."""
    goal, bound = figure["goal"], figure["bound"]
    if figure["ours"] is None:
        unit, ours = figure["unit"] or "ratio", figure["value"]
        return Row(script.figure, name, unit, ours, {}, None, goal, bound)
    return Row(
        *(script.figure, name, figure["unit"], figure["ours"], figure["others"]),
        *(figure["value"], goal, bound),
    )
