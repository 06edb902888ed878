"""The encoder that is exported: its network without what only training needs, and what it is."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import NormConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.models.encoders import build_encoder, count_features
from diptych.models.final_features import IntermediateLayer, Whitening, WithIntermediate
from diptych.models.norms import use_norm
from diptych.models.start import open_encoder
from diptych.models.weights import PretrainedEncoder
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text

_DEFAULT: Final = "resnet18"  # of weights that do not show which network they are of


@dataclass(frozen=True)
class ExportSource:
    """An encoder to export.

    Attributes:
        name: as it was named.
        folder: of the run, where it is one.
        config: of the run.
        network: from normalised images (batch, channels, side, side) to features, on the CPU, in
            float32 and in evaluation mode, with torch's own norms.
        whitening: of its features, or None.
        layer: whose features stand behind the network's own, or None.
        licence: of the weights, an SPDX identifier; empty where none is known.
    """

    name: str
    folder: RunFolder | None
    config: RunConfig
    network: nn.Module
    whitening: Whitening | None
    layer: IntermediateLayer | None = None
    licence: str = ""

    @property
    def channels(self) -> int:
        """Of the images."""
        return self.config.images.channels

    @property
    def side(self) -> int:
        """Height and width of the images, in pixels."""
        return self.config.views.side_pixels

    @property
    def mean(self) -> list[float]:
        """What is subtracted from each channel of pixels in 0 .. 1."""
        return _of_channels(self.config.views.pixel_mean, self.channels)

    @property
    def std(self) -> list[float]:
        """What each channel is divided by."""
        return _of_channels(self.config.views.pixel_std, self.channels)

    @property
    def features(self) -> int:
        """Length of a feature vector."""
        return count_features(self.unwhitened, channels=self.channels, side_pixels=self.side)

    @property
    def unwhitened(self) -> nn.Module:
        """Gives the features before their whitening."""
        return self.network if self.layer is None else WithIntermediate(self.network, self.layer)

    @property
    def images_config(self) -> RunConfig:
        """A config that says how to feed the encoder, and nothing of the run: no path, no seed."""
        images, views = self.config.images, self.config.views
        return RunConfig(
            encoder=replace(self.config.encoder, weights=None, frozen_parts=0, frozen_epochs=None),
            norm=self.config.norm if self.config.norm.is_per_image else NormConfig(),
            images=ImagesConfig(
                color=images.color,
                bits=images.bits,
                raw_channels=images.raw_channels,
                decoded_side=images.decoded_side,
            ),
            views=ViewsConfig(
                side_pixels=views.side_pixels,
                pixel_mean=views.pixel_mean,
                pixel_std=views.pixel_std,
            ),
        )

    def last_layer_only(self) -> "ExportSource":
        """The same encoder without features of an intermediate layer, where it has them."""
        if self.layer is None:
            return self
        whitening = self.whitening
        if whitening is not None:
            bare = replace(self, layer=None, whitening=None)
            whitening = whitening.of_first(bare.features)
        return replace(self, layer=None, whitening=whitening)

    def average_pooled(self) -> "ExportSource":
        """The same encoder with one average of the whole image, where it has one of each cell."""
        if self.config.encoder.pool == 1:
            return self.last_layer_only()
        config = replace(self.config, encoder=replace(self.config.encoder, pool=1))
        # A whitening of the features of cells does not fit their average.
        return replace(
            self,
            config=config,
            network=plain_network(config, self.network.state_dict()),
            whitening=None,
            layer=None,
        )

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Normalised images to features, whitened where the encoder has a whitening."""
        features: Tensor = self.unwhitened(images)
        return features if self.whitening is None else self.whitening(features)


def open_source(text: str, *, encoder: nn.Module | None = None, licence: str = "") -> ExportSource:
    """Loads the encoder of a run, of an encoder file, or of foreign weights.

    Args:
        text: a run folder, an encoder file, or as ``--weights`` has it.
        encoder: of a run whose encoder was given in Python, a module of the same structure.
        licence: of the weights; that of the start weights when not given, where it is known.
    """
    path = Path(text)
    folder = _run_of(path)
    known = _known_licence(folder.start if folder is not None else path)
    if encoder is None:
        opened = open_encoder(text, otherwise=_DEFAULT)
        found, known = opened.encoder, known or opened.licence
    else:
        from diptych.models.weights import load_encoder

        found = load_encoder(text, encoder=encoder)
    return source_of(found, text, folder, own=encoder is not None, licence=licence or known)


def _run_of(path: Path) -> RunFolder | None:
    """The run whose encoder a folder or file is; None of any other, as one of a classifier."""
    if not path.exists():
        return None
    around = RunFolder(path if path.is_dir() else path.parent)
    return around if around.config.is_file() and path in (around.path, around.encoder) else None


def source_of(
    encoder: PretrainedEncoder,
    name: str,
    folder: RunFolder | None = None,
    *,
    own: bool = False,
    licence: str = "",
) -> ExportSource:
    """An encoder that is loaded, as one to export."""
    config = encoder.config
    network = encoder.network.cpu().float().to(memory_format=torch.contiguous_format).eval()
    if not own:
        network = plain_network(config, network.state_dict())
    return ExportSource(name, folder, config, network, encoder.whitening, encoder.layer, licence)


def plain_network(config: RunConfig, state: Mapping[str, Tensor]) -> nn.Module:
    """The network of a config with torch's own batch norms, which hold the same statistics."""
    network = build_encoder(
        config.encoder,
        channels=config.images.channels,
        side_pixels=config.views.side_pixels,
        seed=config.seed,
    )
    if config.norm.is_per_image:
        network = use_norm(network, config.norm)
    network.load_state_dict(state)
    return network.requires_grad_(False).eval()


def contiguous_state(network: nn.Module) -> dict[str, Tensor]:
    """The state of a network, each tensor in memory of its own and in rows."""
    return {
        name: torch.clone(one.detach().cpu(), memory_format=torch.contiguous_format)
        for name, one in network.state_dict().items()
    }


def require(condition: bool, source: ExportSource, form: str, why: str) -> None:
    """Refuses a network that a format cannot hold.

    Raises:
        ConfigError: the condition does not hold.
    """
    if not condition:
        raise ConfigError(
            f"{source.name} cannot be exported as {form}: {why}. Use --format safetensors, "
            "torch-export or onnx, which hold any network."
        )


def _of_channels(three: tuple[float, float, float], channels: int) -> list[float]:
    return list(three) if channels == 3 else [sum(three) / 3] * channels


def _known_licence(path: Path) -> str:
    """Of the weights in a file, or that a run began with; empty where that is not said."""
    if not path.is_file():
        return ""
    try:
        texts: dict[str, Any] = read_tensors_and_text(path)[1]
    except UnreadableTensors:
        return ""
    return str(texts.get("licence", ""))
