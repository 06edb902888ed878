"""What one detector found, as a file: tensors, and how it was trained in the header."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from diptych.evaluation.detection_config import DetectionConfig
from diptych.evaluation.detection_training import Detections
from diptych.images.boxes import BoxedImages
from diptych.run_folder import RunFolder, write_aside
from diptych.tensor_files import UnreadableTensors, read_tensors_and_text

_NAMES = ("counts", "corners", "labels", "scores")


def cell_key(run: RunFolder, config: DetectionConfig, train: BoxedImages, test: BoxedImages) -> str:
    """Sixteen letters that change with whatever a cell depends on, but for its backbone and seed.

    That is the encoder's file, the settings (how many seeds are asked for is none), the names and
    sizes of the images and every box.
    """
    digest = hashlib.sha256(run.encoder.read_bytes())
    settings = asdict(config) | {"seeds": None, "classes": train.classes}
    digest.update(json.dumps(settings, sort_keys=True).encode())
    for data in (train, test):
        digest.update(data.images.fingerprint().encode())
        for boxes in data.boxes:
            for column in (boxes.corners, boxes.labels, boxes.difficult, boxes.crowd):
                digest.update(np.ascontiguousarray(column).tobytes() + b"|")
    return digest.hexdigest()[:16]


def write_cell(file: Path, detections: Detections, losses: list[float], seconds: float) -> None:
    """Writes a cell; a reader sees all of it or nothing."""
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(getattr(detections, name))) for name in _NAMES
    }
    header = {"losses": json.dumps(losses), "seconds": json.dumps(seconds)}
    write_aside(file, save(tensors, metadata=header))


def read_cell(
    file: Path, *, images: int, classes: int
) -> tuple[Detections, list[float], float] | None:
    """Reads a cell; None where there is none, or none that holds together: it is made anew."""
    try:
        tensors, header = read_tensors_and_text(file)
        losses = [float(loss) for loss in json.loads(header["losses"])]
        seconds = float(json.loads(header["seconds"]))
    except (UnreadableTensors, KeyError, ValueError, TypeError):
        return None
    if set(tensors) != set(_NAMES) or not _hold_together(tensors, images, classes):
        return None
    return Detections(**{name: tensors[name].numpy() for name in _NAMES}), losses, seconds


def _hold_together(tensors: dict[str, Tensor], images: int, classes: int) -> bool:
    counts, corners, labels, scores = (tensors[name] for name in _NAMES)
    whole = counts.dtype == labels.dtype == torch.int64
    if not whole or counts.shape != (images,) or (counts < 0).any():
        return False
    boxes = int(counts.sum())
    shapes = corners.shape == (boxes, 4) and labels.shape == scores.shape == (boxes,)
    numbers = bool(corners.isfinite().all() and scores.isfinite().all())
    return bool(shapes and numbers and ((labels >= 0) & (labels < classes)).all())
