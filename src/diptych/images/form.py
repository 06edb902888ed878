"""Decoded pixels in the form that a run asks for: its channels, its depth."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage

Pixels = NDArray[np.uint8 | np.uint16]
"""Decoded pixels, mostly (height, width, channels); the depth is that of the type."""

_LUMA: Final = np.array([0.299, 0.587, 0.114])


def pixel_type(config: ImagesConfig) -> type[np.uint8] | type[np.uint16]:
    """The type of the numbers in memory."""
    return np.uint8 if config.bits == 8 else np.uint16


def in_form(pixels: Pixels, config: ImagesConfig) -> Pixels:
    """Converts pixels with the channels and the depth of their file.

    Args:
        pixels: (height, width, channels): gray, gray and alpha, RGB, RGB and alpha, or for "raw"
            whatever the file has.
        config: gives the colour mode and the depth.

    Raises:
        UnreadableImage: there is no rule for that many channels, or they are not those of the set.
    """
    if config.color != "raw":
        pixels = _in_color(pixels, config.channels)
    elif config.raw_channels not in (None, pixels.shape[2]):
        raise UnreadableImage(other_channels(pixels.shape[2], config))
    return in_depth(pixels, config)


def other_channels(count: int, config: ImagesConfig) -> str:
    """Why an image of that many channels cannot be used in a set of others."""
    return f"has {count} channels; the set has {config.raw_channels} (images.raw_channels)"


def in_depth(pixels: Pixels, config: ImagesConfig) -> Pixels:
    """8 bits to 16 by x 257, 16 to 8 by rounding; the ends of the range meet."""
    if pixels.dtype == pixel_type(config):
        return pixels
    if config.bits == 16:
        return pixels.astype(np.uint16) * np.uint16(257)
    return ((pixels.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _in_color(pixels: Pixels, channels: int) -> Pixels:
    """Any of gray, RGB and their alpha to gray or RGB, on white where transparent."""
    there = pixels.shape[2]
    if there > 4:
        raise UnreadableImage(
            f"{there} channels are neither gray nor RGB; images.color = 'raw' keeps them"
        )
    if there in (2, 4):
        white = np.iinfo(pixels.dtype).max
        alpha = pixels[..., -1:] / white
        blend = pixels[..., :-1] * alpha + white * (1 - alpha)
        pixels = np.rint(blend).astype(pixels.dtype)
    if pixels.shape[2] == channels:
        return np.ascontiguousarray(pixels)
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    luma = np.rint(pixels @ _LUMA)
    return luma.astype(pixels.dtype)[..., None]
