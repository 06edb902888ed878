"""Makes views on the CPU: one pass per view over decoded pixels, compiled, without the GIL.

A view goes through antialiased crop and resize and its steps in a scratch buffer that stays in the
processor's cache, in float32 in 0 .. 1, and is written once, normalised, as channels-last. Each is
made by one thread from its own parameters, so the bits do not depend on the number of threads.
"""

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ViewsConfig
from diptych.images.pixels import PixelBatch
from diptych.views.draws import Draws
from diptych.views.kernels import make_views_into


def make_views(
    images: PixelBatch,
    drawn: Draws,
    config: ViewsConfig,
    *,
    side_pixels: int | None = None,
    out: NDArray[np.float32] | None = None,
    begin: int = 0,
) -> NDArray[np.float32]:
    """Applies drawn parameters to images, in the calling thread.

    Args:
        images: the decoded images.
        drawn: of (views, images), in the coordinates of the decoded pixels.
        config: gives the side and the normalisation.
        side_pixels: of the views, where it is not ``config.side_pixels``.
        out: where to write, (views, at least begin + images, side, side, channels), contiguous; a
            new array when not given.
        begin: which image of ``out`` the first of these is.

    Returns:
        (views, images, side, side, channels), float32, normalised.
    """
    side, channels = side_pixels or config.side_pixels, images.channels
    if out is None:
        out = np.empty((*drawn.crops.shape, side, side, channels), dtype=np.float32)
    mean, scale = normalisation(config, channels)
    make_views_into(
        images.pixels,
        images.offsets,
        images.widths,
        images.heights,
        unit_of(images.pixels.dtype),
        drawn.crops,
        drawn.steps,
        mean,
        scale,
        out,
        begin,
    )
    return out


def unit_of(dtype: np.dtype[np.uint8 | np.uint16]) -> np.float32:
    """What a pixel value of 1 stands for, so that the largest value is 1.0."""
    return np.float32(1.0 / np.iinfo(dtype).max)


def normalisation(
    config: ViewsConfig, channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and reciprocal standard deviation per channel, (channels,) each."""
    mean, std = np.array(config.pixel_mean), np.array(config.pixel_std)
    if channels != len(mean):
        mean, std = np.full(channels, mean.mean()), np.full(channels, std.mean())
    return mean.astype(np.float32), (1.0 / std).astype(np.float32)


def to_pixels(views: NDArray[np.float32], config: ViewsConfig) -> NDArray[np.uint8]:
    """Undoes the normalisation of (..., side, side, channels), for showing views to people."""
    mean, scale = normalisation(config, views.shape[-1])
    restored: NDArray[np.float32] = np.rint((views / scale + mean) * 255.0)
    return np.clip(restored, 0, 255).astype(np.uint8)
