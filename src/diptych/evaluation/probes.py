"""How good a trained encoder is: the same probes on it, on the untrained one, and on pixels."""

import json
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diptych.configs import RunConfig
from diptych.errors import ImagesError
from diptych.evaluation.features import encode, pixel_features
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE, accuracy, knn_predict
from diptych.evaluation.linear import fit_linear
from diptych.hardware import choose_device, use_threads
from diptych.images.collection import Collection, ImageSet, match_classes
from diptych.images.listing import Progress, ignore_progress
from diptych.images.sources import open_images
from diptych.images.tables.hugging_face import path_of
from diptych.model.saved import load_encoder, untrained_encoder
from diptych.run_folder import RunFolder, write_aside
from diptych.views.load import EvaluationCrops

_HELD_OUT: Final = 5  # without test images, one in this many is held out


@dataclass(frozen=True)
class Labelled:
    """Images with labels, in two parts.

    Attributes:
        train: to fit a probe on.
        train_labels: (images,), classes.
        test: to measure it on.
        test_labels: (images,), the same classes; -1 for one that ``train`` lacks.
        classes: their names.
    """

    train: ImageSet
    train_labels: Tensor
    test: ImageSet
    test_labels: Tensor
    classes: tuple[str, ...]


def evaluate(
    run: str | Path,
    *,
    train: str | Path | Any | None = None,
    test: str | Path | Any | None = None,
    head_layers: int = 0,
    crops: EvaluationCrops = "center",
    threads: int | None = None,
    on_progress: Progress = ignore_progress,
) -> dict[str, Any]:
    """Measures a run's frozen encoder, before the head, by kNN and by a linear classifier.

    Args:
        run: a run folder whose training has ended.
        train: labelled images to fit the probes on; by default the run's own.
        test: labelled images to measure them on; by default those held out with ``train``, or one
            in five of its images.
        head_layers: hidden layers of the projection head to keep behind the trained encoder.
        crops: ``five`` averages the features of five views, corners and centre.
        threads: CPU threads; all cores when not given.
        on_progress: told how many images are read.

    Returns:
        What is also written to ``evaluation.json``: accuracies as fractions under ``knn`` and
        ``linear``, each for ``trained``, ``untrained`` and ``pixels``, and under ``protocol`` how
        they were measured.

    Raises:
        ImagesError: there are no labels.
    """
    folder = RunFolder(Path(run))
    encoder = load_encoder(folder, head_layers=head_layers)
    config = encoder.config
    with ThreadPoolExecutor(use_threads(threads)) as executor:
        labelled = _labelled_images(config, train, test, executor, on_progress)
        device = choose_device("auto")
        encoder.to(device)
        untrained = untrained_encoder(config).to(device)
        features = {
            name: _both(
                labelled,
                partial(encode, network, views=config.views, executor=executor, crops=crops),
            )
            for name, network in (("trained", encoder), ("untrained", untrained))
        }
        features |= {
            "pixels": _both(labelled, lambda s: pixel_features(s, config.views, executor)),
        }
    found = _measure(labelled, features)
    found["protocol"] |= {"head_layers": head_layers, "crops": crops}
    write_aside(folder.evaluation, (json.dumps(found, indent=1) + "\n").encode())
    return found


def labelled_parts(collection: Collection) -> Labelled | None:
    """The labelled training and test images of a collection; None without labels.

    Where nothing is held out, every fifth image of a fixed shuffle is.
    """
    train, test = collection.train, collection.test
    if train.labels is None:
        return None
    if test is not None and test.labels is not None:
        labels = torch.from_numpy(train.labels)
        return Labelled(
            train, labels, test, torch.from_numpy(match_classes(train, test)), train.classes
        )
    order = np.random.Generator(np.random.Philox(0)).permutation(len(train))
    held_out = np.sort(order[::_HELD_OUT])
    rest = np.setdiff1d(order, held_out)
    kept, parted = train.select(rest), train.select(held_out)
    assert kept.labels is not None
    assert parted.labels is not None
    return Labelled(
        kept,
        torch.from_numpy(kept.labels),
        parted,
        torch.from_numpy(parted.labels),
        train.classes,
    )


def _labelled_images(
    config: RunConfig,
    train: str | Path | Any | None,
    test: str | Path | Any | None,
    executor: Executor,
    on_progress: Progress,
) -> Labelled:
    def read(path: str | Path | Any | None, limit: int | None) -> Collection:
        source = replace(
            config.images, path=config.images.path if path is None else path_of(path), limit=limit
        )
        return open_images(source, executor, on_progress)

    collection = read(train, config.images.limit if train is None else None)
    if test is not None:
        held_out = read(test, None)
        collection = replace(collection, test=held_out.test or held_out.train)
    found = labelled_parts(collection)
    if found is None or (test is not None and found.test is not collection.test):
        raise ImagesError(
            "evaluation needs labels: put the images of each class into a folder of its own, and "
            "give --train PATH and --test PATH. Without labels, the report still shows the "
            "label-free measures."
        )
    return found


def _both(labelled: Labelled, encode_set: Callable[[ImageSet], Tensor]) -> tuple[Tensor, Tensor]:
    return encode_set(labelled.train), encode_set(labelled.test)


def _measure(labelled: Labelled, features: dict[str, tuple[Tensor, Tensor]]) -> dict[str, Any]:
    knn, linear, strengths = {}, {}, {}
    for name, (train, test) in features.items():
        predicted = knn_predict(train, labelled.train_labels, test)
        knn[name] = accuracy(predicted, labelled.test_labels)
        classifier = fit_linear(train, labelled.train_labels)
        linear[name] = accuracy(classifier.predict(test), labelled.test_labels)
        strengths[name] = classifier.l2
    return {
        "knn": knn,
        "linear": linear,
        "protocol": {
            "train_images": len(labelled.train),
            "test_images": len(labelled.test),
            "classes": len(labelled.classes),
            "chance": float(torch.bincount(labelled.train_labels).max() / len(labelled.train)),
            "knn_neighbours": NEIGHBOURS,
            "knn_temperature": TEMPERATURE,
            "linear_l2": strengths,
        },
    }
