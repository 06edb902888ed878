"""Accuracy of the encoders that any library left, by one protocol: ours."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.evaluation.features import encode
from diptych.evaluation.knn import accuracy, knn_predict
from diptych.evaluation.linear import fit_linear
from diptych.images.collection import ImageSet
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
    protocol = Protocol(run)
    found = [
        Snapshot(ages[file], *protocol.measure(file, contender.prefix, linear=file == counted[-1]))
        for file in counted
    ]
    return Course(found, len(files) - len(counted))


class Protocol:
    """Images opened once; the test part is found among the neighbours in the part learned from.

    Args:
        run: its `images` lie beside the held-out ones: `train/CLASS` and `test/CLASS`.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._views = ViewsConfig(side_pixels=run.side)
        config = ImagesConfig(path=str(Path(run.images).parent))
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
            found = open_images(config, executor)
        if not isinstance(found.test, ImageSet) or not isinstance(found.train, ImageSet):
            raise RuntimeError(f"{config.path} has no test part")
        self._train, self._test = found.train, found.test

    def measure(
        self, file: Path, prefix: str, *, linear: bool = False
    ) -> tuple[float, float | None]:
        """Per cent of the held-out images, by neighbours and, where asked for, linearly."""
        config = EncoderConfig(name=self._run.network, stem=self._run.stem)
        network = build_encoder(config, channels=3, side_pixels=self._run.side, seed=0)
        tensors = read_tensors(file)
        weights = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        network.load_state_dict(weights, strict=True)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
            train, test = (
                encode(network, images, self._views, executor)
                for images in (self._train, self._test)
            )
        labels, truth = (torch.as_tensor(one.labels) for one in (self._train, self._test))
        knn = 100 * accuracy(knn_predict(train, labels, test), truth)
        if not linear:
            return knn, None
        return knn, 100 * accuracy(fit_linear(train, labels).predict(test), truth)
