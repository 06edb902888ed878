"""What all extensions are tried on: a few images, and a run of a few seconds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import diptych

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

TINY: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1,),
    "head.hidden_features": 8,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 8,
    "training.device": "cpu",
    "training.threads": 1,
    "probe.log_every_steps": 1,
    "probe.images": 16,
    "epochs": 2,
}


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    """Of 24 images of three classes, with their labels."""
    pixels, labels = stripes(24)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


@pytest.fixture
def train(tmp_path: Path) -> Callable[..., Path]:
    """Trains a tiny run in a folder of that name, with settings or own parts."""

    def train(images: Any, name: str, **given: Any) -> Path:
        own = ("encoder", "loss", "method", "resume", "quiet", "recipe")
        settings = TINY if "encoder" not in given else _without("encoder.", TINY)
        parts = {key: given.pop(key) for key in own if key in given}
        quiet = parts.pop("quiet", True)
        return diptych.pretrain(
            images, out=tmp_path / name, quiet=quiet, **settings | given, **parts
        )

    return train


def _without(prefix: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {name: one for name, one in settings.items() if not name.startswith(prefix)}
