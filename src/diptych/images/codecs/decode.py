"""One image file to pixels: (height, width, channels), upright, on white where transparent.

Files are hostile until checked: the format is read from the bytes, not from the name, and only
those of ``codecs.formats`` are opened; the pixel count is checked in the header before anything is
decoded. A codec gives what the file stores and what it means; ``channels.in_form`` makes what the
run asks for.
"""

import os
import stat
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Decoded, Pixels, in_form
from diptych.images.codecs.formats import EXTENSIONS, FORMATS, HOW_TO_READ, format_of, pages
from diptych.images.codecs.jpeg import decode_plain_jpeg, plain_jpeg_header

__all__ = [
    "EXTENSIONS",
    "FORMATS",
    "HOW_TO_READ",
    "decode_bytes",
    "decode_file",
    "pages",
    "read_bytes",
]

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


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
    except MemoryError as error:
        raise UnreadableImage("does not fit in memory") from error
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise UnreadableImage(f"damaged: {_first_line(error)}") from error


def _decode(data: bytes, config: ImagesConfig, room: NDArray[np.uint8] | None) -> Decoded:
    plain = plain_jpeg_header(data)  # the common case, without a look at every segment
    if plain is not None:
        return decode_plain_jpeg(data, plain, config, room)
    found = format_of(data)
    if found is None:
        raise UnreadableImage(_unknown(data))
    return found.decode(data, config)


def _unknown(data: bytes) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return f"a HEIC picture: {HOW_TO_READ['.heic']}"
    return "not an image of a known format"


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
