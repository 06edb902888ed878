"""PNG of every depth; WebP, AVIF, JPEG 2000, PBM, PGM and PPM; and the pages of GIF.

PNG is read by Pillow up to 8 bits, and by libpng through imagecodecs for 16, which Pillow reduces.
Its chunks are walked first: their checksums are compared, and a decoder sees only those that hold
the picture, so that it has nothing else to complain about.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import AvifImagePlugin, Jpeg2KImagePlugin, PngImagePlugin, PpmImagePlugin, WebPImagePlugin

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import (
    UPRIGHT,
    Decoded,
    Pixels,
    check_size,
    decode_opened,
    orientation,
)

_START: Final = b"\x89PNG\r\n\x1a\n"
_CHANNELS: Final = {0: 1, 2: 3, 4: 2, 6: 4}  # by the type of colour, of 16 bits
_KEY_BYTES: Final = {0: 2, 2: 6}  # of a transparent colour
_ADAM7: Final = (  # of each pass its first row and column, and the steps down and across
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)
_MOST_TEXT: Final = 2**20  # bytes of unpacked EXIF
_HEX_OF_EXIF: Final = re.compile(rb"\s*exif\s+\d+\s+([0-9a-fA-F\s]+)")


@dataclass(frozen=True)
class _Chunks:
    """The chunks of a PNG that matter, checked."""

    header: bytes
    palette: bytes | None
    transparent: bytes | None
    packed: bytes
    orientation: int

    def file(self, packed: bytes, transparent: bytes | None) -> bytes:
        kinds = ((b"IHDR", self.header), (b"PLTE", self.palette), (b"tRNS", transparent))
        there = [_chunk(kind, content) for kind, content in kinds if content is not None]
        return b"".join((_START, *there, _chunk(b"IDAT", packed), _chunk(b"IEND", b"")))


def decode_png(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes a PNG; a transparent colour becomes alpha, a palette its colours.

    Raises:
        UnreadableImage: it is too large or damaged.
    """
    check_size(*_png_size(data), config)
    chunks = _read_chunks(data)
    depth, color, interlaced = chunks.header[8], chunks.header[9], chunks.header[12]
    if depth != 16:
        file = chunks.file(chunks.packed, chunks.transparent)
        return decode_opened(PngImagePlugin.PngImageFile, file, config, chunks.orientation)
    pixels = _decode_deep(chunks, color, interlaced)
    channels = pixels.shape[2]
    return Decoded(
        pixels,
        color="gray" if channels <= 2 else "rgb",
        white=65535,
        alpha=channels - 1 if channels in (2, 4) else None,
        orientation=chunks.orientation,
    )


def _png_size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise UnreadableImage("damaged: a PNG without a header")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _read_chunks(data: bytes) -> _Chunks:
    found: dict[bytes, bytes] = {}
    packed, exif, xmp = [], b"", b""
    at = len(_START)
    while b"IEND" not in found:
        # A file that ends before IEND raises struct.error here, and is reported as damaged.
        size, kind = struct.unpack_from(">I4s", data, at)
        content = data[at + 8 : at + 8 + size]
        (sum_there,) = struct.unpack_from(">I", data, at + 8 + size)
        if zlib.crc32(kind + content) != sum_there:
            raise UnreadableImage(f"damaged: the checksum of {kind!r} is wrong")
        if kind == b"IDAT":
            packed.append(content)
        elif kind == b"eXIf":
            exif = content
        elif kind in (b"tEXt", b"zTXt"):
            exif = exif or _exif_in_text(kind, content)
        elif kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\0\0"):
            xmp = content
        found.setdefault(kind, content)
        at += size + 12
    if len(found.get(b"IHDR", b"")) != 13:
        raise UnreadableImage("damaged: a PNG without a header")
    palette, transparent = found.get(b"PLTE"), found.get(b"tRNS")
    turned = orientation(exif, xmp)
    return _Chunks(found[b"IHDR"], palette, transparent, b"".join(packed), turned)


def _exif_in_text(kind: bytes, content: bytes) -> bytes:
    """EXIF as ImageMagick writes it: in hexadecimal, in a comment."""
    name, _, text = content.partition(b"\0")
    if name != b"Raw profile type exif":
        return b""
    if kind == b"zTXt":
        # The first byte names the compression, of which there is one. What unpacks is bounded.
        text = zlib.decompressobj().decompress(text[1:], _MOST_TEXT)
    found = _HEX_OF_EXIF.match(text)
    return bytes.fromhex(found[1].decode()) if found else b""


def _decode_deep(chunks: _Chunks, color: int, interlaced: int) -> Pixels:
    import imagecodecs

    if color not in _CHANNELS:
        raise UnreadableImage(f"damaged: a PNG of 16 bits and colour type {color}")
    width, height = struct.unpack_from(">II", chunks.header)
    size = _unpacked_bytes(height, width, _CHANNELS[color] * 2, interlaced)
    # No more than the picture is unpacked, whatever the file holds.
    lines = zlib.decompressobj().decompress(chunks.packed, size)
    if len(lines) < size:
        raise UnreadableImage("damaged: it has fewer pixels than its header says")
    transparent = chunks.transparent
    if transparent is not None and len(transparent) != _KEY_BYTES.get(color):
        transparent = None
    # Stored (level 0), not packed: libpng unpacks it at once.
    clean = _Chunks(chunks.header, None, None, b"", 1).file(zlib.compress(lines, 0), transparent)
    pixels: Pixels = imagecodecs.png_decode(clean)
    return pixels.reshape(height, width, -1)


