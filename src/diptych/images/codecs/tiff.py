"""TIFF of every depth and number of channels, as it is stored, and what its tags say of them.

By tifffile and imagecodecs alone: libtiff writes what it does not like to the terminal.
"""

import io
import logging
import struct
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from PIL import Image

from diptych.config.data import MOST_CHANNELS, ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import TAG, UPRIGHT, Decoded, Pixels, check_size
from diptych.images.codecs.formats import jpeg2000_size
from diptych.images.codecs.jpeg import jpeg_segments

if TYPE_CHECKING:
    from tifffile import TiffPage

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _CMYK, _YCBCR = 0, 1, 2, 3, 5, 6
_COLORS: Final[dict[int, tuple[Literal["gray", "rgb", "cmyk"], int]]] = {
    _WHITE_IS_ZERO: ("gray", 1),
    _BLACK_IS_ZERO: ("gray", 1),
    _RGB: ("rgb", 3),
    _PALETTE: ("rgb", 3),
    _CMYK: ("cmyk", 4),
    _YCBCR: ("rgb", 3),
}
"""By the tag of photometric interpretation: what the first channels are when they are decoded."""

_JPEG: Final = 7
_JPEG2000: Final = 34712
_COMPRESSIONS: Final = {
    1: "none",
    2: "CCITT",
    3: "CCITT",
    4: "CCITT",
    5: "LZW",
    _JPEG: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    _JPEG2000: "JPEG 2000",
    34925: "LZMA",
    50000: "Zstandard",
}
"""Those whose unpacked size is known before they are unpacked, so that no file can fill memory."""

_LENGTH: Final = 257  # the tag of the picture's rows
_LETTERS: Final = {3: "H", 4: "I", 16: "Q"}  # by the type of a tag

_ASSOCIATED, _UNASSOCIATED = 1, 2  # of the tag ExtraSamples: the only kinds that are alpha

# Of each thread its own: what others do with tifffile at the same time is logged as ever.
_reading: ContextVar[bool] = ContextVar("_reading", default=False)


