"""The verb `study`: one question of the papers, many runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from diptych.cli.flags import parse
from diptych.errors import ConfigError

if TYPE_CHECKING:
    from diptych.studies.study_run import StudyRun


@dataclass(frozen=True)
class StudyFlags:
    """What `diptych study` takes."""

    name: Positional[str | None] = None
    """Which study; all are listed when not given."""
    data: str | None = None
    """Labelled images, as for `diptych pretrain`: a folder with train and test, or class
    folders."""
    out: Path | None = None
    """The study's folder; a study there is continued. `runs/studies/NAME` when not given."""
    images: int | None = None
    """Images to learn from; the study's own number when not given."""
    epochs: int | None = None
    """Epochs of a cell; the study's own number when not given."""
    seeds: int = 3
    """Seeds of each cell, from 0 on."""
    jobs: int = 1
    """Cells that run at once, each in a process of its own."""
    threads: int | None = None
    """CPU threads of each cell; all cores divided by --jobs when not given."""
    cell: str | None = None
    """Run one cell only, CELL/seed-K, and write no page."""
    write_commands: Path | None = None
    """Write to this file a command for each cell that is not done, one a line; run nothing."""
    only_run: bool = False
    """Run the cells and write no page."""
    only_report: bool = False
    """Write table, figure and page of the cells that are done; run nothing."""


def study(arguments: Sequence[str]) -> None:
    """Answer one question of the papers by a grid of ordinary runs: table, figure, page.

    Continues a study that was interrupted: cells that are done are skipped. Without a name it lists
    the studies.

    Examples:
      diptych study
      diptych study momentum --data cifar10/ --jobs 2
      diptych study head --data cifar10/ --write-commands head.txt
      diptych study head --data cifar10/ --only-report
    """
    flags = parse(StudyFlags, study, arguments)

    from diptych.studies.run_cells import run_cells, run_cells_in_processes, write_commands
    from diptych.studies.study_run import STUDIES, find_study, study_run

    if flags.name is None:
        for one in STUDIES.values():
            print(f"{one.name:12} {one.question} {one.source}.")
        return
    chosen = find_study(flags.name)
    if flags.data is None:
        raise ConfigError(f"diptych study {flags.name} needs images: give --data PATH.")
    run = study_run(
        chosen,
        data=flags.data,
        out=flags.out,
        images=flags.images,
        epochs=flags.epochs,
        seeds=flags.seeds,
        threads=flags.threads,
        jobs=flags.jobs,
    )
    if flags.write_commands is not None:
        count = write_commands(run, flags.write_commands)
        print(f"{count} commands: {flags.write_commands}")
        return
    if not flags.only_report:
        if flags.jobs > 1 and flags.cell is None:
            run_cells_in_processes(run, flags.jobs)
        else:
            run_cells(run, cell=flags.cell)
    if not (flags.only_run or flags.cell):
        _write_study(run)


def _write_study(run: "StudyRun") -> None:
    from diptych.studies.study_page import write_study

    for sentence in write_study(run):
        print(sentence)
    print(f"Study: {run.out / 'index.html'}")
