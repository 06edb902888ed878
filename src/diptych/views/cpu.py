"""Makes views on the CPU: one pass per view over cached pixels, compiled, without the GIL.

A view goes through antialiased crop and resize, flip, colour jitter, gray and blur in a scratch
buffer that stays in the processor's cache, in float32 in 0 .. 1, and is written once, normalised,
as channels-last. Each view is made by one thread from its own parameters, so the bits do not
depend on the number of threads. The operations are those of torchvision's functional transforms
on float tensors.
"""

from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ViewsConfig
from diptych.images.pixels import PixelBatch
from diptych.views.kernels import JITTER_ORDERS, make_views_into

_CHUNK = 32  # images per task: few enough dispatches, enough tasks to share evenly


def make_views(
    images: PixelBatch,
    parameters: NDArray[np.void],
    config: ViewsConfig,
    executor: Executor,
) -> NDArray[np.float32]:
    """Applies drawn parameters to images.

    Args:
        images: the decoded images.
        parameters: (views, images) of dtype ``draw.VIEW``.
        config: gives the side, the blur's kernel and the normalisation.
        executor: its threads share the work.

    Returns:
        (views, images, side, side, channels), float32, normalised.
    """
    side, channels = config.side_pixels, images.channels
    out = np.empty((*parameters.shape, side, side, channels), dtype=np.float32)
    mean, scale = normalisation(config, channels)
    orders, kernel = JITTER_ORDERS, config.blur_kernel_pixels

    def work(start: int) -> None:
        some = slice(start, start + _CHUNK)
        make_views_into(
            images.pixels,
            images.offsets[some],
            images.heights[some],
            images.widths[some],
            parameters[:, some],
            orders,
            kernel,
            mean,
            scale,
            out[:, some],
        )

    for _ in executor.map(work, range(0, len(images), _CHUNK)):
        pass  # the results are in `out`; this waits, and raises what a thread raised
    return out


def normalisation(
    config: ViewsConfig, channels: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and reciprocal standard deviation per channel, (channels,) each."""
    mean, std = np.array(config.pixel_mean), np.array(config.pixel_std)
    if channels == 1:
        mean, std = mean.mean(keepdims=True), std.mean(keepdims=True)
    return mean.astype(np.float32), (1.0 / std).astype(np.float32)


def to_pixels(views: NDArray[np.float32], config: ViewsConfig) -> NDArray[np.uint8]:
    """Undoes the normalisation of (..., side, side, channels), for showing views to people."""
    mean, scale = normalisation(config, views.shape[-1])
    restored: NDArray[np.float32] = np.rint((views / scale + mean) * 255.0)
    return np.clip(restored, 0, 255).astype(np.uint8)
