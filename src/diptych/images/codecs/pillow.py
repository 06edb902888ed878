"""What Pillow opens, by the meaning that its modes give to the channels.

The plugins are called themselves, not ``Image.open``: that one has a limit of its own on the number
of pixels, which is a variable of the whole process.
"""

import io
import re
import struct
from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from PIL import Image, ImageFile

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import UPRIGHT, Decoded, check_size

Plugin = Callable[[io.BytesIO], ImageFile.ImageFile]

_WRITTEN_OUT: Final[Mapping[str, str]] = {
    "1": "L",
    "P": "RGB",
    "PA": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "HSV": "RGB",
    "LAB": "RGB",
}
"""Modes without one number for each channel, or of other colours, and what they become."""

_DEEPEST: Final = 65535


def decode_opened(
    plugin: Plugin, data: bytes, config: ImagesConfig, turned: int | None = None
) -> Decoded:
    """Decodes a file of up to 8 bits, or gray of 16.

    Args:
        plugin: the class of Pillow that reads the format.
        data: the bytes of the file.
        config: gives the largest number of pixels.
        turned: how the file is to be turned; as its EXIF or XMP data says when not given.
    """
    with plugin(io.BytesIO(data)) as image:
        check_size(image.height, image.width, config)
        image.load()
        if turned is None:
            turned = orientation(_bytes(image.info.get("exif")), _bytes(image.info.get("xmp")))
        return meaning(image, turned)


def meaning(image: Image.Image, turned: int) -> Decoded:
    """The pixels of a loaded image, with what its mode says of them."""
    if image.mode.startswith("I"):  # 16 bits in "I;16" and its kin, or widened to 32 in "I"
        deep = np.asarray(image, dtype=np.int64)
        if deep.min() < 0 or deep.max() > _DEEPEST:
            raise UnreadableImage("32-bit integers: convert it to 8 or 16 bits")
        return Decoded(deep.astype(np.uint16)[..., None], "gray", _DEEPEST, orientation=turned)
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels: convert it to 8 or 16 bits")
    if "transparency" in image.info and image.mode in ("1", "L", "RGB", "P"):
        image = image.convert("LA" if image.mode in ("1", "L") else "RGBA")
    elif image.mode == "P" and image.has_transparency_data:  # alpha within the palette
        image = image.convert("RGBA")
    elif image.mode in _WRITTEN_OUT:
        image = image.convert(_WRITTEN_OUT[image.mode])
    pixels = np.asarray(image)
    pixels = pixels.reshape(*pixels.shape[:2], -1)
    if image.mode == "CMYK":
        return Decoded(pixels, "cmyk", orientation=turned)
    return Decoded(
        pixels,
        "gray" if pixels.shape[2] <= 2 else "rgb",
        alpha=pixels.shape[2] - 1 if pixels.shape[2] in (2, 4) else None,
        premultiplied=image.mode in ("La", "RGBa"),
        orientation=turned,
    )


def _bytes(found: object) -> bytes:
    return found if isinstance(found, bytes) else b""


TAG: Final = 0x0112
_SHORT, _LONG = 3, 4
_XMP: Final = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def orientation(exif: bytes = b"", xmp: bytes = b"") -> int:
    """1 .. 8; of EXIF where it names one, else of XMP, else 1 (upright)."""
    named = _of_exif(exif)
    if named is not None:
        return named
    found = _XMP.search(xmp)
    return int(found[1]) if found else UPRIGHT


def _of_exif(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == TAG and kind in (_SHORT, _LONG):
                letter = "H" if kind == _SHORT else "I"
                (value,) = struct.unpack_from(order + letter, exif, entry + 8)
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # cut off
        return None
    return None
