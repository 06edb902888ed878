"""Cells times seeds: what there is to do, with settings, folders and commands."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.errors import ConfigError, RunFolderError
from diptych.studies.cell_results import Result, read_result
from diptych.studies.study import BASE, Budget, Cell, Study

_SHORT = {"training.epochs": "epochs", "training.batch_size": "batch-size"}
_NOT_COMPARED = frozenset({"training.threads"})  # how fast, not what


@dataclass(frozen=True)
class Task:
    """One cell with one seed.

    Attributes:
        study: that it belongs to.
        cell: of its grid.
        seed: of the run.
        folder: of the run and its result.
        settings: of the run, by dotted names.
    """

    study: Study
    cell: Cell
    seed: int
    folder: Path
    settings: Mapping[str, Any]

    @property
    def label(self) -> str:
        """As ``--cell`` takes it."""
        return f"{self.cell.name}/seed-{self.seed}"

    @property
    def command(self) -> str:
        """The command that repeats the training."""
        return shlex.join(pretrain_arguments(self.settings, self.folder))

    def result(self) -> Result | None:
        """The result, if the cell is done.

        Raises:
            RunFolderError: it is one of other settings.
        """
        found = read_result(self.folder)
        if found is None:
            return None
        different = _differing(found.settings, self.settings)
        if different:
            raise RunFolderError(
                f"{self.folder} holds a result of other settings: {', '.join(different)}. Give the "
                "settings that the study began with, or choose another --out."
            )
        missing = [m for m in self.study.measures if m not in found.protocol.get("measures", ())]
        return found if found.failed or not missing else None


def make_tasks(
    study: Study, *, data: str, out: Path, budget: Budget, seeds: int, threads: int
) -> list[Task]:
    """All cells with all seeds; a seed of every cell before the next, so that a part says most."""
    cells = study.grid(budget.epochs)
    return [
        Task(
            study,
            cell,
            seed,
            out / "cells" / cell.name / f"seed-{seed}",
            _settings(study, cell, data, budget, seed, threads),
        )
        for seed in range(seeds)
        for cell in cells
    ]


def pick(tasks: list[Task], label: str) -> list[Task]:
    """The task with this label.

    Raises:
        ConfigError: there is none.
    """
    found = [task for task in tasks if task.label == label]
    if not found:
        raise ConfigError(
            f"there is no cell {label!r}; wanted CELL/seed-K, as {tasks[0].label!r}, of the cells "
            f"{', '.join(dict.fromkeys(task.cell.name for task in tasks))}."
        )
    return found


def pretrain_arguments(settings: Mapping[str, Any], folder: Path) -> list[str]:
    """The arguments of `diptych`, itself first, that train a run with these settings."""
    arguments = ["diptych", "pretrain", str(settings["images.path"]), "--out", str(folder)]
    for name, value in settings.items():
        if name != "images.path":
            arguments += _flag(_SHORT.get(name, name), value)
    return [*arguments, "--no-report", "--resume"]


def _settings(
    study: Study, cell: Cell, data: str, budget: Budget, seed: int, threads: int
) -> dict[str, Any]:
    limit = {} if budget.images is None else {"images.limit": budget.images}
    return {
        "images.path": data,
        **BASE,
        **limit,
        "training.epochs": budget.epochs,
        **study.base,
        **cell.settings,
        "seed": seed,
        "training.threads": threads,
    }


def _flag(name: str, value: object) -> list[str]:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        section, dot, last = flag.rpartition(".")
        return [f"--{flag}" if value else f"--{section}{dot}no-{last}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{flag}", *map(str, values)]


def _differing(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    names = sorted((found.keys() | wanted.keys()) - _NOT_COMPARED)
    return [
        f"{name} was {found.get(name)!r} and is {wanted.get(name)!r}"
        for name in names
        if _plain(found.get(name)) != _plain(wanted.get(name))
    ]


def _plain(value: object) -> object:
    """As JSON gives it back."""
    return list(value) if isinstance(value, tuple) else value
