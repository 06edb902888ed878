"""One image file to pixels: (height, width, channels) uint8, upright, on white where transparent.

Files are hostile until checked: the format is read from the bytes, not from the name, and only the
formats below are opened; the pixel count is checked in the header before anything is decoded.
"""

import io
import os
import stat
from pathlib import Path
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage

EXTENSIONS: Final = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
)
"""Names that count as images in a folder. What is inside decides how they are decoded."""

FORMATS: Final = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
"""The only decoders of Pillow that may run."""

Image.init()  # Pillow registers most formats only when asked to

_ORIENTATION_TAG: Final = 0x0112
_UPRIGHT: Final = 1


def decode_file(path: str | Path, config: ImagesConfig) -> NDArray[np.uint8]:
    """Reads an image file.

    Args:
        path: of the file.
        config: gives the colour mode and the largest number of pixels.

    Returns:
        (height, width, channels), uint8: 3 channels for "rgb", 1 for "gray".

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


def decode_bytes(data: bytes, config: ImagesConfig) -> NDArray[np.uint8]:
    """Decodes an image held in memory; see ``decode_file``."""
    if not data:
        raise UnreadableImage("empty file")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image, config)
            if image.format == "PNG":
                _check_sums(data)
            orientation = image.getexif().get(_ORIENTATION_TAG, _UPRIGHT)
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                # Every decoder but Pillow's own leaves EXIF alone, and so do we until the pixels
                # are there.
                pixels = _decode_jpeg(data, config.color)
                if orientation != _UPRIGHT:
                    pixels = _turn_upright(pixels, orientation)
                return pixels
            return _to_array(ImageOps.exif_transpose(image), config.color)
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


def _check_size(image: Image.Image, config: ImagesConfig) -> None:
    megapixels = image.width * image.height / 1e6
    if megapixels > config.max_megapixels:
        raise UnreadableImage(
            f"{image.width} x {image.height} is {megapixels:.0f} megapixels, more than "
            f"images.max_megapixels = {config.max_megapixels:g}"
        )


def _check_sums(data: bytes) -> None:
    """Compares a PNG's checksums, which Pillow does only when asked; it decodes noise otherwise."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        image.verify()


def _decode_jpeg(data: bytes, color: str) -> NDArray[np.uint8]:
    space = "RGB" if color == "rgb" else "GRAY"
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, colorspace=space)
    return pixels


def _turn_upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undoes an EXIF orientation, 2 .. 8: bits for mirrored, turned and transposed."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _to_array(image: Image.Image, color: str) -> NDArray[np.uint8]:
    """Any mode of Pillow to RGB or gray, 8 bits."""
    image.load()
    if image.mode.startswith("I"):  # 16 bits in "I;16" and its kin, or widened to 32 in "I"
        deep = np.asarray(image, dtype=np.int64)
        if deep.min() < 0 or deep.max() > 65535:
            raise UnreadableImage("32-bit integers: convert it to 8 or 16 bits")
        image = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
    elif image.mode == "F":
        raise UnreadableImage("floating-point pixels: convert it to 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    mode = "RGB" if color == "rgb" else "L"
    array = np.asarray(image.convert("RGB").convert(mode))
    return np.ascontiguousarray(array.reshape(*array.shape[:2], -1))


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
