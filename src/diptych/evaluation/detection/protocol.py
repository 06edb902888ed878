"""Detection transfer: the same detector on a run's ResNet and on an untrained one, side by side.

MoCo (1911.05722, section 4.2) evaluates representations in this way. Every detector is a cell with
a file, so that an interrupted command goes on with the next one.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor, nn

from diptych.config.downstream import DetectionConfig
from diptych.config.run import RunConfig
from diptych.evaluation.detection.average_precision import (
    ClassMatches,
    average_precisions,
    match,
    resampled,
    summary,
)
from diptych.evaluation.detection.detector import (
    Detections,
    build_detector,
    normalisation,
    normalised_batches,
    run_detector,
    set_statistics,
    stem_remark,
    train_detector,
)
from diptych.evaluation.split import unlabelled_split
from diptych.images.sources.boxes import BoxedImages, open_boxes
from diptych.models.weights import load_encoder, load_trained_on, untrained_encoder
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder, require_writable
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import Runtime

BACKBONES: Final = ("pretrained", "untrained")
RESAMPLES: Final = 1000
"""Resamples of the test images for an interval."""

DEFAULTS: Final = DetectionConfig()

CellDone = Callable[[str, int, bool], None]
"""Called with the backbone, the seed, and whether the cell was there already."""


def _ignore_cell(backbone: str, seed: int, was_there: bool) -> None:
    """The default: does nothing."""


@dataclass(frozen=True)
class _Work:
    """What every cell shares."""

    run: RunFolder
    config: RunConfig
    detection: DetectionConfig
    train: BoxedImages
    test: BoxedImages
    key: str
    runtime: Runtime


def measure_detection(
    run: str | Path,
    data: str | Path,
    config: DetectionConfig = DEFAULTS,
    *,
    train_part: str = "train",
    test_part: str = "test",
    device: str = "auto",
    threads: int | None = None,
    progress: ProgressReporter | None = None,
    on_cell: CellDone = _ignore_cell,
) -> dict[str, Any]:
    """Fine-tunes detectors on a run's encoder and on untrained ones, and measures them.

    Everything is the same for both but the weights that the ResNet begins with. A seed decides the
    new layers, the order of the images and every draw, and the untrained ResNet.

    Args:
        run: a run folder whose training has ended, of a ResNet-18 to -152.
        data: images with boxes, see ``open_boxes``.
        config: how detectors are trained, and how many.
        train_part: of the data, to train on.
        test_part: of the data, to measure on.
        device: where detectors are trained and run, as in ``Runtime``.
        threads: CPU threads; all cores when not given. With another number sums may round
            differently.
        progress: told how far it is.
        on_cell: told which detectors are done.

    Returns:
        What is also written to ``detection.json``: under ``backbones`` the figures of each with
        intervals and for each seed, under ``difference`` pretrained less untrained, paired by
        image, under ``protocol`` how they were measured, under ``split`` on which images, and
        ``remarks``. Fractions; None where there is no box of a class, and for a class without a box
        to train on, which no mean counts.

    Raises:
        ConfigError: the encoder is no ResNet, or pycocotools is not installed.
        ImagesError: the data cannot be used.
        TrainingError: a loss is no longer a number.
        OSError: the run folder cannot be written.
    """
    folder = RunFolder(Path(run))
    encoder = load_encoder(folder)
    require_writable(folder.path)
    images = replace(encoder.config.images, path=str(data), limit=None, bits=8, group_by=None)
    runtime = Runtime(device, threads, progress=progress or ProgressReporter())
    with runtime:
        told = runtime.counting("Reading the images")
        train, test = open_boxes(data, (train_part, test_part), images, runtime.executor, told)
    key = cell_key(folder, config, train, test)
    work = _Work(folder, encoder.config, config, train, test, key, runtime)
    cells = {
        backbone: [_cell(work, backbone, seed, on_cell) for seed in range(config.seeds)]
        for backbone in BACKBONES
    }
    split = unlabelled_split(train.images, test.images, load_trained_on(folder.trained_on))
    unknown = _unknown_classes(train, test)
    remarks = [*train.remarks, *test.remarks, stem_remark(encoder.config), _unknown_remark(unknown)]
    found = _figures(cells, test, unknown) | {
        "split": split.as_dict(),
        "protocol": asdict(config)
        | {
            "data": str(data),
            "train_part": train_part,
            "test_part": test_part,
            "train_images": len(train),
            "test_images": len(test),
            "classes": list(test.classes),
            "resamples": RESAMPLES,
        },
        "remarks": [remark for remark in remarks if remark],
        "skipped": [asdict(one) for one in (*train.images.skipped, *test.images.skipped)],
    }
    atomic_write(folder.detection, (json.dumps(found, indent=1) + "\n").encode())
    return found


# --- cells: one detector each -------------------------------------------------------------------


@dataclass(frozen=True)
class _Cell:
    detections: Detections
    losses: list[float]
    seconds: float


def _cell(work: _Work, backbone: str, seed: int, on_cell: CellDone) -> _Cell:
    """A detector's findings on the test images: from its file, or by training it."""
    file = work.run.detection_cells / f"{backbone}-seed{seed}-{work.key}.safetensors"
    kept = _read_cell(file, images=len(work.test), classes=len(work.test.classes))
    cell = kept
    if cell is None:
        begun = time.monotonic()
        detections, losses = train_and_detect(
            _backbone(work, backbone, seed),
            work.config,
            work.detection,
            work.train,
            work.test,
            work.runtime,
            seed=seed,
            set_norms=backbone == "untrained",  # a trained one has statistics of its own
        )
        cell = _Cell(detections, losses, time.monotonic() - begun)
        os.makedirs(file.parent, exist_ok=True)
        _write_cell(file, cell)
    on_cell(backbone, seed, kept is not None)
    return cell


