"""Runs the cells of a study that are not done: here, in processes, or as commands for others."""

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from diptych.errors import Interrupted, RunFolderError, TrainingError
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runtime.runtime import Runtime
from diptych.studies.cell_results import CellResult
from diptych.studies.study_run import CellRun, StudyRun
from diptych.training.signals import collected_signals

_LOOK_SECONDS: Final = 0.2
_INTERRUPTED: Final = (
    "the study was interrupted; all that was done is kept. The same command goes on."
)


def run_cells(
    study_run: StudyRun, *, cell: str | None = None, say: Callable[[str], None] = print
) -> None:
    """Runs the cells that are not done, in this process, one after the other.

    A cell that another process works on is left to it: any number of processes may work on one
    study, on one machine or on several that share the folder.

    Args:
        study_run: which cells.
        cell: one only, by its label.
        say: told of every cell that ends.

    Raises:
        Interrupted: a signal came; what was done is kept.
    """
    from diptych.studies.cell_run import SharedImages, train_and_measure

    runs = study_run.cell_runs()
    chosen = runs if cell is None else [study_run.cell_run(cell)]
    _require_room(study_run)
    with Runtime(threads=study_run.threads) as runtime:
        images = SharedImages(runtime)
        for run in chosen:
            if run.result() is not None:
                continue
            with _claimed(run.folder) as is_ours:
                if not is_ours or run.result() is not None:
                    continue
                try:
                    result = train_and_measure(run, images)
                except Interrupted as interruption:
                    raise Interrupted(_INTERRUPTED, interruption.signal_number) from interruption
                say(_line(result, runs))


def run_cells_in_processes(study_run: StudyRun, jobs: int) -> None:
    """Runs the cells that are not done in so many processes, each of which claims cell after cell.

    Raises:
        Interrupted: a signal came; it was passed on, and every process saved its run first.
        TrainingError: a process ended with an error, which it has printed.
    """
    command = [sys.executable, "-m", "diptych", *study_run.arguments(study_run.threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(study_run.threads)}
    with collected_signals() as received:
        workers = [subprocess.Popen([*command, "--only-run"], env=environment) for _ in range(jobs)]
        passed_on = False
        while any(worker.poll() is None for worker in workers):
            if received and not passed_on:
                passed_on = True
                for worker in workers:
                    worker.terminate()
            time.sleep(_LOOK_SECONDS)
    if received:
        raise Interrupted(_INTERRUPTED, received[0])
    codes = [worker.returncode for worker in workers if worker.returncode]
    if codes:
        raise TrainingError(
            f"{len(codes)} of {jobs} processes ended with an error, which stands above. Mend it "
            "and give the same command again; what was done is kept."
        )


def write_commands(study_run: StudyRun, path: Path) -> int:
    """Writes one command a line, each for one cell that is not done, and returns their number."""
    command = ["diptych", *study_run.arguments(study_run.threads), "--cell"]
    lines = [
        shlex.join([*command, run.label]) + "\n"
        for run in study_run.cell_runs()
        if run.result() is None
    ]
    require_writable(path.parent)
    atomic_write(path, os.fsencode("".join(lines)))
    return len(lines)


def _line(result: CellResult, runs: Sequence[CellRun]) -> str:
    done = sum(run.result() is not None for run in runs)
    head = f"[{done}/{len(runs)}] {result.cell}, seed {result.seed}: "
    if result.failed:
        return head + f"failed: {result.failed}"
    return head + f"kNN {result.measures['knn']:.1%}, {result.seconds:.0f} s of training"


def _require_room(study_run: StudyRun) -> None:
    require_writable(study_run.out)
    if study_run.out.exists() and not study_run.out.is_dir():
        raise RunFolderError(f"{study_run.out} is a file; --out needs a folder.")
    (study_run.out / "cells").mkdir(parents=True, exist_ok=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may work in a folder; the kernel releases the lock if it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True
