"""Runs the cells of a study that are not done: here, in processes, or as commands for others.

A cell is trained as any run, then measured: kNN, pretext accuracy and effective rank, and what the
study needs besides.
"""

import fcntl
import math
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from diptych.config.data import ImagesConfig
from diptych.config.files import load_run_config, nest
from diptych.config.run import RunConfig
from diptych.diagnostics.leak import check_leak
from diptych.diagnostics.symptoms import COLLAPSES, find_symptoms
from diptych.errors import ImagesError, Interrupted, RunFolderError, TrainingError
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.features import trained_layers
from diptych.evaluation.geometry import effective_rank
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE, accuracy, knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.linear import fit_linear
from diptych.evaluation.split import groups_of_parts, units_of
from diptych.evaluation.supervised_encoder import supervised_encoder
from diptych.evaluation.transformations import probe_layers
from diptych.images.collection import Collection
from diptych.images.open import open_images
from diptych.logging.metrics import read_metrics, task_accuracy
from diptych.logging.progress import Silent
from diptych.models.weights import TrainedOn, load_encoder, load_trained_on, untrained_encoder
from diptych.pretraining import run_pretraining
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, require_writable
from diptych.runtime.devices import Runtime, use_threads
from diptych.studies.cell_results import RESULT_NAME, CellResult, write_result
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
        say: called with a line for every cell that ends.

    Raises:
        Interrupted: a signal came; what was done is kept.
    """
    runs = study_run.cell_runs()
    chosen = runs if cell is None else [study_run.cell_run(cell)]
    _require_room(study_run)
    with Runtime(threads=study_run.threads) as runtime:
        images = SharedImages(runtime)
        for run in chosen:
            if run.is_done():
                continue
            with _claimed(run.folder) as is_ours:
                # Again under the lock: another process may have finished it in between.
                if not is_ours or run.is_done():
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
    # torch reads it when it is imported, which is before --threads is read.
    environment = {**os.environ, "OMP_NUM_THREADS": str(study_run.threads)}
    with collected_signals() as received:
        workers = [subprocess.Popen([*command, "--only-run"], env=environment) for _ in range(jobs)]
        passed_on = False
        while any(worker.poll() is None for worker in workers):
            if received and not passed_on:
                passed_on = True  # once: a second signal would end a worker that saves
                for worker in workers:
                    worker.terminate()
            time.sleep(_LOOK_SECONDS)
    if received:
        raise Interrupted(_INTERRUPTED, received[0])
    codes = [worker.returncode for worker in workers if worker.returncode]
    if codes:
        raise TrainingError(
            f"{len(codes)} of {jobs} processes ended with an error, printed above. Correct it "
            "and give the same command again; what was done is kept."
        )


def write_commands(study_run: StudyRun, path: Path) -> int:
    """Writes one command a line, each for one cell that is not done, and returns their number."""
    command = ["diptych", *study_run.arguments(study_run.threads), "--cell"]
    lines = [
        shlex.join([*command, run.label]) + "\n"
        for run in study_run.cell_runs()
        if not run.is_done()
    ]
    require_writable(path.parent)
    # As bytes for a shell: a name that is escaped would be another file's.
    atomic_write(path, os.fsencode("".join(lines)))
    return len(lines)


def _line(result: CellResult, runs: Sequence[CellRun]) -> str:
    done = sum(run.is_done() for run in runs)
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
    # The file is never removed: two processes could then hold locks on two files of one name.
    with open(folder / ".claim", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
            return
        yield True


def train_and_measure(cell_run: CellRun, images: "SharedImages") -> CellResult:
    """Trains from where the run stands, measures, writes ``result.json`` and returns it.

    Where there is a result, and the encoder that it is of, only what it lacks is measured. A run
    whose loss is not a number has no measures; its result says so.

    Raises:
        Interrupted: a signal came; the run was saved and goes on next time.
        DiptychError: settings or images cannot be used.
    """
    run = TrainedRun(RunFolder(cell_run.folder), images)
    found = cell_run.result()
    if found is not None and _is_trained(run.folder):
        missing = cell_run.missing(found)
        measured = [*found.protocol.get("measures", ()), *missing]
        result = replace(
            found,
            measures={**found.measures, **_extra(run, missing)},
            protocol={**found.protocol, "measures": measured},
        )
    else:
        result = _trained_result(_as_begun(cell_run), run)
    # Last: by this file the cell counts as done.
    write_result(cell_run.folder, result)
    return result


def _trained_result(cell_run: CellRun, run: "TrainedRun") -> CellResult:
    """Trains what is not trained, and measures everything."""
    failed = ""
    try:
        if not _is_trained(run.folder):
            # One of an encoder that is gone: its measures must not mix with those of the next.
            (cell_run.folder / RESULT_NAME).unlink(missing_ok=True)
            run_pretraining(
                nest(dict(cell_run.settings)),
                out=run.folder.path,
                config_file=None,
                resume=True,
                watcher=Silent(),
            )
    except TrainingError as error:
        failed = str(error)
    # The run has set its own number, which may be another.
    use_threads(run.images.runtime.threads)
    return CellResult(
        study=cell_run.study.name,
        cell=cell_run.cell.name,
        seed=cell_run.seed,
        place=dict(cell_run.cell.place),
        measures={} if failed else _basic(run) | _extra(run, cell_run.measures),
        command=cell_run.command,
        seconds=max((line["seconds"] for line in read_metrics(run.folder.metrics)), default=0.0),
        failed=failed,
        settings=dict(cell_run.settings),
        protocol=_protocol(run, cell_run.measures),
    )


def _is_trained(folder: RunFolder) -> bool:
    return folder.head.is_file()  # written last


def _as_begun(cell_run: CellRun) -> CellRun:
    """With as many threads as the run began with, as the same bits need the same number."""
    folder = RunFolder(cell_run.folder)
    if not folder.config.is_file():
        return cell_run
    threads = load_run_config(folder.config).training.threads
    return replace(cell_run, settings={**cell_run.settings, "training.threads": threads})


class SharedImages:
    """The labelled images, kept open from cell to cell, as all cells of a study share them.

    Args:
        runtime: what cells are measured with.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._config: ImagesConfig | None = None
        self._collection: Collection | None = None

    def labelled(self, config: ImagesConfig, seen: TrainedOn | None) -> Labelled:
        """The labelled images of a run.

        Args:
            config: of its images.
            seen: what it learned from, if known.

        Raises:
            ImagesError: they have no labels.
        """
        if config != self._config or self._collection is None:
            self._collection, self._config = open_images(config, self.runtime.executor), config
        found = labelled_parts(self._collection, group_by=config.group_by, seen=seen)
        if found is None:
            raise ImagesError(
                f"{config.path} has no labels, by which a study measures. Put the images of each "
                "class into a folder of its own."
            )
        return found