def train_and_detect(
    encoder: nn.Module,
    run: RunConfig,
    config: DetectionConfig,
    train: BoxedImages,
    test: BoxedImages,
    runtime: Runtime,
    *,
    seed: int,
    set_norms: bool = False,
) -> tuple[Detections, list[float]]:
    """Trains one detector on an encoder and runs it over the test images.

    Args:
        encoder: its weights are changed.
        run: of the encoder.
        config: how the detector is trained.
        train: to train on.
        test: to detect in.
        runtime: gives the device.
        seed: decides every draw; the global generator is left as it was.
        set_norms: let frozen norms of the encoder have the statistics of the training images.

    Returns:
        What it found in the test images, and each epoch's mean loss.
    """
    # torchvision draws from the global generator and takes no other.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        # Before the detector is built, as that freezes the norms as they are then.
        if set_norms and config.norm == "frozen":
            set_statistics(encoder, normalised_batches(train, config, *normalisation(run)))
        detector = build_detector(encoder, run, config, classes=len(train.classes))
        detector = detector.to(runtime.torch_device)
        training, testing = map(runtime.counting, ("Training a detector", "Running the detector"))
        losses = train_detector(detector, train, config, seed=seed, on_images=training)
        return run_detector(detector, test, config, on_images=testing), losses


def _backbone(work: _Work, backbone: str, seed: int) -> nn.Module:
    if backbone == "pretrained":
        return load_encoder(work.run).network
    return untrained_encoder(replace(work.config, seed=seed))


# --- figures ------------------------------------------------------------------------------------


def _unknown_classes(train: BoxedImages, test: BoxedImages) -> dict[str, int]:
    """Classes that test images have boxes of and training images do not: how many boxes."""
    fitted, measured = (
        np.bincount(
            np.concatenate([np.zeros(0, dtype=np.int64), *(b.labels[b.plain] for b in part.boxes)]),
            minlength=len(part.classes),
        )
        for part in (train, test)
    )
    return {
        name: int(measured[index])
        for index, name in enumerate(test.classes)
        if measured[index] and not fitted[index]
    }


def _unknown_remark(unknown: dict[str, int]) -> str:
    if not unknown:
        return ""
    listed = ", ".join(f"{name} ({boxes:,} boxes)" for name, boxes in unknown.items())
    return f"Left out of all figures, as the training images have no box of them: {listed}."