class _NotOurs(logging.Filter):
    """Lets through what tifffile logs for others; what is wrong with our files is raised."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not _reading.get()


logging.getLogger("tifffile").addFilter(_NotOurs())


def decode_tiff(data: bytes, config: ImagesConfig) -> Decoded:
    """The first page of a TIFF with all its channels and bits; its header is checked first.

    Raises:
        UnreadableImage: it is too large, ends early, or is of a kind that has no one reading.
    """
    import tifffile

    token = _reading.set(True)
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            _check_page(page, config)
            _check_segments(page, data)
            pixels = _unpacked(page, data, config)
            if page.axes.startswith("S"):
                pixels = pixels.transpose(1, 2, 0)
            return _meaning(page, pixels.reshape(*pixels.shape[:2], -1))
    finally:
        _reading.reset(token)


def _unpacked(page: "TiffPage", data: bytes, config: ImagesConfig) -> Pixels:
    import imagecodecs

    try:
        # One thread, as images are decoded in several threads already.
        return page.asarray(maxworkers=1)
    except Exception as error:  # each codec raises another error where there is no room
        pixels = _with_whole_strips(page, data, config)
        if pixels is not None:
            return pixels
        if isinstance(error, imagecodecs.DeflateError) and "INSUFFICIENT_SPACE" in str(error):
            raise UnreadableImage("a strip unpacks to more than the picture") from error
        raise


def _with_whole_strips(page: "TiffPage", data: bytes, config: ImagesConfig) -> Pixels | None:
    """The pixels where the last strip goes on below the picture, as some writers leave it.

    They are those of a file with a longer picture; None where that cannot be read either.
    """
    import tifffile

    rows, tag = page.rowsperstrip or 1, page.tags[_LENGTH]
    length = -(-page.imagelength // rows) * rows
    letter = _LETTERS.get(int(tag.dtype), "")
    if page.is_tiled or length == page.imagelength or not letter:
        return None
    try:
        check_size(length, page.imagewidth, config)
        patch = struct.pack(page.parent.byteorder + letter, length)
        longer = data[: tag.valueoffset] + patch + data[tag.valueoffset + len(patch) :]
        with tifffile.TiffFile(io.BytesIO(longer)) as file:
            pixels = file.pages.first.asarray(maxworkers=1)
    except Exception:
        return None
    down = page.axes.index("Y")
    return pixels.take(range(page.imagelength), axis=down)


def _meaning(page: "TiffPage", pixels: Pixels) -> Decoded:
    photometric, white = int(page.photometric), 2**page.bitspersample - 1
    if pixels.dtype == np.bool_:
        pixels = pixels.astype(np.uint8)
    if photometric == _PALETTE:
        pixels, white = _painted(pixels, page.colormap), 255
    if photometric == _YCBCR and page.compression != _JPEG:
        size = (pixels.shape[1], pixels.shape[0])
        image = Image.frombytes("YCbCr", size, np.ascontiguousarray(pixels[..., :3]).tobytes())
        pixels = np.concatenate([np.asarray(image.convert("RGB")), pixels[..., 3:]], axis=2)
    color, channels = _COLORS[photometric]
    kinds = [int(kind) for kind in page.extrasamples]
    at = next((i for i, kind in enumerate(kinds) if kind in (_ASSOCIATED, _UNASSOCIATED)), None)
    tag = page.tags.get(TAG)
    turned = int(tag.value) if tag is not None and tag.value in range(1, 9) else UPRIGHT
    return Decoded(
        pixels,
        color,
        white,
        alpha=None if at is None else channels + at,
        premultiplied=at is not None and kinds[at] == _ASSOCIATED,
        inverted=photometric == _WHITE_IS_ZERO,
        orientation=turned,
    )


def _painted(pixels: Pixels, colormap: Pixels | None) -> Pixels:
    """Indices to their colours, whose high bytes count; channels beside the index stay."""
    if colormap is None or pixels.dtype != np.uint8 or int(pixels[..., 0].max()) >= len(colormap.T):
        raise UnreadableImage("damaged: colours that its palette does not have")
    colors = (colormap.T >> 8).astype(np.uint8)
    return np.concatenate([colors[pixels[..., 0]], pixels[..., 1:]], axis=2)


def _check_page(page: "TiffPage", config: ImagesConfig) -> None:
    check_size(page.imagelength, page.imagewidth, config)
    if page.is_tiled:  # which may be larger than the picture, and is unpacked whole
        check_size(page.tilelength, page.tilewidth, config)
    if page.samplesperpixel > MOST_CHANNELS or page.axes not in ("YX", "YXS", "SYX"):
        raise UnreadableImage(
            f"{page.samplesperpixel} channels and axes {page.axes}: wanted one picture of at most "
            f"{MOST_CHANNELS} channels"
        )
    _check_numbers(page)
    if int(page.compression) not in _COMPRESSIONS:
        raise UnreadableImage(
            f"a TIFF with compression {_name(page.compression)}: save it without, or with LZW, "
            "deflate or Zstandard"
        )
    first = 1 if page.photometric == _PALETTE else _COLORS.get(int(page.photometric), ("", 0))[1]
    subsampled = page.photometric == _YCBCR and page.compression != _JPEG
    if (subsampled and (page.subsampling or (2, 2)) != (1, 1)) or not (
        0 < first == page.samplesperpixel - len(page.extrasamples)
    ):
        raise UnreadableImage(
            f"a TIFF with colours {_name(page.photometric)} and {page.samplesperpixel} channels, "
            f"{len(page.extrasamples)} of them extra: save it as gray or RGB"
        )


def _check_numbers(page: "TiffPage") -> None:
    """Unsigned numbers of up to 16 bits have a black and a white; no others do."""
    dtype, bits = page.dtype, page.bitspersample
    kinds = {"f": "floating-point", "i": "signed", "c": "complex"}
    if dtype is not None and dtype.kind in kinds:
        raise UnreadableImage(
            f"{kinds[dtype.kind]} pixels (numbers of type {dtype}): which is black and which is "
            "white is not known; stretch them to unsigned 8 or 16 bits"
        )
    if dtype not in (np.bool_, np.uint8, np.uint16) or not isinstance(bits, int):
        raise UnreadableImage(f"numbers of type {dtype}: convert it to unsigned 8 or 16 bits")


def _name(tag: object) -> str:
    return str(getattr(tag, "name", tag))


def _check_segments(page: "TiffPage", data: bytes) -> None:
    """Each strip or tile lies in the file, and unpacks to no more than its place."""
    down, across = page.rowsperstrip or page.imagelength, page.imagewidth
    if page.is_tiled:
        down, across = page.tilelength, page.tilewidth
    planes = page.samplesperpixel if page.axes == "SYX" else 1
    wanted = planes * -(-page.imagelength // max(1, down)) * -(-page.imagewidth // max(1, across))
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    contiguous = page.compression == 1 and len(places) == 1  # tifffile joins strips in a row
    if len(places) < wanted and not contiguous:
        raise UnreadableImage(f"damaged: {len(places)} of {wanted} strips or tiles")
    if any(start + count > len(data) for start, count in places):
        raise UnreadableImage("damaged: a TIFF that ends early; part of the picture is missing")
    if page.compression in (
        _JPEG,
        _JPEG2000,
    ):  # their headers may name a larger size
        for start, count in places:
            height, width = _segment_size(data[start : start + count], int(page.compression))
            if height > down or width > across:
                raise UnreadableImage("a strip unpacks to more than the picture")


def _segment_size(segment: bytes, compression: int) -> tuple[int, int]:
    if compression == _JPEG2000:
        return jpeg2000_size(segment)
    part = jpeg_segments(segment)
    return part.height, part.width


def tiff_pages(data: bytes) -> int:
    """Pictures in a TIFF, without those that are smaller copies or masks of others."""
    return sum(1 for _ in page_places(data))


def page_places(data: bytes) -> Iterator[int]:
    """Where the tags of each picture begin, in their order; see ``tiff_pages``."""
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    big = data[2:4] in (b"+\0", b"\0+")
    word, count, step = ("Q", "Q", 20) if big else ("I", "H", 12)
    (at,) = struct.unpack_from(order + word, data, 8 if big else 4)
    seen: set[int] = set()
    # A damaged or hostile chain of pages may lead back to itself.
    while at and at not in seen:
        seen.add(at)
        (entries,) = struct.unpack_from(order + count, data, at)
        begin = at + struct.calcsize(order + count)
        # Tags are sorted, and 254 (the kind of page) is the lowest in use, so it comes first.
        tag, _ = struct.unpack_from(order + "HH", data, begin)
        (kind,) = struct.unpack_from(order + "I", data, begin + step - (8 if big else 4))
        # Bit 0 marks a reduced copy, bit 2 a mask.
        if not (tag == 254 and kind & 0b101):
            yield at
        (at,) = struct.unpack_from(order + word, data, begin + step * entries)
