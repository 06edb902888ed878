"""Accuracy of the encoders that any library left, by one protocol: ours."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.evaluation.features import encode
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE, accuracy, knn_predict
from diptych.evaluation.linear import fit_linear
from diptych.images.open import open_images
from diptych.models.encoders import build_encoder
from diptych.runs.tensor_files import read_tensors
from peers.contenders import CONTENDERS, Run


class Snapshot(NamedTuple):
    """An encoder amid a run, with its accuracies in per cent.

    Attributes:
        seconds: from the command's start.
        knn: by its neighbours.
        linear: by a linear classifier; of a run's last encoder alone.
    """

    seconds: float
    knn: float
    linear: float | None = None


class Course(NamedTuple):
    """What a run learned: the encoders that it left in time, and how many it left too late."""

    snapshots: list[Snapshot]
    late: int


def course(name: str, run: Run, begun: float, seconds: float) -> Course:
    """The accuracies of a run's snapshots, in order.

    Args:
        name: of the library.
        run: that has ended.
        begun: when its command began, as times of files are.
        seconds: after which no encoder counts.

    Raises:
        RuntimeError: there is no snapshot at all.
    """
    contender = CONTENDERS[name]
    files = sorted(Path(run.out).glob(contender.snapshots))
    if not files:
        raise RuntimeError(f"{name} left no snapshot in {run.out}")
    ages = {file: file.stat().st_mtime - begun for file in files}
    counted = [file for file in files if ages[file] <= seconds]
    images = ImagesConfig(path=str(Path(run.images).parent))
    protocol = Protocol(images, ViewsConfig(side_pixels=run.side))
    found = []
    for file in counted:
        encoded = protocol.encode(_network_of(run, file, contender.prefix))
        linear = protocol.linear(encoded) if file == counted[-1] else None
        found.append(Snapshot(ages[file], protocol.knn(encoded), linear))
    return Course(found, len(files) - len(counted))


def _network_of(run: Run, file: Path, prefix: str) -> nn.Module:
    config = EncoderConfig(name=run.network, stem=run.stem)
    network = build_encoder(config, channels=3, side_pixels=run.side, seed=0)
    weights = {
        name.removeprefix(prefix): value
        for name, value in read_tensors(file).items()
        if name.startswith(prefix)
    }
    network.load_state_dict(weights, strict=True)
    return network


class Encoded(NamedTuple):
    """Features of the images that are fitted on, and of those that are measured on."""

    train: Tensor
    test: Tensor


class Protocol:
    """Images opened once: those learned from are fitted on, and the held-out ones measured on.

    Args:
        images: with class folders and a test part: `train/CLASS` and `test/CLASS`.
        views: give the side and the normalisation.

    Raises:
        RuntimeError: there is no test part, or there are no classes.
    """

    def __init__(self, images: ImagesConfig, views: ViewsConfig) -> None:
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
            found = open_images(images, executor)
        train, test = found.train, found.test
        if test is None or train.labels is None or test.labels is None:
            raise RuntimeError(f"{images.path}: wanted train/CLASS/ and test/CLASS/")
        self._views, self._parts = views, (train, test)
        self._labels, self._truth = torch.as_tensor(train.labels), torch.as_tensor(test.labels)
        self.images = len(train)

    def encode(self, network: nn.Module) -> Encoded:
        """Of all images."""
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
            return Encoded(*(encode(network, one, self._views, executor) for one in self._parts))

    def knn(
        self, encoded: Encoded, *, k: int = NEIGHBOURS, temperature: float = TEMPERATURE
    ) -> float:
        """Per cent that a vote of so many neighbours gets right."""
        predicted = knn_predict(
            encoded.train, self._labels, encoded.test, k=k, temperature=temperature
        )
        return 100 * accuracy(predicted, self._truth)

    def linear(self, encoded: Encoded) -> float:
        """Per cent that a linear classifier gets right."""
        predicted = fit_linear(encoded.train, self._labels).predict(encoded.test)
        return 100 * accuracy(predicted, self._truth)