def _figures(
    cells: dict[str, list[_Cell]], test: BoxedImages, unknown: Collection[str]
) -> dict[str, Any]:
    names = ("mAP", "AP50", "AP75", *test.classes)
    matches = {
        backbone: [_matches(cell.detections, test, unknown) for cell in row]
        for backbone, row in cells.items()
    }
    seeds = {
        backbone: np.stack([summary(average_precisions(one)) for one in row])
        for backbone, row in matches.items()
    }
    # The same draws of images for every detector, so that differences are paired.
    drawn = {
        backbone: np.stack([resampled(one, RESAMPLES, _generator(0)) for one in row])
        for backbone, row in matches.items()
    }
    means = {
        backbone: _over_seeds(drawn[backbone], _generator(1 + i))
        for i, backbone in enumerate(BACKBONES)
    }
    difference = seeds["pretrained"].mean(axis=0) - seeds["untrained"].mean(axis=0)
    return {
        "backbones": {
            backbone: {
                "figures": _with_intervals(names, seeds[backbone].mean(axis=0), means[backbone]),
                "seeds": [
                    dict(zip(names, map(_fraction, one), strict=True)) for one in seeds[backbone]
                ],
                "losses": [cell.losses for cell in cells[backbone]],
                "seconds": [round(cell.seconds, 1) for cell in cells[backbone]],
            }
            for backbone in BACKBONES
        },
        "difference": _with_intervals(names, difference, means["pretrained"] - means["untrained"]),
    }


def _matches(
    detections: Detections, test: BoxedImages, unknown: Collection[str]
) -> list[ClassMatches]:
    """Class by class; of one that no detector could know, nothing is wanted."""
    found = match(detections, test.boxes, len(test.classes))
    return [
        replace(one, wanted=np.zeros_like(one.wanted)) if name in unknown else one
        for name, one in zip(test.classes, found, strict=True)
    ]


def _over_seeds(drawn: NDArray[np.float64], generator: np.random.Generator) -> NDArray[np.float64]:
    """(seeds, samples, figures) to (samples, figures), each the mean of seeds drawn anew.

    With few seeds this is narrow still: of s seeds it shows (s - 1) / s of their variance.
    """
    seeds, samples, _ = drawn.shape
    chosen = generator.integers(0, seeds, (seeds, samples))
    mean: NDArray[np.float64] = drawn[chosen, np.arange(samples)].mean(axis=0)
    return mean


def _with_intervals(
    names: tuple[str, ...], values: NDArray[np.float64], drawn: NDArray[np.float64]
) -> dict[str, Any]:
    found = {}
    for name, value, column in zip(names, values, drawn.T, strict=True):
        known = column[~np.isnan(column)]
        low, high = np.quantile(known, [0.025, 0.975]) if len(known) else (np.nan, np.nan)
        found[name] = {"value": _fraction(value), "low": _fraction(low), "high": _fraction(high)}
    return found


def _fraction(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _generator(number: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(number))


# --- files of cells -----------------------------------------------------------------------------


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
                # With a mark between columns: the same bytes, divided otherwise, are other boxes.
                digest.update(np.ascontiguousarray(column).tobytes() + b"|")
    return digest.hexdigest()[:16]


def _write_cell(file: Path, cell: _Cell) -> None:
    """Writes a cell; a reader sees all of it or nothing."""
    tensors = {
        name: torch.from_numpy(np.ascontiguousarray(getattr(cell.detections, name)))
        for name in _NAMES
    }
    header = {"losses": json.dumps(cell.losses), "seconds": json.dumps(cell.seconds)}
    atomic_write(file, save(tensors, metadata=header))


def _read_cell(file: Path, *, images: int, classes: int) -> _Cell | None:
    """Reads a cell; None where there is none, or a damaged one, which is then computed again."""
    try:
        tensors, header = read_tensors_and_text(file)
        losses = [float(loss) for loss in json.loads(header["losses"])]
        seconds = float(json.loads(header["seconds"]))
    except (UnreadableTensors, KeyError, ValueError, TypeError):
        return None
    if set(tensors) != set(_NAMES) or not _is_consistent(tensors, images, classes):
        return None
    detections = Detections(**{name: tensors[name].numpy() for name in _NAMES})
    return _Cell(detections, losses, seconds)


def _is_consistent(tensors: dict[str, Tensor], images: int, classes: int) -> bool:
    counts, corners, labels, scores = (tensors[name] for name in _NAMES)
    # Each test guards the next: a sum needs whole numbers, and shapes need the sum.
    whole = counts.dtype == labels.dtype == torch.int64
    if not whole or counts.shape != (images,) or (counts < 0).any():
        return False
    boxes = int(counts.sum())
    shapes = corners.shape == (boxes, 4) and labels.shape == scores.shape == (boxes,)
    numbers = bool(corners.isfinite().all() and scores.isfinite().all())
    return bool(shapes and numbers and ((labels >= 0) & (labels < classes)).all())
