"""An own encoder, an own data set and an own loss at once, and a run folder that works."""

import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn
from torch.utils.data import Dataset

import diptych
from diptych.errors import Interrupted


class Pictures(Dataset[Any]):
    def __init__(self, file: Path) -> None:
        self.images, self.labels = (np.load(file)[name] for name in ("images", "labels"))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        return self.images[index], int(self.labels[index])


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 5, stride=2), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.1), nn.Flatten()
    )


def loss(positive: Tensor, logsumexp: Tensor, settings: object) -> Tensor:
    return nn.functional.softplus(logsumexp - positive).mean()


@pytest.mark.parametrize("pull", [0.0, 3.0])
def test_it_resumes_bitwise_and_is_evaluated(
    images: Path, train: Callable[..., Path], pull: float
) -> None:
    """Also where weights are pulled to those that the run began with, by a module with others."""
    pictures, encoder = Pictures(images), network()
    train = partial(train, **{"optimizer.pull_to_start": pull})
    whole = train(pictures, "whole", encoder=encoder, loss=loss)
    calls: list[int] = []

    def stopping(*given: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return loss(*given)

    with pytest.raises(Interrupted):
        train(pictures, "cut", encoder=encoder, loss=stopping)
    cut = train(pictures, "cut", encoder=network(), loss=loss, resume=True)
    for name in ("encoder.safetensors", "head.safetensors", "untrained.safetensors"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    encoder = diptych.load_encoder(cut, encoder=network())
    assert diptych.extract_features(encoder, images, threads=1).shape == (24, 6 * 6 * 6)
    given: dict[str, Any] = {"train": pictures, "encoder": network(), "threads": 1}
    found = diptych.evaluate(cut, ["knn", "geometry"], **given)
    assert {"trained", "untrained", "pixels"} == set(found["knn"])
    assert diptych.write_report(cut, encoder=network(), threads=1).exists()
