"""From drawn parameters to views: images decoded and their views made, a few at a time in threads.

An image is decoded once for all of its views, and its pixels are used while they are in the
processor's cache. Memory holds the views and what the threads are at.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.images.pixels import PixelBatch
from diptych.stopwatch import give
from diptych.views.cpu import make_views
from diptych.views.draw import centre_views, five_views
from diptych.views.draws import Draws

# A task is long beside its dispatch, some 50 microseconds, and there are enough to share evenly.
_TASK_BYTES = 1 << 20  # of pixels
_TASKS = 8  # of a large batch, at least
_TASK_IMAGES = 32  # of a small one, at most


EvaluationCrops = Literal["center", "five"]
"""The largest centred square, or squares at the corners and in the centre."""


class Panel(NamedTuple):
    """Views of the same size.

    Attributes:
        drawn: their parameters, (views, images), in the coordinates of the full images.
        side_pixels: of these views.
    """

    drawn: Draws
    side_pixels: int


def load_views(
    images: ImageSet,
    indices: NDArray[np.int64],
    panels: Sequence[Panel],
    config: ViewsConfig,
    executor: Executor,
) -> list[NDArray[np.float32]]:
    """Decodes images and applies drawn parameters to them.

    Args:
        images: the set.
        indices: (images,), which of it.
        panels: what to make of each image.
        config: gives the normalisation.
        executor: its threads share the work.

    Returns:
        For each panel (views, images, side, side, channels), float32, normalised.
    """
    outs = [
        np.empty(
            (*panel.drawn.crops.shape, panel.side_pixels, panel.side_pixels, images.channels),
            dtype=np.float32,
        )
        for panel in panels
    ]
    heights, widths = images.heights[indices], images.widths[indices]

    def work(some: slice) -> tuple[float, float]:
        begun = time.perf_counter()
        pixels = images.pixels.gather(indices[some])
        read = time.perf_counter()
        for panel, out in zip(panels, outs, strict=True):
            drawn = fit(panel.drawn.images(some), pixels, heights[some], widths[some])
            side = panel.side_pixels
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
    panel = Panel(draw(images.heights[indices], images.widths[indices]), config.side_pixels)
    return load_views(images, indices, [panel], config, executor)[0]


def fit(
    drawn: Draws, pixels: PixelBatch, heights: NDArray[np.int64], widths: NDArray[np.int64]
) -> Draws:
    """Draws in the coordinates of pixels that may have been decoded smaller than full size."""
    if np.array_equal(pixels.heights, heights) and np.array_equal(pixels.widths, widths):
        return drawn
    return drawn.scaled(pixels.heights / heights, pixels.widths / widths)


def _tasks(heights: NDArray[np.int64], widths: NDArray[np.int64], channels: int) -> list[slice]:
    """Consecutive images, at most about a megabyte of pixels in each task."""
    count = len(heights)
    mean_bytes = channels * float((heights * widths).mean()) if count else 1.0
    size = int(np.clip(_TASK_BYTES / mean_bytes, 1, max(_TASK_IMAGES, count // _TASKS)))
    return [slice(start, start + size) for start in range(0, count, size)]
