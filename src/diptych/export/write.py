"""Writes an encoder in a format, reads it back in that format's library, and compares features."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError, ExportError, saving
from diptych.export.detectors import write_coco_features, write_detectron2
from diptych.export.layouts import Written, write_safetensors, write_timm, write_torchvision
from diptych.export.model_card import model_card
from diptych.export.programs import write_onnx, write_torch_export
from diptych.export.source import ExportSource, open_source
from diptych.export.transformers_folder import write_hf
from diptych.runs.atomic import atomic_path
from diptych.runs.folder import require_replaceable

FORMATS: Final[dict[str, Callable[[ExportSource, Path], Written]]] = {
    "torchvision": write_torchvision,
    "timm": write_timm,
    "safetensors": write_safetensors,
    "torch-export": write_torch_export,
    "onnx": write_onnx,
    "hf": write_hf,
    "detectron2": write_detectron2,
    "coco-features": write_coco_features,
}
"""Each format and the function that writes it into a folder."""

_NOTE: Final = "export.json"
_CARD: Final = "README.md"
_CHECKED: Final = 5  # images; another number than any format is exported with
_TOLERANCE: Final = 1e-5  # of the largest feature, or of one where all are smaller
_READ_BY: Final = {"hf": "transformers"}  # what is not installed with diptych and only reads


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        folder: with the files, the model card and ``export.json``.
        features: length of a feature vector.
        difference: largest absolute difference of a feature after reading it back; None where the
            library that reads it is not installed.
        scale: largest absolute feature of the same images.
        left_out: sentences on what the format cannot hold.
    """

    folder: Path
    features: int
    difference: float | None
    scale: float
    left_out: list[str]


def export_encoder(
    source: str | Path,
    out: str | Path,
    *,
    form: str,
    encoder: nn.Module | None = None,
    licence: str = "",
) -> Exported:
    """Writes a trained encoder in the format of another library, and checks it.

    Args:
        source: a run folder, an encoder file, or weights as ``--weights`` has them.
        out: the folder to write; an earlier export there is replaced, nothing else.
        form: one of ``FORMATS``.
        encoder: of a run whose encoder was given in Python, a module of the same structure.
        licence: of the weights, an SPDX identifier; what is known of the start weights' if empty.

    Raises:
        ConfigError: the format cannot hold this network, or a library is missing.
        ExportError: what is read back gives other features; nothing is kept.
    """
    if form not in FORMATS:
        raise ConfigError(f"--format {form!r} is not known. Wanted {', '.join(FORMATS)}.")
    folder = Path(out)
    require_replaceable(folder, _names_in(folder))
    opened = open_source(str(source), encoder=encoder, licence=licence)
    with (
        saving(f"{folder} cannot be written", "give the same command again"),
        atomic_path(folder) as temporary,
    ):
        temporary.mkdir()
        written = FORMATS[form](opened, temporary)
        difference, scale = _compare(written, temporary, form)
        files = sorted(one.name for one in temporary.iterdir())
        note = _note(written, form, difference) | {"files": files}
        (temporary / _NOTE).write_text(json.dumps(note, indent=2) + "\n")
        card = model_card(opened, written, form, difference)
        (temporary / _CARD).write_text(card, encoding="utf-8")
    return Exported(folder, written.source.features, difference, scale, written.left_out)


def _names_in(folder: Path) -> set[str]:
    """Names of the files of an earlier export, which may be replaced; none of anything else."""
    try:
        note = json.loads((folder / _NOTE).read_bytes())
        return {_NOTE, _CARD, *map(str, note["files"])} if note["format"] in FORMATS else set()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return set()


def _compare(written: Written, folder: Path, form: str) -> tuple[float | None, float]:
    """The largest difference of features, and the largest feature, of images made at random."""
    source = written.source
    generator = torch.Generator().manual_seed(0)
    shape = (_CHECKED, source.channels, source.side, source.side)
    pixels = torch.rand(shape, generator=generator)
    mean, std = (torch.tensor(one).view(-1, 1, 1) for one in (source.mean, source.std))
    images = (pixels - mean) / std
    wanted = source.encode(images)
    scale = float(wanted.abs().max())
    library = _READ_BY.get(form)
    if library is not None and importlib.util.find_spec(library) is None:
        return None, scale
    with torch.no_grad():
        came: Tensor = written.read(folder)(pixels if written.takes_pixels else images)
    if came.shape != wanted.shape:
        raise ExportError(
            f"the {form} export gives features of the shape {tuple(came.shape)} when it is read "
            f"back; wanted {tuple(wanted.shape)}. Nothing is kept; use another --format."
        )
    difference = float((came - wanted).abs().max())
    # Written so that NaN is refused too.
    if not difference <= _TOLERANCE * max(1.0, scale):
        raise ExportError(
            f"the {form} export gives other features when it is read back: they differ by "
            f"{difference:.2g} where the largest is {scale:.2g}. Nothing is kept; use another "
            "--format."
        )
    return difference, scale


def _note(written: Written, form: str, difference: float | None) -> dict[str, Any]:
    source = written.source
    return {
        "format": form,
        "encoder": source.config.encoder.name,
        "features": source.features,
        "input": {
            "values": "pixels in 0 .. 1" if written.takes_pixels else "normalised pixels",
            "shape": ["batch", source.channels, source.side, source.side],
            "colour": source.config.images.color,
            "mean": source.mean,
            "std": source.std,
            "crop": "the largest centred square, resized with a filter against aliasing",
        },
        "whitened": source.whitening is not None,
        "largest_difference": difference,
        "left_out": written.left_out,
        "licence": source.licence or None,
    }
