"""PNG of every depth: Pillow for up to 8 bits, libpng by imagecodecs for 16, which Pillow reduces.

The chunks are walked first: their checksums are compared, and a decoder sees only those that hold
the picture, so that it has nothing else to complain about.
"""

import re
import struct
import zlib
from dataclasses import dataclass
from typing import Final

from PIL import PngImagePlugin

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Decoded, Pixels, check_size
from diptych.images.codecs.pillow import decode_opened, orientation

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
    check_size(*_size(data), config)
    chunks = _read(data)
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


def _size(data: bytes) -> tuple[int, int]:
    if data[12:16] != b"IHDR":
        raise UnreadableImage("damaged: a PNG without a header")
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def _read(data: bytes) -> _Chunks:
    found: dict[bytes, bytes] = {}
    packed, exif, xmp = [], b"", b""
    at = len(_START)
    while b"IEND" not in found:
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
    at = data.find(b"acTL", 0, 4096)
    if at < 0 or at + 8 > len(data):
        return 1
    return max(1, int.from_bytes(data[at + 4 : at + 8], "big"))