@dataclass(frozen=True)
class TrainedRun:
    """A run whose training has ended.

    Attributes:
        folder: of the run.
        images: to measure it on.
    """

    folder: RunFolder
    images: SharedImages

    @cached_property
    def config(self) -> RunConfig:
        """Of the run, resolved."""
        return load_run_config(self.folder.config)

    @cached_property
    def labelled(self) -> Labelled:
        """Its images with labels, in two parts."""
        return self.images.labelled(self.config.images, load_trained_on(self.folder.trained_on))

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """Of the images to fit on and of those to measure on, before the head."""
        return self.encode(load_encoder(self.folder))

    @cached_property
    def supervised_features(self) -> tuple[Tensor, Tensor]:
        """The same of the supervised baseline, which is trained once and kept."""
        runtime = self.images.runtime
        return self.encode(supervised_encoder(self.folder, self.config, self.labelled, runtime))

    def encode(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """The same of another network."""
        parts = (self.labelled.train, self.labelled.test)
        store = FeatureStore(self.folder.features, self.images.runtime)
        network = network.to(self.images.runtime.torch_device)
        opened, views = self.config.images, self.config.views
        train, test = (store.features(network, part, opened, views) for part in parts)
        return train, test


def _basic(run: TrainedRun) -> dict[str, float]:
    """What is measured of every run, by name."""
    return {
        "knn": _knn(run, run.features),
        "pretext": final_pretext_accuracy(read_metrics(run.folder.metrics)),
        "effective_rank": effective_rank(run.features[0]),
    }


def _extra(run: TrainedRun, names: tuple[str, ...]) -> dict[str, float]:
    """What is measured besides, by these names in ``EXTRA``."""
    return {measure: value for name in names for measure, value in EXTRA[name](run).items()}


def _protocol(run: TrainedRun, extra: tuple[str, ...]) -> dict[str, Any]:
    """How a run was measured, and by which names in ``EXTRA``."""
    return {
        "train_images": len(run.labelled.train),
        "test_images": len(run.labelled.test),
        "classes": len(run.labelled.classes),
        "knn_neighbours": NEIGHBOURS,
        "knn_temperature": TEMPERATURE,
        "measures": list(extra),
        "split": run.labelled.as_dict(),
    }


def final_pretext_accuracy(metrics: list[dict[str, Any]]) -> float:
    """Over the last tenth of the lines of metrics: of whatever accuracy the method has."""
    late = metrics[-max(1, len(metrics) // 10) :]
    task = task_accuracy(late[-1])
    return math.nan if task is None else statistics.fmean(line[task.name] for line in late)


def _knn(run: TrainedRun, features: tuple[Tensor, Tensor]) -> float:
    train, test = features
    predicted = knn_predict(train, run.labelled.train_labels, test)
    return accuracy(predicted, run.labelled.test_labels)


def _linear_accuracy(run: TrainedRun, features: tuple[Tensor, Tensor]) -> float:
    train, test = features
    classifier = fit_linear(train, run.labelled.train_labels, groups=run.labelled.units)
    return accuracy(classifier.predict(test), run.labelled.test_labels)


def _untrained(run: TrainedRun) -> dict[str, float]:
    return {"untrained": _knn(run, run.encode(untrained_encoder(run.config)))}


def _linear(run: TrainedRun) -> dict[str, float]:
    return {"linear": _linear_accuracy(run, run.features)}


def _leak(run: TrainedRun) -> dict[str, float]:
    runtime = run.images.runtime
    found = check_leak(run.folder.path, device=runtime.device, threads=runtime.threads)
    return {"leak": 0.0 if found is None else found.leak_accuracy}


def _collapse(run: TrainedRun) -> dict[str, float]:
    """Whether the run itself said that it collapsed, and after what share of its steps."""
    metrics = read_metrics(run.folder.metrics)
    for count, line in enumerate(metrics, start=1):
        found = find_symptoms(metrics[:count], dictionary_size=None)
        if any(one.name in COLLAPSES for one in found):
            return {"alarm": 1.0, "alarm_at": line["step"] / metrics[-1]["step"]}
    return {"alarm": 0.0}


def _minutes(run: TrainedRun) -> dict[str, float]:
    return {"minutes": read_metrics(run.folder.metrics)[-1]["seconds"] / 60}


def _supervised(run: TrainedRun) -> dict[str, float]:
    return {"supervised": _knn(run, run.supervised_features)}


def _supervised_linear(run: TrainedRun) -> dict[str, float]:
    return {"supervised_linear": _linear_accuracy(run, run.supervised_features)}


def _transformations(run: TrainedRun) -> dict[str, float]:
    """Shares named ``TASK_LAYER``, before (h) and after (g) the head."""
    views, runtime, images = run.config.views, run.images.runtime, run.labelled.test
    groups, _, _ = groups_of_parts(images, None, run.config.images.group_by)
    found = probe_layers(
        trained_layers(run.folder), images, views, runtime, groups=units_of(images, groups)
    )["layers"]
    return {
        f"{name}_{short}": found[layer][task]["value"]
        for name, task in _TRANSFORMATION_TASKS.items()
        for short, layer in (("h", "h"), ("g", "g(h)"))
    }


_TRANSFORMATION_TASKS: Final[Mapping[str, str]] = {
    "color": "color or gray",
    "rotation": "rotation",
    "noise": "original or noise-corrupted",
    "sobel": "original or Sobel",
}
"""The tasks of ``evaluation/transformations.py`` by the first part of a measure's name."""

EXTRA: Final[Mapping[str, Callable[[TrainedRun], dict[str, float]]]] = {
    "untrained": _untrained,
    "linear": _linear,
    "leak": _leak,
    "supervised": _supervised,
    "supervised_linear": _supervised_linear,
    "transformations": _transformations,
    "collapse": _collapse,
    "minutes": _minutes,
}
"""What a study may ask for besides."""
