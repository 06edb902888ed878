"""By how much images are reduced as they are decoded, and the mean over squares that does it.

A function of the file and the settings alone: room in memory is laid out by it before anything is
decoded, and no pixel depends on where it is kept.
"""

import numpy as np
from numpy.typing import NDArray

from diptych.images.codecs.channels import Pixels


def reduction(size: tuple[int, int], side: int | None) -> int:
    """The power of two by which height and width of an image are divided, rounded up.

    Args:
        size: full height and width.
        side: pixels that its shorter side must keep; None asks for all of them.

    >>> [reduction((480, 640), side) for side in (None, 500, 240, 100, 60, 9)]
    [1, 1, 2, 4, 8, 32]
    """
    by, shorter = 1, min(size)
    while side is not None and shorter > 1 and (half := -(-shorter // 2)) >= side:
        by, shorter = 2 * by, half
    return by


def reduced(size: tuple[int, int], by: int) -> tuple[int, int]:
    """Height and width of an image that is reduced."""
    return -(-size[0] // by), -(-size[1] // by)


def mean_of_squares(pixels: Pixels, by: int) -> Pixels:
    """The mean over squares of ``by`` pixels, of fewer at the right and at the bottom.

    Args:
        pixels: (height, width, channels), uint8 or uint16.
        by: 1 gives the pixels as they are.

    Returns:
        (height / by, width / by, channels), rounded up, of the same type; a half is rounded up.
    """
    if by == 1:
        return pixels
    (height, width), channels = pixels.shape[:2], pixels.shape[2]
    rows, columns = reduced((height, width), by)
    # Row by row, then column by column: each sum is of whole rows, which is what memory is fast at.
    wide = np.zeros((rows, width, channels), dtype=np.uint32)
    for place in range(min(by, height)):
        wide[: len(pixels[place::by])] += pixels[place::by]
    # A square of 256 pixels of 16 bits just fits into 32; larger squares need more.
    sums = np.zeros((rows, columns, channels), dtype=np.uint32 if by <= 256 else np.uint64)
    for place in range(min(by, width)):
        some = wide[:, place::by]
        sums[:, : some.shape[1]] += some
    counts = np.multiply.outer(_counts(height, by), _counts(width, by))[..., None]
    means: Pixels = ((sums + counts // 2) // counts).astype(pixels.dtype)
    return means


def _counts(length: int, by: int) -> NDArray[np.uint32]:
    """How many pixels each square has along a side."""
    return np.minimum(by, length - np.arange(0, length, by)).astype(np.uint32)
