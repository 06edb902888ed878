"""A run's network, from views to the vectors that are stored."""

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diptych.configs import RunConfig
from diptych.errors import ConfigError
from diptych.evaluation.finite import require_finite
from diptych.evaluation.layers import FEATURES, PROJECTION, layers_of
from diptych.gallery.settings import EmbedSettings
from diptych.hardware import choose_device
from diptych.model.saved import load_encoder, load_head
from diptych.run_folder import RunFolder

Vectors = NDArray[np.float32 | np.float16]
"""(images, dim), as they are stored."""

_ALIASES: Final = {"g": PROJECTION}


class Embedder:
    """Gives the vectors of views.

    Attributes:
        config: of the run.
        identity: the layer and the checksums of the files that it comes from.
    """

    def __init__(self, run: Path, settings: EmbedSettings) -> None:
        folder = RunFolder(run if run.is_dir() else run.parent)
        encoder = load_encoder(run)
        self.config: RunConfig = encoder.config
        self._settings = settings
        files = {"encoder": folder.encoder if run.is_dir() else run}
        layer = _ALIASES.get(settings.layer, settings.layer)
        network: nn.Module = encoder.network
        if layer != FEATURES:
            files["head"] = folder.head
            network = _up_to(layer, network, load_head(run))
        self._device = choose_device("auto")
        self._network = network.to(self._device).eval()
        self.identity: dict[str, Any] = {
            "layer": layer,
            **{name: _checksum(file) for name, file in files.items()},
        }

    def on_accelerator(self) -> bool:
        """Whether views can be made while the network works."""
        return self._device.type != "cpu"

    @torch.no_grad()
    def vectors(self, views: tuple[Tensor, ...]) -> Vectors:
        """(batch, dim) of the views of a batch, each (batch, channels, side, side).

        Raises:
            ConfigError: a number is too large for 16 bits.
            FeaturesError: a vector is not of finite numbers.
        """
        seen = [self._network(view.to(self._device)).float() for view in views]
        features = require_finite(torch.stack(seen).mean(dim=0), of="this run")
        if self._settings.normalize:
            features = functional.normalize(features, dim=1)
        found = features.cpu().numpy()
        if self._settings.precision == "float32":
            return found
        largest = float(np.abs(found).max())
        if largest > float(np.finfo(np.float16).max):
            raise ConfigError(
                f"a feature of {largest:g} is too large for --precision float16; use float32, or "
                "--normalize."
            )
        return found.astype(np.float16)


def _up_to(layer: str, encoder: nn.Module, head: nn.Module) -> nn.Module:
    layers = layers_of(encoder, head)
    if layer not in layers.names:
        names = ", ".join([*layers.names[:-1], "g"])
        raise ConfigError(f"--layer {layer!r}: this run has the layers {names}.")
    return nn.Sequential(*layers.parts[: layers.names.index(layer) + 1])


def _checksum(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
