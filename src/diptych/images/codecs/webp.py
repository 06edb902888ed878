"""WebP: stills by libwebp itself, the first picture of an animation by Pillow."""

import struct
from collections.abc import Iterator

from PIL import WebPImagePlugin

from diptych.configs import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.opened import decode_opened
from diptych.images.codecs.orientation import orientation
from diptych.images.codecs.size import check_size
from diptych.images.form import Decoded


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
