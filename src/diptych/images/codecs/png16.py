"""PNG of 16 bits in colour or with alpha, which Pillow reduces to 8."""

import struct
import zlib
from collections.abc import Iterator
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diptych.errors import UnreadableImage

_SIGNATURE_BYTES: Final = 8
_CHANNELS: Final = {0: 1, 2: 3, 4: 2, 6: 4}
"""By the PNG's type of colour."""


def is_deep_color_png(data: bytes) -> bool:
    """Whether a PNG has 16 bits and more than one channel."""
    depth, color = struct.unpack_from(">BB", data, 24)
    return depth == 16 and color in (2, 4, 6)


def decode_png16(data: bytes) -> NDArray[np.uint16]:
    """Decodes a PNG of 16 bits whose size and checksums have been checked.

    Returns:
        (height, width, channels): RGB, gray and alpha, or RGB and alpha.

    Raises:
        UnreadableImage: it is interlaced, has a transparent colour, or is damaged.
    """
    width, height, _, color, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    chunks = list(_chunks(data))
    if interlaced or any(kind == b"tRNS" for kind, _ in chunks):
        raise UnreadableImage(
            "a PNG of 16 bits that is interlaced or has a transparent colour: save it without"
        )
    line_bytes = 1 + width * _CHANNELS[color] * 2
    packed = b"".join(content for kind, content in chunks if kind == b"IDAT")
    # No more than the picture is unpacked, whatever the file holds.
    lines = zlib.decompressobj().decompress(packed, height * line_bytes)
    if len(lines) < height * line_bytes:
        raise UnreadableImage("damaged: it has fewer pixels than its header says")
    filtered = np.frombuffer(lines, dtype=np.uint8).reshape(height, line_bytes)
    found = np.empty((height, line_bytes - 1), dtype=np.uint8)
    if not _unfilter(filtered, 2 * _CHANNELS[color], found):
        raise UnreadableImage("damaged: a line with an unknown filter")
    return found.view(">u2").reshape(height, width, _CHANNELS[color]).astype(np.uint16)


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = _SIGNATURE_BYTES
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        at += size + 12


@njit(nogil=True, cache=True)
def _unfilter(filtered, step, found):
    """Undoes the filter of each line (PNG specification, section 9); False if one is unknown."""
    for row in range(found.shape[0]):
        kind = filtered[row, 0]
        if kind > 4:
            return False
        for i in range(found.shape[1]):
            left = np.int64(found[row, i - step]) if i >= step else np.int64(0)
            above = np.int64(found[row - 1, i]) if row > 0 else np.int64(0)
            corner = np.int64(found[row - 1, i - step]) if row > 0 and i >= step else np.int64(0)
            guess = np.int64(0)
            if kind == 1:
                guess = left
            elif kind == 2:
                guess = above
            elif kind == 3:
                guess = (left + above) // 2
            elif kind == 4:
                to_left = abs(above - corner)
                to_above = abs(left - corner)
                to_corner = abs(left + above - 2 * corner)
                if to_left <= to_above and to_left <= to_corner:
                    guess = left
                elif to_above <= to_corner:
                    guess = above
                else:
                    guess = corner
            found[row, i] = (np.int64(filtered[row, i + 1]) + guess) & 255
    return True
