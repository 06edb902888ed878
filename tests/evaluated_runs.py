"""A small run whose training has ended, on images of three classes, to be evaluated."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import diptych
from conftest import striped

SETTINGS: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1, 1),
    "views.side_pixels": 16,
    "probe.images": 16,
    "batch_size": 16,
    "epochs": 1,
    "threads": 1,
}


def three_classes(root: Path) -> Path:
    """Folders of 24 images each, of which 19 are fitted on where a fifth is held out."""
    rng = np.random.default_rng(8)
    for label in range(3):
        (root / f"class{label}").mkdir()
        for number in range(24):
            Image.fromarray(striped(label, rng)).save(root / f"class{label}" / f"{number}.png")
    return root


def finished_run(images: Path, out: Path) -> Path:
    return diptych.pretrain(images, out=out, quiet=True, **SETTINGS)
