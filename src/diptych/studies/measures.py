"""What is measured of a trained run: kNN always, and what a study needs besides."""

import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from torch import Tensor, nn

from diptych.config.files import load_run_config
from diptych.config.sections import ImagesConfig, RunConfig
from diptych.diagnostics.leak import check_leak
from diptych.errors import ImagesError
from diptych.evaluation.features import encode
from diptych.evaluation.geometry import effective_rank
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE, accuracy, knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.layers import trained_layers
from diptych.evaluation.linear import fit_linear
from diptych.evaluation.split import groups_of_parts, units_of
from diptych.evaluation.supervised import supervised_encoder
from diptych.evaluation.transformations import probe_layers
from diptych.images.collection import Collection
from diptych.images.open import open_images
from diptych.images.trained_on import TrainedOn, load_trained_on
from diptych.logging.metrics import read_metrics
from diptych.models.weights import load_encoder, untrained_encoder
from diptych.runs.folder import RunFolder


class Bench:
    """Holds the labelled images between cells, as all cells of a study share them.

    Args:
        executor: its threads make views.
        threads: as many.
    """

    def __init__(self, executor: Executor, threads: int) -> None:
        self.executor, self.threads = executor, threads
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
            self._collection, self._config = open_images(config, self.executor), config
        found = labelled_parts(self._collection, group_by=config.group_by, seen=seen)
        if found is None:
            raise ImagesError(
                f"{config.path} has no labels, by which a study measures. Put the images of each "
                "class into a folder of its own."
            )
        return found


@dataclass(frozen=True)
class Trained:
    """A run whose training has ended.

    Attributes:
        folder: of the run.
        bench: to measure it on.
    """

    folder: RunFolder
    bench: Bench

    @cached_property
    def config(self) -> RunConfig:
        """Of the run, resolved."""
        return load_run_config(self.folder.config)

    @cached_property
    def labelled(self) -> Labelled:
        """Its images with labels, in two parts."""
        return self.bench.labelled(self.config.images, load_trained_on(self.folder.trained_on))

    @cached_property
    def features(self) -> tuple[Tensor, Tensor]:
        """Of the images to fit on and of those to measure on, before the head."""
        return self.encode(load_encoder(self.folder))

    def encode(self, network: nn.Module) -> tuple[Tensor, Tensor]:
        """The same of another network."""
        parts = (self.labelled.train, self.labelled.test)
        train, test = (encode(network, p, self.config.views, self.bench.executor) for p in parts)
        return train, test


def measure(run: Trained, extra: tuple[str, ...], *, reference: bool) -> dict[str, float]:
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


def protocol(run: Trained, extra: tuple[str, ...]) -> dict[str, Any]:
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
    """Mean over the last tenth of the lines of metrics."""
    late = metrics[-max(1, len(metrics) // 10) :]
    return statistics.fmean(line["pretext_accuracy"] for line in late)


def _knn(run: Trained, features: tuple[Tensor, Tensor]) -> float:
    train, test = features
    predicted = knn_predict(train, run.labelled.train_labels, test)
    return accuracy(predicted, run.labelled.test_labels)


def _linear(run: Trained) -> dict[str, float]:
    train, test = run.features
    classifier = fit_linear(train, run.labelled.train_labels, groups=run.labelled.units)
    return {"linear": accuracy(classifier.predict(test), run.labelled.test_labels)}


def _leak(run: Trained) -> dict[str, float]:
    found = check_leak(run.folder.path, threads=run.bench.threads)
    return {"leak": 0.0 if found is None else found.advantage}


def _supervised(run: Trained) -> dict[str, float]:
    labelled, executor = run.labelled, run.bench.executor
    rival = supervised_encoder(run.folder, run.config, labelled, executor)
    return {"supervised": _knn(run, run.encode(rival))}


def _transformations(run: Trained) -> dict[str, float]:
    """Shares named ``TASK_LAYER``, before (h) and after (g) the head."""
    views, executor, images = run.config.views, run.bench.executor, run.labelled.test
    groups, _, _ = groups_of_parts(images, None, run.config.images.group_by)
    found = probe_layers(
        trained_layers(run.folder), images, views, executor, groups=units_of(images, groups)
    )["layers"]
    return {
        f"{name}_{short}": found[layer][task]["value"]
        for name, task in TRANSFORMATIONS.items()
        for short, layer in (("h", "h"), ("g", "g(h)"))
    }


TRANSFORMATIONS: Final[Mapping[str, str]] = {
    "color": "color or gray",
    "rotation": "rotation",
    "noise": "original or noise-corrupted",
    "sobel": "original or Sobel",
}
"""The tasks of ``evaluation/transformations.py`` by the first part of a measure's name."""

EXTRA: Final[Mapping[str, Callable[[Trained], dict[str, float]]]] = {
    "linear": _linear,
    "leak": _leak,
    "supervised": _supervised,
    "transformations": _transformations,
}
"""What a study may ask for besides."""
