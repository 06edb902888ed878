"""AVIF and JPEG 2000: Pillow for 8 bits; deeper ones by imagecodecs, since Pillow reduces them."""

import struct
from typing import Final

from PIL import AvifImagePlugin, Jpeg2KImagePlugin

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.opened import decode_opened
from diptych.images.codecs.size import check_size
from diptych.images.form import UPRIGHT, Decoded, Pixels

_CODESTREAM: Final = b"\xff\x4f\xff\x51"
_HIGH_BITS, _TWELVE_BITS = 0x40, 0x20
_OPACITY, _PREMULTIPLIED = 1, 2  # in a table of channels of JPEG 2000


def decode_avif(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes an AVIF of 8, 10 or 12 bits; of a sequence the first picture."""
    import imagecodecs

    shallow = decode_opened(AvifImagePlugin.AvifImageFile, data, config)
    at = data.find(b"av1C")
    flags = data[at + 6] if 0 <= at < len(data) - 6 else 0
    if not flags & _HIGH_BITS:
        return shallow
    white = 4095 if flags & _TWELVE_BITS else 1023
    pixels = imagecodecs.avif_decode(data, index=0)
    return _in_channels(pixels, white, _last(pixels), shallow.orientation)


def decode_jpeg2000(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes a JPEG 2000, whose last channel is alpha if its file format says so."""
    import imagecodecs

    at = data.find(_CODESTREAM)
    if at < 0 or at + 42 > len(data):
        raise UnreadableImage("damaged: a JPEG 2000 without a picture")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    check_size(bottom - top, right - left, config)
    (channels,) = struct.unpack_from(">H", data, at + 40)
    depths = data[at + 42 : at + 42 + 3 * channels : 3]
    if any(depth & 0x80 for depth in depths) or max(depths, default=99) >= 16:
        raise UnreadableImage(
            "signed or more than 16-bit numbers in a JPEG 2000: convert it to unsigned 8 or 16 bits"
        )
    if max(depths) < 8:
        found = decode_opened(Jpeg2KImagePlugin.Jpeg2KImageFile, data, config, UPRIGHT)
        pixels, white = found.pixels, found.white
    else:
        pixels, white = imagecodecs.jpeg2k_decode(data), 2 ** (max(depths) + 1) - 1
    kind = _kind_of_last(data[:at], channels)
    alpha = _last(pixels) if kind in (_OPACITY, _PREMULTIPLIED) else None
    return _in_channels(pixels, white, alpha, UPRIGHT, kind == _PREMULTIPLIED)


def _kind_of_last(boxes: bytes, channels: int) -> int | None:
    """What the table of channels says of the last one: 0 colour, 1 and 2 opacity."""
    at = boxes.find(b"cdef")
    if at < 0:
        return None
    (count,) = struct.unpack_from(">H", boxes, at + 4)
    for entry in range(at + 6, min(at + 6 + 6 * count, len(boxes) - 5), 6):
        channel, kind, _ = struct.unpack_from(">HHH", boxes, entry)
        if channel == channels - 1:
            return int(kind)
    return None


def _last(pixels: Pixels) -> int | None:
    return pixels.shape[2] - 1 if pixels.ndim == 3 and pixels.shape[2] in (2, 4) else None


def _in_channels(
    pixels: Pixels, white: int, alpha: int | None, turned: int, premultiplied: bool = False
) -> Decoded:
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    color = pixels.shape[2] - (alpha is not None)
    return Decoded(
        pixels, "rgb" if color >= 3 else "gray", white, alpha, premultiplied, orientation=turned
    )
