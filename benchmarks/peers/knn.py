"""kNN accuracy of the encoders that any library left, by one protocol: ours."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.evaluation.features import encode
from diptych.evaluation.knn import accuracy, knn_predict
from diptych.images.collection import ImageSet
from diptych.images.open import open_images
from diptych.models.encoders import build_encoder
from diptych.runs.tensor_files import read_tensors
from peers.contenders import CONTENDERS, Run


class Snapshot(NamedTuple):
    """An encoder amid a run: seconds from the command's start, and its kNN accuracy in per cent."""

    seconds: float
    knn: float


def course(name: str, run: Run, begun: float, *, last_only: bool) -> list[Snapshot]:
    """The accuracy of a run's snapshots, in order.

    Args:
        name: of the library.
        run: that has ended.
        begun: when its command began, as times of files are.
        last_only: measure the last snapshot alone.
    """
    contender = CONTENDERS[name]
    files = sorted(Path(run.out).glob(contender.snapshots))
    if not files:
        raise RuntimeError(f"{name} left no snapshot in {run.out}")
    protocol = Protocol(run)
    return [
        Snapshot(file.stat().st_mtime - begun, protocol.measure(file, contender.prefix))
        for file in (files[-1:] if last_only else files)
    ]


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

    def measure(self, file: Path, prefix: str) -> float:
        """Per cent of the held-out images."""
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
        return 100 * accuracy(knn_predict(train, labels, test), truth)
