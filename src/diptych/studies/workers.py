"""Several processes that work on the cells of one study."""

import os
import subprocess
import sys
import time

from diptych.errors import Interrupted, TrainingError
from diptych.studies.conduct import Plan
from diptych.training.signals import collected_signals

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
