"""One image file to pixels: (height, width, channels), upright, on white where transparent.

Files are hostile until checked: the format is read from the bytes, not from the name, and only the
formats below are opened; the pixel count is checked in the header before anything is decoded.
"""

import io
import os
import stat
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.deep import (
    check_size,
    decode_deep,
    decode_tiff,
    is_tiff,
    loses_in_pillow,
)
from diptych.images.codecs.jpeg import decode_jpeg, plain_jpeg_header
from diptych.images.form import Pixels, in_form

EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
)
"""Names that count as images in a folder. What is inside decides how they are decoded."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""The only decoders of Pillow that may run."""

Image.init()  # Pillow registers most formats only when asked to

_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = 1
_AS_THEY_ARE: Final = ("L", "LA", "RGB", "RGBA", "CMYK")  # modes that "raw" keeps


def decode_file(path: str | Path, config: ImagesConfig) -> Pixels:
    """Reads an image file.

    Args:
        path: of the file.
        config: gives the colour mode, the depth and the largest number of pixels.

    Returns:
        (height, width, channels): 3 channels for "rgb", 1 for "gray", the file's for "raw"; uint8
        or uint16.

    Raises:
        UnreadableImage: the file is missing, is no regular file, is damaged or too large. The
            message gives the reason in a few words.
    """
    return decode_bytes(read_bytes(path), config)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        UnreadableImage: the file is missing or is no regular one.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
            raise UnreadableImage("not a regular file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        missing_target = os.path.islink(path) and not os.path.exists(path)
        reason = "broken symbolic link" if missing_target else error.strerror or str(error)
        raise UnreadableImage(reason) from error


def decode_bytes(
    data: bytes,
    config: ImagesConfig,
    room: NDArray[np.uint8] | None = None,
) -> Pixels:
    """Decodes an image held in memory; see ``decode_file``.

    Args:
        data: the bytes of the file.
        config: gives the colour mode, the depth, the largest number of pixels, and the side that a
            large JPEG may be reduced to.
        room: where to lay the pixels if they are decoded in place; see ``decode_jpeg``.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        return in_form(_decode(data, config, room), config)
    except UnreadableImage:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage("not an image of a known format") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage("too many pixels") from error
    except MemoryError as error:
        raise UnreadableImage("does not fit in memory") from error
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise UnreadableImage(f"damaged: {_first_line(error)}") from error


def _decode(data: bytes, config: ImagesConfig, room: NDArray[np.uint8] | None) -> Pixels:
    plain = plain_jpeg_header(data)  # the common case, without a look at every tag
    if plain is not None:
        height, width, channels = plain
        check_size(height, width, config)
        space = _jpeg_space(config, channels)
        return decode_jpeg(data, (height, width), space, config.jpeg_side, room)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _decode_opened(image, data, config)
    except UnidentifiedImageError:
        if not is_tiff(data):
            raise
        return decode_tiff(data, config)


def _decode_opened(image: Image.Image, data: bytes, config: ImagesConfig) -> Pixels:
    check_size(image.height, image.width, config)
    if image.format == "PNG":
        _check_sums(data)
    deep = loses_in_pillow(image, data, config)
    # For the tags Pillow decodes a PNG, which would be in vain for a deep one.
    tags = {} if deep and image.format == "PNG" and "exif" not in image.info else image.getexif()
    orientation = tags.get(_ORIENTATION_TAG, _UPRIGHT)
    if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
        # Every decoder but Pillow's own leaves EXIF alone, and so do we until the pixels are there.
        size, space = (image.height, image.width), _jpeg_space(config, len(image.getbands()))
        return _turn_upright(decode_jpeg(data, size, space, config.jpeg_side), orientation)
    if deep:
        return _turn_upright(decode_deep(data, config), orientation)
    return _to_array(ImageOps.exif_transpose(image), config.color)


def _jpeg_space(config: ImagesConfig, channels: int) -> str:
    wanted = channels if config.color == "raw" else config.channels
    return "RGB" if wanted == 3 else "GRAY"


def _check_sums(data: bytes) -> None:
    """Compares a PNG's checksums, which Pillow does only when asked; it decodes noise otherwise."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.verify()


def _turn_upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undoes an EXIF orientation, 2 .. 8: bits for mirrored, turned and transposed."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_array(image: Image.Image, color: str) -> Pixels:
    """Any mode of Pillow: gray of 16 bits as it is, the rest to RGB, gray or the file's own."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits in "I;16" and its kin, or widened to 32 in "I"
        deep = np.asarray(image, dtype=np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UnreadableImage("32-bit integers: convert it to 8 or 16 bits")
        return deep.astype(np.uint16)[..., None]
    if image.mode == "F":
        raise UnreadableImage("floating-point pixels: convert it to 8 or 16 bits")
    if color == "raw":
        array = np.asarray(_expanded(image))
    else:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        array = np.asarray(image.convert("RGB").convert("RGB" if color == "rgb" else "L"))
    return np.ascontiguousarray(array.reshape(*array.shape[:2], -1))


def _expanded(image: Image.Image) -> Image.Image:
    """With one number for each channel: palettes, single bits and other spaces are written out."""
    if image.mode in _AS_THEY_ARE:
        return image
    if image.mode == "1":
        return image.convert("L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
