"""What Pillow reads only in part: TIFF and PNG of 16 bits, TIFF of many channels."""

import io
import logging
import zlib
from typing import Final

import numpy as np
import tifffile
from PIL import Image

from diptych.configs import MOST_CHANNELS, ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.png16 import decode_png16, is_deep_color_png
from diptych.images.form import Pixels

for _name in ("PIL.TiffImagePlugin", "tifffile"):  # what is wrong is raised, not printed as well
    logging.getLogger(_name).addHandler(logging.NullHandler())

_TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS_TAG, _SAMPLES_TAG = 258, 277
_DEFLATE: Final = (8, 32946)
_COMPRESSIONS: Final = (1, 5, 32773, *_DEFLATE)  # none, LZW, PackBits
_GRAY_INVERTED, _GRAY, _RGB, _CMYK = 0, 1, 2, 5


def is_tiff(data: bytes) -> bool:
    """Whether the bytes begin as a TIFF's do."""
    return data[:4] in _TIFF_STARTS


def loses_in_pillow(image: Image.Image, data: bytes, config: ImagesConfig) -> bool:
    """Whether Pillow would drop bits or channels of an opened image that the config asks for."""
    if image.format == "PNG":
        return config.bits == 16 and is_deep_color_png(data)
    if image.format != "TIFF":
        return False
    tags = image.tag_v2  # type: ignore[attr-defined]
    deep = max(tags.get(_BITS_TAG, (1,))) > 8 and not image.mode.startswith("I")
    dropped = tags.get(_SAMPLES_TAG, 1) != len(image.getbands())
    return (config.bits == 16 and deep) or (config.color == "raw" and dropped)


def decode_deep(data: bytes, config: ImagesConfig) -> Pixels:
    """Decodes a TIFF, or a PNG whose sums and size have been checked, as it is stored."""
    return decode_tiff(data, config) if is_tiff(data) else decode_png16(data)


def decode_tiff(data: bytes, config: ImagesConfig) -> Pixels:
    """The first page of a TIFF with all its channels and bits; its header is checked first.

    Raises:
        UnreadableImage: it is too large, or of a kind that cannot be read in full.
    """
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        _check_page(page, config)
        if page.compression in _DEFLATE:
            _refuse_deflate_bomb(data, page)
        pixels: Pixels = page.asarray(maxworkers=1)
        if page.photometric == _GRAY_INVERTED:
            pixels = np.iinfo(pixels.dtype).max - pixels
        if pixels.ndim == 2:
            return np.ascontiguousarray(pixels[..., None])
        first = page.axes.startswith("S")
        return np.ascontiguousarray(pixels.transpose(1, 2, 0) if first else pixels)


def _check_page(page: tifffile.TiffPage, config: ImagesConfig) -> None:
    check_size(page.imagelength, page.imagewidth, config)
    if page.dtype not in (np.uint8, np.uint16) or page.bitspersample not in (8, 16):
        raise UnreadableImage(f"numbers of type {page.dtype}: convert it to 8 or 16 bits")
    if page.axes not in ("YX", "YXS", "SYX") or page.samplesperpixel > MOST_CHANNELS:
        raise UnreadableImage(
            f"{page.samplesperpixel} channels and axes {page.axes}: wanted one picture of at most "
            f"{MOST_CHANNELS} channels"
        )
    known = (_GRAY_INVERTED, _GRAY, _RGB, *((_CMYK,) if config.color == "raw" else ()))
    if page.photometric not in known or page.compression not in _COMPRESSIONS:
        raise UnreadableImage(
            f"a TIFF of {page.bitspersample} bits, {page.samplesperpixel} channels, colours "
            f"{page.photometric!s} and compression {page.compression!s}: save it as gray or RGB, "
            "plain or with deflate"
        )


def check_size(height: int, width: int, config: ImagesConfig) -> None:
    """Refuses a picture with more pixels than may be."""
    megapixels = width * height / 1e6
    if megapixels > config.max_megapixels:
        raise UnreadableImage(
            f"{width} x {height} is {megapixels:.0f} megapixels, more than "
            f"images.max_megapixels = {config.max_megapixels:g}"
        )


def _refuse_deflate_bomb(data: bytes, page: tifffile.TiffPage) -> None:
    """The reader unpacks a strip whatever its size; none may be larger than the picture."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        unpacked = zlib.decompressobj().decompress(data[start : start + count], page.nbytes + 1)
        if len(unpacked) > page.nbytes:
            raise UnreadableImage("a strip unpacks to more than the picture")
