"""Formats that take few lines: WebP, AVIF, JPEG 2000, PBM, PGM and PPM, and the pages of GIF."""

import re
import struct
from collections.abc import Iterator
from typing import Final

import numpy as np
from PIL import AvifImagePlugin, Jpeg2KImagePlugin, PpmImagePlugin, WebPImagePlugin

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import UPRIGHT, Decoded, Pixels, check_size
from diptych.images.codecs.pillow import decode_opened, orientation


def decode_webp(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes a WebP; of an animation the first picture."""
    import imagecodecs

    chunks = dict(reversed(list(_chunks(data))))
    check_size(*_size(chunks), config)
    if b"ANMF" in chunks:
        return decode_opened(WebPImagePlugin.WebPImageFile, data, config)
    pixels = imagecodecs.webp_decode(data)
    turned = orientation(chunks.get(b"EXIF", b""), chunks.get(b"XMP ", b""))
    alpha = 3 if pixels.shape[2] == 4 else None
    return Decoded(pixels, "rgb", alpha=alpha, orientation=turned)


def webp_pages(data: bytes) -> int:
    """Pictures in a WebP: more than one if it is animated."""
    return max(1, sum(kind == b"ANMF" for kind, _ in _chunks(data)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        at += 8 + size + size % 2


def _size(chunks: dict[bytes, bytes]) -> tuple[int, int]:
    """Height and width, by the three kinds of headers."""
    if (header := chunks.get(b"VP8X")) is not None and len(header) >= 10:
        width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (4, 7))
        return height, width
    if (header := chunks.get(b"VP8 ")) is not None and len(header) >= 10:
        width, height = struct.unpack_from("<HH", header, 6)
        return height & 0x3FFF, width & 0x3FFF
    if (header := chunks.get(b"VP8L")) is not None and len(header) >= 5:
        (packed,) = struct.unpack_from("<I", header, 1)
        return (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    raise UnreadableImage("damaged: a WebP without a picture")


def gif_pages(data: bytes) -> int:
    """Pictures in a GIF, counted from block to block."""
    pages, at = 0, 13 + _palette_bytes(data[10])
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            pages += 1
            at += 11 + _palette_bytes(data[at + 9])
        else:
            at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    return pages


def _palette_bytes(flags: int) -> int:
    return 3 << (flags % 8 + 1) if flags & 0x80 else 0


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

    check_size(*jpeg2000_size(data), config)
    at = data.find(_CODESTREAM)
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


def jpeg2000_size(data: bytes) -> tuple[int, int]:
    """Height and width of the picture in a JPEG 2000, by its header."""
    at = data.find(_CODESTREAM)
    if at < 0 or at + 42 > len(data):
        raise UnreadableImage("damaged: a JPEG 2000 without a picture")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    return bottom - top, right - left


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
