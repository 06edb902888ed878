"""A layer of an encoder by its own name: the mean of its map over places, or the whole map."""

from typing import Any, Final

import torch
from torch import Tensor, nn

from diptych.config.files import nearest_name
from diptych.errors import ConfigError
from diptych.models.parts import as_map, last_map

_LISTED: Final = 12  # names in an error


class EncoderLayer(nn.Module):
    """Gives the output of one layer of an encoder, and runs no further than that.

    Maps of convolutional networks are (batch, channels, height, width). Tokens of a transformer
    are such a map too, one place for each patch; the class token is left out.

    Attributes:
        layer: its name in the encoder.
        map_shape: (channels, height, width) of one image; None if it has one vector for an image.

    Args:
        encoder: any, in evaluation mode.
        layer: as ``named_modules`` has it; None for the last that gives a map.
        maps: give the whole map in one vector, in the order of ``map_shape``, and not its mean.
        blank: an image (1, channels, side, side) to try it on.

    Raises:
        ConfigError: there is no such layer, or none with a map is wanted and found.
    """

    def __init__(self, encoder: nn.Module, layer: str | None, *, maps: bool, blank: Tensor) -> None:
        super().__init__()
        self.layer = _last_map(encoder, blank) if layer is None else layer
        self._encoder, self._maps = encoder, maps
        self._part = _part(encoder, self.layer)
        with torch.no_grad():
            found = self._output(blank)
        self.map_shape = None if found.ndim == 2 else tuple(found.shape[1:])
        if maps and self.map_shape is None:
            raise ConfigError(
                f"--maps: layer {self.layer!r} gives one vector for an image and no map. Leave "
                "--maps away, or choose an earlier layer."
            )

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (batch, channels, side, side) to (batch, dim)."""
        found = self._output(images)
        return found.flatten(1) if found.ndim == 2 or self._maps else found.mean(dim=(2, 3))

    def _output(self, images: Tensor) -> Tensor:
        found = None

        def take(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal found
            found = output
            raise _Reached

        hook = self._part.register_forward_hook(take)
        try:
            self._encoder(images)
        except _Reached:
            pass
        finally:
            hook.remove()
        if found is None:
            raise ConfigError(
                f"--layer {self.layer}: the encoder does not call it. Choose another."
            )
        placed = as_map(self._encoder, self._part, found)
        if placed is None:
            raise ConfigError(
                f"--layer {self.layer}: wanted a layer that gives vectors, maps or tokens; this "
                f"one gives {_form(found)}. Choose another, as the block around it."
            )
        return placed


class _Reached(Exception):
    """The layer has given its output; what follows need not run."""


def _part(encoder: nn.Module, layer: str) -> nn.Module:
    parts = {name: part for name, part in encoder.named_modules() if name}
    if layer in parts:
        return parts[layer]
    nearest = nearest_name(layer, list(parts))
    hint = f" Did you mean {nearest}?" if nearest else ""
    names = [name for name, _ in encoder.named_children()]
    more = ", ..." if len(names) > _LISTED else ""
    raise ConfigError(
        f"--layer {layer!r}: there is no such layer.{hint} Wanted h, of a run's head `hidden 1` or "
        f"g, or a layer of the encoder: {', '.join(names[:_LISTED])}{more}, or what is inside them."
    )


def _last_map(encoder: nn.Module, blank: Tensor) -> str:
    found = last_map(encoder, blank)
    if found is None:
        raise ConfigError("--maps: no layer of this encoder gives a map. Leave --maps away.")
    return found[0]


def _form(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
