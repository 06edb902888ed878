"""HEIC photographs, as telephones write them, through pillow-heif."""

import io
from types import ModuleType

import numpy as np

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Decoded, check_size
from diptych.images.codecs.formats import decode_avif

_AVIF_BRANDS = (b"avif", b"avis")


def decode_heif(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes the main picture of a HEIF file of 8, 10 or 12 bits, upright.

    The file's own transformations turn it; its EXIF orientation, which repeats them, is not used.

    Raises:
        UnreadableImage: pillow-heif is missing, or the picture is too large or damaged.
    """
    # Some writers of AVIF name the general brand first, and their own among the compatible ones.
    if any(brand in data[16 : int.from_bytes(data[:4], "big")] for brand in _AVIF_BRANDS):
        return decode_avif(data, config)
    opened = _pillow_heif().open_heif(io.BytesIO(data), convert_hdr_to_8bit=False)
    image = opened[opened.primary_index]
    width, height = image.size
    check_size(height, width, config)
    # Rows may be padded.
    pixels = np.array(np.asarray(image)[:, :width]).reshape(height, width, -1)
    channels = pixels.shape[2]
    return Decoded(
        pixels,
        "gray" if channels <= 2 else "rgb",
        white=_white(image.info["bit_depth"], 8 * pixels.dtype.itemsize),
        alpha=channels - 1 if channels in (2, 4) else None,
        premultiplied="a" in image.mode,
    )


def _white(depth: int, bits: int) -> int:
    """Deep numbers lie at the upper end of 16 bits: libheif shifts them."""
    return (2**depth - 1) << (bits - depth)


def _pillow_heif() -> ModuleType:
    try:
        import pillow_heif
    except ImportError as error:
        raise UnreadableImage("HEIC needs pip install 'diptych[heic]'") from error
    return pillow_heif
