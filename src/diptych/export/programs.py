"""Formats that hold a whole program: normalisation, network and whitening in one file."""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from diptych.errors import ConfigError
from diptych.export.layouts import Written
from diptych.export.source import ExportSource

_EXPORTED_IMAGES: Final = 2  # a batch of one would be taken for a constant
_INPUT, _OUTPUT = "pixels", "features"


class EncodePixels(nn.Module):
    """From pixels in 0 .. 1, (batch, channels, side, side), to features as ``embed`` gives them."""

    mean: Tensor
    std: Tensor

    def __init__(self, source: ExportSource) -> None:
        super().__init__()
        self.network = source.unwhitened
        self.whitening = nn.Identity() if source.whitening is None else source.whitening
        self.register_buffer("mean", torch.tensor(source.mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(source.std).view(-1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, channels, side, side) to (batch, features)."""
        features: Tensor = self.whitening(self.network((pixels - self.mean) / self.std))
        return features


def write_torch_export(source: ExportSource, folder: Path) -> Written:
    """A program of ``torch.export`` for any number of images."""
    torch.export.save(_exported(source), folder / "encoder.pt2")
    usage = f"""\
import torch

program = torch.export.load("encoder.pt2").module()
features = program(pixels)  # {_shape(source)}
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        # Our own file, written a moment ago.
        program: nn.Module = torch.export.load(where / "encoder.pt2").module()
        return program

    return Written(source, usage, read, takes_pixels=True)


def write_onnx(source: ExportSource, folder: Path) -> Written:
    """An ONNX file for any number of images, by the exporter that begins with ``torch.export``.

    Raises:
        ConfigError: the libraries that write and run it are missing.
    """
    require_libraries("onnx", "onnx", "onnxscript", "onnxruntime")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter's own libraries
        program: Any = torch.onnx.export(
            _exported(source),
            (),
            dynamo=True,
            input_names=[_INPUT],
            output_names=[_OUTPUT],
            verbose=False,
        )
    about = {"mean": source.mean, "std": source.std, "licence": source.licence or "unknown"}
    program.model.metadata_props.update({name: str(value) for name, value in about.items()})
    program.save(str(folder / "encoder.onnx"))
    usage = f"""\
import onnxruntime

session = onnxruntime.InferenceSession("encoder.onnx")
(features,) = session.run(None, {{"{_INPUT}": pixels}})  # NumPy, {_shape(source)}
"""

    def read(where: Path) -> Callable[[Tensor], Tensor]:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(where / "encoder.onnx"), options, providers=["CPUExecutionProvider"]
        )
        return lambda pixels: torch.from_numpy(session.run(None, {_INPUT: pixels.numpy()})[0])

    return Written(source, usage, read, library="onnx", takes_pixels=True)


def require_libraries(extra: str, *names: str) -> None:
    """Refuses to begin where a library of an extra is missing.

    Raises:
        ConfigError: one is.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                f"--format {extra} needs {name}, which is not installed. Install it by "
                f'`pip install "diptych[{extra}]"`.'
            ) from error


def _exported(source: ExportSource) -> torch.export.ExportedProgram:
    example = torch.rand(_EXPORTED_IMAGES, source.channels, source.side, source.side)
    shapes = {_INPUT: {0: torch.export.Dim("batch", min=1)}}
    return torch.export.export(EncodePixels(source).eval(), (example,), dynamic_shapes=shapes)


def _shape(source: ExportSource) -> str:
    return f"(batch, {source.channels}, {source.side}, {source.side}), float32 in 0 .. 1"
