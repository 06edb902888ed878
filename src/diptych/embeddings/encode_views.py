"""From images to the vectors that are stored: the views of a batch, and the encoder."""

import json
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.data import ViewsConfig
from diptych.config.downstream import EmbedSettings
from diptych.config.run import RunConfig
from diptych.embeddings.layers import EncoderLayer
from diptych.errors import ConfigError, UnreadableImage
from diptych.evaluation.features import FEATURES, PROJECTION, layered_network, require_finite
from diptych.images.codecs.channels import Pixels
from diptych.images.pixels import PixelBatch
from diptych.models.start import OpenedEncoder
from diptych.models.weight_files import file_checksum
from diptych.models.weights import PretrainedEncoder, head_files, load_with_head
from diptych.views.batches import as_images
from diptych.views.cpu import EvaluationCrops, make_views
from diptych.views.draw import centre_views, five_views

Vectors = NDArray[np.float32 | np.float16]
"""(images, dim), as they are stored."""

_ALIASES: Final = {"g": PROJECTION, "features": FEATURES}


def views_as_json(config: RunConfig, crops: EvaluationCrops) -> dict[str, Any]:
    """What an encoder sees of an image, as the settings of vectors say it."""
    found = {
        "crops": crops,
        "side_pixels": config.views.side_pixels,
        "pixel_mean": config.views.pixel_mean,
        "pixel_std": config.views.pixel_std,
        "color": config.images.color,
        "channels": config.images.channels,
        "bits": config.images.bits,
        "max_megapixels": config.images.max_megapixels,
    }
    shared: dict[str, Any] = json.loads(json.dumps(found))  # as it is read again
    return shared


class ViewEncoder:
    """Gives the vectors of views.

    Attributes:
        config: of the encoder.
        identity: the layer and the checksums of the files that it comes from.

    Args:
        opened: a run's encoder, or foreign weights.
        settings: name the layer.
        device: where it runs.

    Raises:
        ConfigError: there is no such layer.
        RunFolderError: the layer is of the head, and there is none.
    """

    def __init__(
        self, opened: OpenedEncoder, settings: EmbedSettings, device: torch.device
    ) -> None:
        self.config: RunConfig = opened.encoder.config
        self._settings, self._device = settings, device
        layer = _ALIASES.get(settings.layer, settings.layer)
        self.identity: dict[str, Any] = {"layer": layer, "encoder": opened.sha256}
        network: nn.Module = opened.encoder
        if _is_of_head(layer):
            network, self.identity["head"] = _up_to(layer, opened, settings)
        elif layer != FEATURES or settings.maps:
            network = self._own_layer(opened, None if layer == FEATURES else layer)
        self._network = network.to(device).eval()

    def _own_layer(self, opened: OpenedEncoder, layer: str | None) -> nn.Module:
        side, channels = self.config.views.side_pixels, self.config.images.channels
        blank = torch.zeros(1, channels, side, side)
        maps = self._settings.maps
        found = EncoderLayer(opened.encoder.network, layer, maps=maps, blank=blank)
        self.identity["layer"] = found.layer
        if maps:
            self.identity["map"] = found.map_shape
        return found

    def dim(self) -> int:
        """Length of a vector, found by encoding one blank image."""
        side, channels = self.config.views.side_pixels, self.config.images.channels
        return int(self.vectors((torch.zeros(1, channels, side, side),)).shape[1])

    @property
    def can_share(self) -> bool:
        """Whether several threads may call it at once: a layer is taken out by a hook."""
        reads_a_layer = isinstance(self._network, PretrainedEncoder) and self._network.layer
        return not (reads_a_layer or isinstance(self._network, EncoderLayer))

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
        features = require_finite(torch.stack(seen).mean(dim=0), of="this encoder")
        if self._settings.normalize:
            features = functional.normalize(features, dim=1)
        found = features.cpu().numpy()
        if self._settings.precision == "float32":
            return found
        largest = float(np.abs(found).max())
        # The cast would make it infinite.
        if largest > float(np.finfo(np.float16).max):
            raise ConfigError(
                f"a feature of {largest:g} is too large for --precision float16; use float32, or "
                "--normalize."
            )
        return found.astype(np.float16)


