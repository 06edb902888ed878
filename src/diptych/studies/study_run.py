"""A study as the user asked for it: its cells times seeds, with settings, folders and commands."""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from diptych.errors import ConfigError, RunFolderError
from diptych.runtime.devices import available_threads
from diptych.studies.cell_results import CellResult, StudyResults, read_result
from diptych.studies.dictionary_studies import MECHANISMS, MOMENTUM, SHUFFLE
from diptych.studies.loss_studies import BATCH, LOSS, TEMPERATURE
from diptych.studies.method_studies import NEGATIVES
from diptych.studies.network_studies import HEAD, INVARIANCE, SIZE
from diptych.studies.study import BASE, Budget, Cell, Study, for_budget
from diptych.studies.view_studies import COMPOSITION, STRENGTH

STUDIES: Final[Mapping[str, Study]] = {
    study.name: study
    for study in (
        MECHANISMS,
        MOMENTUM,
        SHUFFLE,
        COMPOSITION,
        STRENGTH,
        HEAD,
        INVARIANCE,
        LOSS,
        TEMPERATURE,
        BATCH,
        SIZE,
        NEGATIVES,
    )
}


def find_study(name: str) -> Study:
    """The study of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in STUDIES:
        raise ConfigError(f"there is no study {name!r}; wanted one of {', '.join(STUDIES)}.")
    return STUDIES[name]


_SHORT = {"training.epochs": "epochs", "training.batch_size": "batch-size"}
_NOT_COMPARED = frozenset({"training.threads"})  # how fast, not what


@dataclass(frozen=True)
class CellRun:
    """One cell with one seed.

    Attributes:
        study: that it belongs to.
        cell: of its grid.
        seed: of the run.
        folder: of the run and its result.
        settings: of the run, by dotted names.
        reference: whether its untrained encoder is measured too.
    """

    study: Study
    cell: Cell
    seed: int
    folder: Path
    settings: Mapping[str, Any]
    reference: bool

    @property
    def label(self) -> str:
        """As ``--cell`` takes it."""
        return f"{self.cell.name}/seed-{self.seed}"

    @property
    def command(self) -> str:
        """The command that repeats the training."""
        arguments = ["diptych", "pretrain", str(self.settings["images.path"])]
        arguments += ["--out", str(self.folder)]
        for name, value in self.settings.items():
            if name != "images.path":
                arguments += _flag(_SHORT.get(name, name), value)
        return shlex.join([*arguments, "--no-report", "--resume"])

    def result(self) -> CellResult | None:
        """The result that there is; it may lack measures, see ``missing``.

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
        return found

    @property
    def measures(self) -> tuple[str, ...]:
        """What it is measured by besides what every cell is; names in ``run_cells.EXTRA``."""
        return (*(("untrained",) if self.reference else ()), *self.study.measures)

    def missing(self, found: CellResult) -> tuple[str, ...]:
        """The measures that a result lacks, as one does that was made before the study had them."""
        # A run that failed has nothing to measure, so it is done whatever is missing.
        if found.failed:
            return ()
        there = {*found.measures, *found.protocol.get("measures", ())}
        return tuple(name for name in self.measures if name not in there)

    def is_done(self) -> bool:
        """Whether there is a result that lacks nothing.

        Raises:
            RunFolderError: it is one of other settings.
        """
        found = self.result()
        return found is not None and not self.missing(found)


@dataclass(frozen=True)
class StudyRun:
    """A study with everything that the command line leaves open.

    Attributes:
        study: the question.
        data: path of the images, as the user gave it.
        out: folder of the study.
        budget: what a cell learns from.
        seeds: of each cell, from 0 on.
        threads: of each cell.
    """

    study: Study
    data: str
    out: Path
    budget: Budget
    seeds: int
    threads: int

    def cell_runs(self) -> list[CellRun]:
        """Cells times seeds; a seed of every cell before the next, so that a part says most."""
        limit = {} if self.budget.images is None else {"images.limit": self.budget.images}
        shared = {"images.path": self.data, **BASE, **limit, "training.epochs": self.budget.epochs}
        reference = for_budget(self.study.reference, self.budget)
        return [
            CellRun(
                self.study,
                cell,
                seed,
                self.out / "cells" / cell.name / f"seed-{seed}",
                {
                    **shared,
                    **self.study.base,
                    **cell.settings,
                    "seed": seed,
                    "training.threads": self.threads,
                },
                cell.name == reference,
            )
            for seed in range(self.seeds)
            for cell in self.study.grid(self.budget.epochs)
        ]

    def cell_run(self, label: str) -> CellRun:
        """The cell and seed with this label.

        Raises:
            ConfigError: there is none.
        """
        runs = self.cell_runs()
        for run in runs:
            if run.label == label:
                return run
        raise ConfigError(
            f"there is no cell {label!r}; wanted CELL/seed-K, as {runs[0].label!r}, of the cells "
            f"{', '.join(dict.fromkeys(run.cell.name for run in runs))}."
        )

    def results(self) -> StudyResults:
        """The results that there are, some of which may lack measures."""
        found = (run.result() for run in self.cell_runs())
        return StudyResults((one for one in found if one is not None), self.budget.epochs)

    def arguments(self, threads: int | None = None) -> list[str]:
        """The arguments of `diptych` that give this study again."""
        images = [] if self.budget.images is None else ["--images", str(self.budget.images)]
        return [
            *("study", self.study.name, "--data", self.data, "--out", str(self.out), *images),
            *("--epochs", str(self.budget.epochs), "--seeds", str(self.seeds)),
            *([] if threads is None else ["--threads", str(threads)]),
        ]


def study_run(
    study: Study,
    *,
    data: str,
    out: Path | None = None,
    images: int | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    threads: int | None = None,
    jobs: int = 1,
) -> StudyRun:
    """What was given, and the study's own values for the rest.

    Args:
        study: to run.
        data: images with labels, anything that ``pretrain`` takes.
        out: folder; ``runs/studies/NAME`` when not given.
        images: to learn from.
        epochs: of a cell; cells of some studies have a multiple or a part of it.
        seeds: of each cell, from 0 on.
        threads: of each cell; all cores divided by ``jobs`` when not given.
        jobs: cells that run at once.

    Raises:
        ConfigError: a number is not positive.
    """
    for name, number in (("seeds", seeds), ("jobs", jobs), ("images", images), ("epochs", epochs)):
        if number is not None and number < 1:
            raise ConfigError(f"--{name} must be 1 or more; got {number}.")
    given = {"images": images, "epochs": epochs}
    budget = replace(study.budget, **{n: v for n, v in given.items() if v is not None})
    each = threads or max(1, available_threads() // jobs)
    return StudyRun(study, data, out or Path("runs") / "studies" / study.name, budget, seeds, each)


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
