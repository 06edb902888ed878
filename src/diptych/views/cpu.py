"""Makes views on the CPU: one pass per view over decoded pixels, compiled, without the GIL.

A view goes through antialiased crop and resize and its steps in a scratch buffer that stays in the
processor's cache, in float32 in 0 .. 1, and is written once, normalised, as channels-last. Each is
made by one thread from its own parameters, so the bits do not depend on the number of threads.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.images.pixels import PixelBatch
from diptych.runtime.stopwatch import give
from diptych.views.draw import centre_views, five_views
from diptych.views.kernels import make_views_into
from diptych.views.parameters import ViewParameters


def make_views(
    images: PixelBatch,
    drawn: ViewParameters,
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
    # Rounded: a cast alone cuts, and a 6 that came back as 5.9999 would be shown as 5.
    restored: NDArray[np.float32] = np.rint((views / scale + mean) * 255.0)
    return np.clip(restored, 0, 255).astype(np.uint8)


# A task is long beside its dispatch, some 50 microseconds, and there are enough to share evenly.
_TASK_BYTES = 1 << 20  # of pixels
_TASKS = 8  # of a large batch, at least
_TASK_IMAGES = 32  # of a small one, at most
EvaluationCrops = Literal["center", "five"]
"""The largest centred square, or squares at the corners and in the centre."""


class SizedViews(NamedTuple):
    """Views of the same size.

    Attributes:
        drawn: their parameters, (views, images), in the coordinates of the full images.
        side_pixels: of these views.
    """

    drawn: ViewParameters
    side_pixels: int


def load_views(
    images: ImageSet,
    indices: NDArray[np.int64],
    sized: Sequence[SizedViews],
    config: ViewsConfig,
    executor: Executor,
) -> list[NDArray[np.float32]]:
    """Decodes images and applies drawn parameters to them.

    Args:
        images: the set.
        indices: (images,), which of it.
        sized: what to make of each image.
        config: gives the normalisation.
        executor: its threads share the work.

    Returns:
        For each size (views, images, side, side, channels), float32, normalised.
    """
    outs = [
        np.empty(
            (*one.drawn.crops.shape, one.side_pixels, one.side_pixels, images.channels),
            dtype=np.float32,
        )
        for one in sized
    ]
    heights, widths = images.heights[indices], images.widths[indices]

    def work(some: slice) -> tuple[float, float]:
        begun = time.perf_counter()
        pixels = images.pixels.gather(indices[some])
        read = time.perf_counter()
        for one, out in zip(sized, outs, strict=True):
            drawn = fit(one.drawn.images(some), pixels, heights[some], widths[some])
            side = one.side_pixels
            make_views(pixels, drawn, config, side_pixels=side, out=out, begin=some.start)
        return read - begun, time.perf_counter() - begun

    # The results are in `outs`; this waits, and raises what a thread raised.
    seconds = list(executor.map(work, _tasks(heights, widths, images.channels)))
    reading, whole = map(sum, zip(*seconds, strict=True)) if seconds else (0.0, 1.0)
    give("data_wait", reading / whole, of="views")
    return outs


def gather_all(images: ImageSet, indices: NDArray[np.int64], executor: Executor) -> PixelBatch:
    """The pixels of whole images, for the device to work on."""
    heights, widths = images.heights[indices], images.widths[indices]
    parts = executor.map(
        lambda some: images.pixels.gather(indices[some]),
        _tasks(heights, widths, images.channels),
    )
    return PixelBatch.join(list(parts))


def load_centred(
    images: ImageSet, indices: NDArray[np.int64], config: ViewsConfig, executor: Executor
) -> NDArray[np.float32]:
    """Images as they are evaluated, (images, side, side, channels): the centred square, resized."""
    return load_evaluated(images, indices, "center", config, executor)[0]


def load_evaluated(
    images: ImageSet,
    indices: NDArray[np.int64],
    crops: EvaluationCrops,
    config: ViewsConfig,
    executor: Executor,
) -> NDArray[np.float32]:
    """The views for evaluation, without chance, (views, images, side, side, channels)."""
    draw = centre_views if crops == "center" else five_views
    evaluated = SizedViews(
        draw(images.heights[indices], images.widths[indices]), config.side_pixels
    )
    return load_views(images, indices, [evaluated], config, executor)[0]


def fit(
    drawn: ViewParameters, pixels: PixelBatch, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> ViewParameters:
    """Parameters in the coordinates of pixels that may have been decoded smaller."""
    if np.array_equal(pixels.heights, heights) and np.array_equal(pixels.widths, widths):
        return drawn
    return drawn.scaled(pixels.heights / heights, pixels.widths / widths)


def _tasks(heights: NDArray[np.int64], widths: NDArray[np.int64], channels: int) -> list[slice]:
    """Consecutive images, at most about a megabyte of pixels in each task."""
    count = len(heights)
    mean_bytes = channels * float((heights * widths).mean()) if count else 1.0
    size = int(np.clip(_TASK_BYTES / mean_bytes, 1, max(_TASK_IMAGES, count // _TASKS)))
    return [slice(start, start + size) for start in range(0, count, size)]
