"""JPEG bytes to pixels: in place where it can, smaller where no crop needs the full size."""

from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

REDUCTIONS: Final = (8, 4, 2)
"""By how much the decoder may reduce height and width, the greatest first."""

_START: Final = b"\xff\xd8\xff"
_TURNING: Final = (b"Exif\0\0", b"tiff:Orientation")  # where a file can ask to be turned
_COLORS: Final = {"RGB": 3, "GRAY": 1}
_SPACES: Final = {"YCbCr": 3, "RGB": 3, "Gray": 1}  # channels of what can be reduced


def reduction(size: tuple[int, int], side: int | None) -> int:
    """1, 2, 4 or 8: the most by which an image may be reduced; a function of file and settings.

    Args:
        size: full height and width.
        side: pixels that its shorter side must keep; None asks for all of them.

    >>> [reduction((480, 640), side) for side in (None, 500, 240, 100, 60, 1)]
    [1, 1, 2, 4, 8, 8]
    """
    if side is None:
        return 1
    return next((by for by in REDUCTIONS if min(size) >= side * by), 1)


def reduced(size: tuple[int, int], side: int | None) -> tuple[int, int]:
    """Height and width of a JPEG of that size when it is decoded."""
    by = reduction(size, side)
    return -(-size[0] // by), -(-size[1] // by)


def is_reducible(data: bytes) -> bool:
    """Whether the bytes are a JPEG whose decoder can reduce it: gray or RGB, turned or not."""
    if not data.startswith(_START):
        return False
    try:
        return simplejpeg.decode_jpeg_header(data)[2] in _SPACES
    except ValueError:
        return False


def plain_jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of a JPEG that is gray or RGB and stands upright.

    None for anything else, a damaged file included: those take the careful way.
    """
    if not data.startswith(_START) or any(mark in data for mark in _TURNING):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    channels = _SPACES.get(space)
    return None if channels is None else (int(height), int(width), channels)


def decode_jpeg(
    data: bytes,
    size: tuple[int, int],
    space: str,
    side: int | None = None,
    room: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Decodes a JPEG as it is stored, not turned.

    A reduced image is made from the low frequencies of each block of 8 x 8 pixels, which costs a
    fraction of the full decode. It differs from the average of the full one over squares of the
    same side by less than 1.5 of 255 in the mean over the pixels of a photograph, and by less than
    1 where the image is smooth.

    Args:
        data: the bytes of the file.
        size: height and width that the header names.
        space: "RGB" or "GRAY".
        side: pixels that the shorter side must keep: both are divided by 1, 2, 4 or 8, rounded up.
        room: uint8 (any,): the pixels are laid at its beginning if they fit.

    Returns:
        (height, width, 3 or 1), uint8.

    Raises:
        ValueError: the file is damaged.
    """
    height, width = reduced(size, side)
    smaller = (height, width) != size
    needed = height * width * _COLORS[space]
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        colorspace=space,
        min_height=height if smaller else 0,
        min_width=width if smaller else 0,
        buffer=room[:needed] if room is not None and room.size >= needed else None,
    )
    return pixels
