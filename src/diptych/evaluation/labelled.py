"""Labelled images in two parts: to fit a probe on, and to measure it on."""

import hashlib
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import Collection, ImageSet, match_classes
from diptych.images.listing import Progress, ignore_progress
from diptych.images.sources import open_images
from diptych.images.tables.hugging_face import path_of

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
        parted: whether both parts come from one set, which had none held out.
    """

    train: ImageSet
    train_labels: Tensor
    test: ImageSet
    test_labels: Tensor
    classes: tuple[str, ...]
    parted: bool = False

    @property
    def chance(self) -> float:
        """Accuracy of naming the largest class always."""
        return float(torch.bincount(self.train_labels).max() / len(self.train))

    @property
    def fingerprint(self) -> str:
        """A short hash of both parts and their labels, to tell results on other images apart."""
        digest = hashlib.sha256()
        for part, labels in ((self.train, self.train_labels), (self.test, self.test_labels)):
            digest.update(part.fingerprint().encode() + labels.numpy().tobytes())
        return digest.hexdigest()[:16]


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
        parted=True,
    )


def open_labelled(
    config: ImagesConfig,
    executor: Executor,
    *,
    train: str | Path | Any | None = None,
    test: str | Path | Any | None = None,
    on_progress: Progress = ignore_progress,
) -> Labelled:
    """Opens labelled images.

    Args:
        config: of the run's images, which are taken where no others are given.
        executor: its threads decode.
        train: labelled images to fit probes on.
        test: labelled images to measure them on; by default those held out with ``train``, or one
            in five of its images.
        on_progress: told how many images are read.

    Raises:
        ImagesError: there are no labels.
    """

    def read(path: str | Path | Any | None, limit: int | None) -> Collection:
        wanted = config.path if path is None else path_of(path)
        return open_images(replace(config, path=wanted, limit=limit), executor, on_progress)

    collection = read(train, config.limit if train is None else None)
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
