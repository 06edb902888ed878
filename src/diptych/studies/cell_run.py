"""One cell with one seed: trained as any run, then measured, and its result written.

KNN, pretext accuracy and effective rank are always measured, and what the study needs besides.
"""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from torch import Tensor, nn

from diptych.config.data import ImagesConfig
from diptych.config.files import load_run_config, nest
from diptych.config.run import RunConfig
from diptych.diagnostics.leak import check_leak
from diptych.errors import ImagesError, TrainingError
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.features import trained_layers
from diptych.evaluation.geometry import effective_rank
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE, accuracy, knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.linear import fit_linear
from diptych.evaluation.split import groups_of_parts, units_of
from diptych.evaluation.supervised import supervised_encoder
from diptych.evaluation.transformations import probe_layers
from diptych.images.collection import Collection
from diptych.images.open import open_images
from diptych.logging.metrics import read_metrics
from diptych.logging.progress import Silent
from diptych.models.weights import TrainedOn, load_encoder, load_trained_on, untrained_encoder
from diptych.pretraining import run_pretraining
from diptych.runs.folder import RunFolder
from diptych.runtime.runtime import Runtime, use_threads
from diptych.studies.cell_results import CellResult, write_result
from diptych.studies.study_run import CellRun


def train_and_measure(cell_run: CellRun, images: "SharedImages") -> CellResult:
    """Trains from where the run stands, measures, writes ``result.json`` and returns it.

    A run whose loss is not a number has no measures; its result says so.

    Raises:
        Interrupted: a signal came; the run was saved and goes on next time.
        DiptychError: settings or images cannot be used.
    """
    folder = RunFolder(cell_run.folder)
    failed = ""
    try:
        _train(cell_run, folder)
    except TrainingError as error:
        failed = str(error)
    use_threads(images.runtime.threads)
    run = TrainedRun(folder, images)
    extra = cell_run.study.measures
    reference = cell_run.cell.name == cell_run.study.reference
    result = CellResult(
        study=cell_run.study.name,
        cell=cell_run.cell.name,
        seed=cell_run.seed,
        place=dict(cell_run.cell.place),
        measures={} if failed else _measure(run, extra, reference=reference),
        command=cell_run.command,
        seconds=max((line["seconds"] for line in read_metrics(folder.metrics)), default=0.0),
        failed=failed,
        settings=dict(cell_run.settings),
        protocol=_protocol(run, extra),
    )
    write_result(cell_run.folder, result)
    return result


def _train(cell_run: CellRun, folder: RunFolder) -> None:
    if folder.head.is_file():  # written last
        return
    settings = dict(cell_run.settings)
    if folder.config.is_file():  # the same bits need the same number of threads
        settings["training.threads"] = load_run_config(folder.config).training.threads
    run_pretraining(
        nest(settings), out=folder.path, config_file=None, resume=True, watcher=Silent()
    )


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

    def encode(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """The same of another network."""
        parts = (self.labelled.train, self.labelled.test)
        store = FeatureStore(self.folder.features, self.images.runtime)
        network = network.to(self.images.runtime.torch_device)
        opened, views = self.config.images, self.config.views
        train, test = (store.features(network, part, opened, views) for part in parts)
        return train, test


def _measure(run: TrainedRun, extra: tuple[str, ...], *, reference: bool) -> dict[str, float]:
    """Everything that is measured of a run, by name.

    Args:
        run: to measure.
        extra: names in ``EXTRA``.
        reference: measure the untrained encoder of this run too.
    """
    found = {
        "knn": _knn(run, run.features),
        "pretext": final_pretext_accuracy(read_metrics(run.folder.metrics)),
        "effective_rank": effective_rank(run.features[0]),
    }
    if reference:
        found["untrained"] = _knn(run, run.encode(untrained_encoder(run.config)))
    for name in extra:
        found |= EXTRA[name](run)
    return found


def _protocol(run: TrainedRun, extra: tuple[str, ...]) -> dict[str, Any]:
    """How it was measured."""
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
    """Over the last tenth of the lines of metrics."""
    late = metrics[-max(1, len(metrics) // 10) :]
    return statistics.fmean(line["pretext_accuracy"] for line in late)


def _knn(run: TrainedRun, features: tuple[Tensor, Tensor]) -> float:
    train, test = features
    predicted = knn_predict(train, run.labelled.train_labels, test)
    return accuracy(predicted, run.labelled.test_labels)


def _linear(run: TrainedRun) -> dict[str, float]:
    train, test = run.features
    classifier = fit_linear(train, run.labelled.train_labels, groups=run.labelled.units)
    return {"linear": accuracy(classifier.predict(test), run.labelled.test_labels)}


def _leak(run: TrainedRun) -> dict[str, float]:
    runtime = run.images.runtime
    found = check_leak(run.folder.path, device=runtime.device, threads=runtime.threads)
    return {"leak": 0.0 if found is None else found.leak_accuracy}


def _supervised(run: TrainedRun) -> dict[str, float]:
    supervised = supervised_encoder(run.folder, run.config, run.labelled, run.images.runtime)
    return {"supervised": _knn(run, run.encode(supervised))}


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
    "linear": _linear,
    "leak": _leak,
    "supervised": _supervised,
    "transformations": _transformations,
}
"""What a study may ask for besides."""
