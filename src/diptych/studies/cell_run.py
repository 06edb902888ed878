"""One cell with one seed: trained as any run, measured, and its result written."""

from diptych.config.files import load_run_config, nest
from diptych.errors import TrainingError
from diptych.logging.metrics import read_metrics
from diptych.logging.progress import Silent
from diptych.pretraining import run_pretraining
from diptych.runs.folder import RunFolder
from diptych.runtime.device import use_threads
from diptych.studies.cell_results import Result, write_result
from diptych.studies.measures import Bench, Trained, measure, protocol
from diptych.studies.tasks import Task


def run_task(task: Task, bench: Bench) -> Result:
    """Trains from where the run stands, measures, writes ``result.json`` and returns it.

    A run whose loss is not a number has no measures; its result says so.

    Raises:
        Interrupted: a signal came; the run was saved and goes on next time.
        DiptychError: settings or images cannot be used.
    """
    folder = RunFolder(task.folder)
    failed = ""
    try:
        _train(task, folder)
    except TrainingError as error:
        failed = str(error)
    use_threads(bench.runtime.threads)
    run = Trained(folder, bench)
    extra = task.study.measures
    reference = task.cell.name == task.study.reference
    result = Result(
        study=task.study.name,
        cell=task.cell.name,
        seed=task.seed,
        place=dict(task.cell.place),
        measures={} if failed else measure(run, extra, reference=reference),
        command=task.command,
        seconds=max((line["seconds"] for line in read_metrics(folder.metrics)), default=0.0),
        failed=failed,
        settings=dict(task.settings),
        protocol=protocol(run, extra),
    )
    write_result(task.folder, result)
    return result


def _train(task: Task, folder: RunFolder) -> None:
    if folder.head.is_file():  # written last
        return
    settings = dict(task.settings)
    if folder.config.is_file():  # the same bits need the same number of threads
        settings["training.threads"] = load_run_config(folder.config).training.threads
    run_pretraining(
        nest(settings), out=folder.path, config_file=None, resume=True, watcher=Silent()
    )
