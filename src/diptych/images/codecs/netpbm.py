"""PBM, PGM and PPM: Pillow for up to 8 bits; deeper ones here, since Pillow reduces them."""

import re
from typing import Final

import numpy as np
from PIL import PpmImagePlugin

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.opened import decode_opened
from diptych.images.codecs.size import check_size
from diptych.images.form import UPRIGHT, Decoded, Pixels

_SPACE: Final = rb"(?:\s|#[^\n]*\n)+"
_HEADER: Final = re.compile(
    rb"P([2356])" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,9})" + _SPACE + rb"(\d{1,6})\s"
)


def decode_netpbm(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes a PBM, PGM or PPM, plain or binary, of 1 to 16 bits."""
    header = _HEADER.match(data)
    if header is None or int(header[4]) <= 255:
        return decode_opened(PpmImagePlugin.PpmImageFile, data, config, UPRIGHT)
    kind, width, height, white = (int(number) for number in header.groups())
    check_size(height, width, config)
    if white > 65535:
        raise UnreadableImage(f"damaged: a white of {white} in a file of 16 bits")
    channels = 1 if kind in (2, 5) else 3
    pixels = _numbers(data[header.end() :], height * width * channels, plain=kind in (2, 3))
    pixels = np.minimum(pixels, np.uint16(white)).reshape(height, width, channels)
    return Decoded(pixels, "gray" if channels == 1 else "rgb", white)


def _numbers(body: bytes, count: int, *, plain: bool) -> Pixels:
    if plain:
        found = np.array(body.split(None, count)[:count], dtype=np.uint16)
    else:
        found = np.frombuffer(body[: count * 2], dtype=">u2").astype(np.uint16)
    if len(found) < count:
        raise UnreadableImage("damaged: it has fewer pixels than its header says")
    return found
