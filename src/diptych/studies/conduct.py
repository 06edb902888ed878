"""A study from its name to its page: cells run where they are not done, then everything read."""

import fcntl
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from diptych.errors import ConfigError, Interrupted, RunFolderError, TrainingError
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runtime.device import available_threads
from diptych.runtime.runtime import Runtime
from diptych.studies.cell_results import Result, Results
from diptych.studies.study import Budget, Study
from diptych.studies.tasks import Task, make_tasks, pick
from diptych.training.signals import collected_signals

Say = Callable[[str], None]


class Plan(NamedTuple):
    """A study as it was asked for.

    Attributes:
        study: what is asked.
        data: path of the images, as the user gave it.
        out: folder of the study.
        budget: what a cell learns from.
        seeds: of each cell.
        threads: of each cell.
    """

    study: Study
    data: str
    out: Path
    budget: Budget
    seeds: int
    threads: int

    def tasks(self) -> list[Task]:
        """Cells times seeds."""
        return make_tasks(
            self.study,
            data=self.data,
            out=self.out,
            budget=self.budget,
            seeds=self.seeds,
            threads=self.threads,
        )

    def arguments(self, threads: int | None = None) -> list[str]:
        """The arguments of `diptych` that give this plan again."""
        images = [] if self.budget.images is None else ["--images", str(self.budget.images)]
        return [
            *("study", self.study.name, "--data", self.data, "--out", str(self.out), *images),
            *("--epochs", str(self.budget.epochs), "--seeds", str(self.seeds)),
            *([] if threads is None else ["--threads", str(threads)]),
        ]


def make_plan(
    study: Study,
    *,
    data: str,
    out: Path | None = None,
    images: int | None = None,
    epochs: int | None = None,
    seeds: int = 3,
    threads: int | None = None,
    jobs: int = 1,
) -> Plan:
    """A plan from what was given; the rest is the study's own.

    Args:
        study: to conduct.
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
    return Plan(study, data, out or Path("runs") / "studies" / study.name, budget, seeds, each)


def run_cells(plan: Plan, *, cell: str | None = None, say: Say = print) -> None:
    """Runs the cells that are not done, in this process, one after the other.

    A cell that another process works on is left to it: any number of processes may work on one
    study, on one machine or on several that share the folder.

    Args:
        plan: which cells.
        cell: one only, by its label.
        say: told of every cell that ends.

    Raises:
        Interrupted: a signal came; what was done is kept.
    """
    from diptych.studies.cell_run import run_task
    from diptych.studies.measures import Bench

    tasks = plan.tasks()
    chosen = tasks if cell is None else pick(tasks, cell)
    _require_room(plan)
    with Runtime(threads=plan.threads) as runtime:
        bench = Bench(runtime)
        for task in chosen:
            if task.result() is not None:
                continue
            with _claimed(task.folder) as is_ours:
                if is_ours and task.result() is None:
                    say(_line(_run(lambda task=task: run_task(task, bench)), tasks))  # type: ignore[misc]


def write_commands(plan: Plan, path: Path) -> int:
    """Writes one command a line, each for one cell that is not done, and returns their number."""
    waiting = [task for task in plan.tasks() if task.result() is None]
    lines = [
        shlex.join(["diptych", *plan.arguments(plan.threads), "--cell", task.label])
        for task in waiting
    ]
    require_writable(path.parent)
    atomic_write(path, os.fsencode("".join(line + "\n" for line in lines)))
    return len(lines)


def gather(plan: Plan) -> Results:
    """The results that there are."""
    return Results([found for task in plan.tasks() if (found := task.result()) is not None])


def _run(work: Callable[[], Result]) -> Result:
    try:
        return work()
    except Interrupted as interruption:
        raise Interrupted(
            "the study was interrupted; all that was done is kept. The same command goes on.",
            interruption.signal_number,
        ) from interruption


def _line(result: Result, tasks: Sequence[Task]) -> str:
    done = sum(task.result() is not None for task in tasks)
    head = f"[{done}/{len(tasks)}] {result.cell}, seed {result.seed}: "
    if result.failed:
        return head + f"failed: {result.failed}"
    return head + f"kNN {result.measures['knn']:.1%}, {result.seconds:.0f} s of training"


def _require_room(plan: Plan) -> None:
    require_writable(plan.out)
    if plan.out.exists() and not plan.out.is_dir():
        raise RunFolderError(f"{plan.out} is a file; --out needs a folder.")
    (plan.out / "cells").mkdir(parents=True, exist_ok=True)


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may work in a folder; the kernel takes the claim back if it dies."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


_LOOK_SECONDS = 0.2


def run_cells_in_processes(plan: Plan, jobs: int) -> None:
    """Runs the cells that are not done in so many processes, each of which claims cell after cell.

    Raises:
        Interrupted: a signal came; it was passed on, and every process saved its run first.
        TrainingError: a process ended with an error, which it has printed.
    """
    command = [sys.executable, "-m", "diptych", *plan.arguments(plan.threads), "--only-run"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(plan.threads)}
    with collected_signals() as received:
        workers = [subprocess.Popen(command, env=environment) for _ in range(jobs)]
        passed_on = False
        while any(worker.poll() is None for worker in workers):
            if received and not passed_on:
                passed_on = True
                for worker in workers:
                    worker.terminate()
            time.sleep(_LOOK_SECONDS)
    if received:
        raise Interrupted(
            "the study was interrupted; all that was done is kept. The same command goes on.",
            received[0],
        )
    codes = [worker.returncode for worker in workers if worker.returncode]
    if codes:
        raise TrainingError(
            f"{len(codes)} of {jobs} processes ended with an error, which stands above. Mend it "
            "and give the same command again; what was done is kept."
        )