def _unpacked_bytes(height: int, width: int, pixel_bytes: int, interlaced: int) -> int:
    """Bytes of all lines, each with its filter's, in one pass or in the seven of Adam7."""
    passes = _ADAM7 if interlaced else ((0, 0, 1, 1),)
    total = 0
    for top, left, down, across in passes:
        lines, pixels = -((top - height) // down), -((left - width) // across)
        total += lines * (1 + pixels * pixel_bytes) if lines > 0 and pixels > 0 else 0
    return total


def _chunk(kind: bytes, content: bytes) -> bytes:
    checked = kind + content
    return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))


def png_pages(data: bytes) -> int:
    """Pictures in a PNG: more than one if it is animated."""
    # It stands before the picture, so a large file need not be searched to its end.
    at = data.find(b"acTL", 0, 4096)
    if at < 0 or at + 8 > len(data):
        return 1
    return max(1, int.from_bytes(data[at + 4 : at + 8], "big"))


def decode_webp(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes a WebP; of an animation the first picture."""
    import imagecodecs

    found = list(_webp_chunks(data))
    check_size(*_webp_size(*(found or [(b"", b"")])[0]), config)
    # Reversed, so that of several chunks of one kind the first counts.
    chunks = dict(reversed(found))
    if b"ANMF" in chunks:
        return decode_opened(WebPImagePlugin.WebPImageFile, data, config)
    pixels = imagecodecs.webp_decode(data)
    turned = orientation(chunks.get(b"EXIF", b""), chunks.get(b"XMP ", b""))
    alpha = 3 if pixels.shape[2] == 4 else None
    return Decoded(pixels, "rgb", alpha=alpha, orientation=turned)


def webp_pages(data: bytes) -> int:
    """Pictures in a WebP: more than one if it is animated."""
    return max(1, sum(kind == b"ANMF" for kind, _ in _webp_chunks(data)))


def _webp_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 12
    while at + 8 <= len(data):
        kind, size = struct.unpack_from("<4sI", data, at)
        yield kind, data[at + 8 : at + 8 + size]
        # RIFF pads each chunk to an even length.
        at += 8 + size + size % 2


def _webp_size(kind: bytes, header: bytes) -> tuple[int, int]:
    """Height and width, by the header that the decoder goes by: that of the first chunk alone."""
    # The decoder itself sees that the picture behind a VP8X is no larger.
    if kind == b"VP8X" and len(header) >= 10:
        width, height = (int.from_bytes(header[at : at + 3], "little") + 1 for at in (4, 7))
        return height, width
    if kind == b"VP8 " and len(header) >= 10:
        width, height = struct.unpack_from("<HH", header, 6)
        # The upper two bits are a hint for scaling, no part of the size.
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L" and len(header) >= 5:
        (packed,) = struct.unpack_from("<I", header, 1)
        return (packed >> 14 & 0x3FFF) + 1, (packed & 0x3FFF) + 1
    raise UnreadableImage("damaged: a WebP without a picture")


def gif_pages(data: bytes) -> int:
    """Pictures in a GIF, counted from block to block."""
    pages, at = 0, 13 + _palette_bytes(data[10])
    while at < len(data) and data[at] != 0x3B:
        if data[at] == 0x2C:
            pages += 1
            # A descriptor of 10 bytes, perhaps a palette, and one byte for LZW.
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

    # Pillow first in any case: by it the size is checked and the orientation read.
    shallow = decode_opened(AvifImagePlugin.AvifImageFile, data, config)
    at = data.find(b"av1C")
    # The third byte of the configuration says whether there are more than 8 bits, and 12.
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
    at = _codestream(data)
    (channels,) = struct.unpack_from(">H", data, at + 40)
    # Bits less one, of each channel; the highest bit marks signed numbers.
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
    at = _codestream(data)
    if at + 42 > len(data):
        raise UnreadableImage("damaged: a JPEG 2000 without a picture")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    return bottom - top, right - left


def _codestream(data: bytes) -> int:
    """Where the picture begins: at once, or in the box that the decoder takes, the first `jp2c`.

    Other boxes may hold anything, also what looks like the header of a small picture.
    """
    if data.startswith(_CODESTREAM):
        return 0
    at = 0
    while at + 16 <= len(data):
        size, kind, long = struct.unpack_from(">I4sQ", data, at)
        head, size = (16, long) if size == 1 else (8, size)
        if kind == b"jp2c" and data.startswith(_CODESTREAM, at + head):
            return at + head
        if kind == b"jp2c" or size < head:
            break
        at += size
    raise UnreadableImage("damaged: a JPEG 2000 without a picture")


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
        # Splits off no more than is wanted: a list of all that a long file holds fills memory.
        found = np.array(body.split(None, count)[:count], dtype=np.uint16)
    else:
        found = np.frombuffer(body[: count * 2], dtype=">u2").astype(np.uint16)
    if len(found) < count:
        raise UnreadableImage("damaged: it has fewer pixels than its header says")
    return found
