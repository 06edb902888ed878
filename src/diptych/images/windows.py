"""Half-overlapping windows of photographs, each an image of its own to learn from.

Of few, large photographs a view of a random crop shows the same scene again and again, small. Cut
into windows, a photograph gives several images that differ as scenes do. A photograph's windows
come one after the other: window w of photograph p is image p x windows + w, row by row.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError
from diptych.images.collection import ImageSet
from diptych.images.pixels import PixelBatch, PixelSource


def window_side(side: int, windows: int) -> int:
    """Length of each of so many half-overlapping windows along a side, in pixels; 1 at least.

    With starts a half of a window apart, n windows of 2 / (n + 1) of the side cover all of it.

    >>> window_side(480, 1), window_side(480, 2), window_side(480, 3)
    (480, 320, 240)
    """
    return max(1, 2 * side // (windows + 1))


def in_windows(images: ImageSet, windows: int, *, side_pixels: int) -> ImageSet:
    """Photographs cut into windows x windows; names, labels, checksums are the photograph's.

    Args:
        images: photographs.
        windows: along each side; 1 gives the same set.
        side_pixels: of a view.

    Raises:
        ConfigError: views of the windows would mostly be enlarged.
    """
    if windows == 1:
        return images
    side = window_side(images.median_side_pixels, windows)
    if side < side_pixels:
        raise ConfigError(
            f"images.windows = {windows} cuts photographs whose median side is "
            f"{images.median_side_pixels} pixels into windows of {side}, smaller than a view of "
            f"{side_pixels}. Take fewer windows, or a smaller views.side_pixels."
        )
    repeated = images.select(np.repeat(np.arange(len(images)), windows**2))
    heights = np.maximum(1, 2 * repeated.heights // (windows + 1))
    widths = np.maximum(1, 2 * repeated.widths // (windows + 1))
    pixels = WindowPixels(images.pixels, windows)
    return replace(repeated, pixels=pixels, heights=heights, widths=widths)


@dataclass(frozen=True)
class WindowPixels:
    """Windows of the images of another source, which keeps whole images as it does otherwise.

    Attributes:
        source: gives the photographs.
        windows: along each side.
    """

    source: PixelSource
    windows: int

    def __len__(self) -> int:
        return len(self.source) * self.windows**2

    def gather(self, indices: NDArray[np.int64]) -> PixelBatch:
        """The windows at ``indices``, copied; a photograph is asked for once for all of them."""
        photographs, place = np.divmod(indices, self.windows**2)
        asked, positions = np.unique(photographs, return_inverse=True)
        whole = self.source.gather(asked)
        rows, columns = np.divmod(place, self.windows)
        return PixelBatch.of(
            [
                whole.image(int(position))[
                    _span(int(whole.heights[position]), int(row), self.windows),
                    _span(int(whole.widths[position]), int(column), self.windows),
                ]
                for position, row, column in zip(positions, rows, columns, strict=True)
            ]
        )

    def decoded_for(self, config: ImagesConfig) -> "WindowPixels":
        """The same windows of what the source gives for another config."""
        return WindowPixels(self.source.decoded_for(config), self.windows)


def _span(side: int, number: int, windows: int) -> slice:
    # Of the pixels as decoded, which may be fewer than in full: no start is rounded twice.
    start = number * side // (windows + 1)
    return slice(start, start + window_side(side, windows))