def _is_of_head(layer: str) -> bool:
    return layer == PROJECTION or layer.startswith("hidden ")


def _up_to(layer: str, opened: OpenedEncoder, settings: EmbedSettings) -> tuple[nn.Module, str]:
    """A network up to a layer of its head, and the checksums of the files of both."""
    if opened.run is None:
        raise ConfigError(
            f"--layer {settings.layer!r}: weights of other libraries have no projection head here. "
            "Wanted h or a layer of the encoder."
        )
    if settings.maps:
        raise ConfigError(f"--maps: layer {settings.layer!r} of the head gives no map.")
    encoder, head = load_with_head(opened.run)
    layers = layered_network(encoder.network, head)
    if layer not in layers.names:
        names = ", ".join([*layers.names[:-1], "g"])
        raise ConfigError(f"--layer {layer!r}: this run has the layers {names}.")
    # The encoder that a run keeps need not be that which its head was trained behind.
    files = head_files(opened.run)
    network = nn.Sequential(*layers.parts[: layers.names.index(layer) + 1])
    return network, " ".join(map(file_checksum, files))


_TASK: Final = 32  # images
_HELD_BYTES: Final = 1 << 20  # of decoded pixels that wait for their views, in each thread


@dataclass(frozen=True)
class BatchOfViews:
    """Some consecutive images as the network sees them.

    Attributes:
        rows: of the set.
        views: each (batch, channels, side, side); row ``i % batch`` shows image i, other rows are
            blank.
        unreadable: the reason why, by image.
    """

    rows: range
    views: tuple[Tensor, ...]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class ViewMaker:
    """Makes the views of batches.

    Attributes:
        crops: one view of an image, or five.
        config: gives side and normalisation.
        channels: of a view.
        batch_size: images that the network sees at once.
        executor: its threads decode and make views.
    """

    crops: EvaluationCrops
    config: ViewsConfig
    channels: int
    batch_size: int
    executor: Executor

    def batches(self, rows: range) -> list[range]:
        """Consecutive rows that the network sees together.

        An image is always at the same place of a batch of the same size, whatever the shards, as
        the last bits of its features may depend on that.
        """
        size = self.batch_size
        first = rows.start // size * size
        starts = range(first, rows.stop, size) if rows else range(0)
        return [range(max(s, rows.start), min(s + size, rows.stop)) for s in starts]

    def make(self, rows: range, read: Callable[[int], Pixels]) -> BatchOfViews:
        """Decodes the images of one batch and makes their views."""
        side, count = self.config.side_pixels, 1 if self.crops == "center" else 5
        out = np.zeros((count, self.batch_size, side, side, self.channels), dtype=np.float32)
        unreadable = dict[int, str]()

        def work(some: range) -> None:
            held = list[Pixels]()
            for index in some:
                try:
                    held.append(read(index))
                except UnreadableImage as error:
                    unreadable[index] = str(error)
                    # What is held must be consecutive, and ends at the gap.
                    self._flush(held, index, out)
                if sum(pixels.nbytes for pixels in held) > _HELD_BYTES:
                    self._flush(held, index + 1, out)
            self._flush(held, some.stop, out)

        tasks = [rows[start : start + _TASK] for start in range(0, len(rows), _TASK)]
        for _ in self.executor.map(work, tasks):
            pass  # this waits, and raises what a thread raised
        return BatchOfViews(rows, tuple(map(as_images, out)), unreadable)

    def _flush(self, held: list[Pixels], stop: int, out: np.ndarray) -> None:
        """Makes the views of the images before ``stop`` that were decoded, and lets them go."""
        if not held:
            return
        pixels = PixelBatch.of(held)
        draw = centre_views if self.crops == "center" else five_views
        drawn = draw(pixels.heights, pixels.widths)
        begin = (stop - len(held)) % self.batch_size
        make_views(pixels, drawn, self.config, out=out, begin=begin)
        held.clear()
