"""JPEG bytes to pixels: in place where it can, smaller where no crop needs the full size.

libjpeg warns of much that harms no pixel, such as stray bytes before a marker. The first try fails
at any warning. Then the file is taken apart and put together without what is stray, and is used if
its data reaches the end of the picture.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Decoded, check_size, orientation
from diptych.images.codecs.reduction import reduced, reduction

_NEXT: Final = re.compile(rb"\xff+([^\x00\xff])")  # what lies before a marker is skipped
_END_OF_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_ALONE: Final = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without content
_TABLES: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset((0xC2, 0xC6, 0xCA, 0xCE))


_START_OF_SCAN, _END, _JFIF, _ADOBE, _EXIF = 0xDA, 0xD9, 0xE0, 0xEE, 0xE1
_KNOWN: Final = _TABLES | _FRAMES | {0xDC, 0xFE, _START_OF_SCAN, *range(0xE0, 0xF0)}
_XMP: Final = b"http://ns.adobe.com/xap/1.0/\0"


# Bits that begin otherwise than the zeros libjpeg makes up, and every restart marker.
_FILLER: Final = b"".join(
    bytes((0xFD - 37 * place - number) % 255 for place in range(48)) + bytes((0xFF, 0xD0 + number))
    for number in range(8)
)


@dataclass(frozen=True)
class JpegSegments:
    """A JPEG taken apart.

    Attributes:
        height: in pixels.
        width: in pixels.
        channels: of the picture: 1, 3 or 4 of those in use.
        bits: of each number.
        segments: what the picture needs, in order, each with its marker; scans with their data.
        ended: whether the file has its end marker, or needs none to be whole.
        exif: what the file says of itself.
        xmp: the same, in another form.
    """

    height: int
    width: int
    channels: int
    bits: int
    segments: tuple[tuple[bytes, bool], ...]
    ended: bool
    exif: bytes
    xmp: bytes

    def joined(self, *, filled: bool = False) -> bytes:
        """A file of the needed segments only.

        Args:
            filled: with bits to spare at the end of each scan. They change the pixels exactly if
                the scan ends before the picture does.
        """
        filler = _FILLER if filled else b""
        parts = [part + (filler if is_scan else b"") for part, is_scan in self.segments]
        return b"\xff\xd8" + b"".join(parts) + b"\xff\xd9"


def jpeg_segments(data: bytes) -> JpegSegments:
    """Takes a JPEG apart.

    Raises:
        UnreadableImage: it has no picture, or ends before its first scan.
    """
    frame, kind, ended, scans = b"", 0, False, 0
    needed: list[tuple[bytes, bool]] = []
    exif, xmp = b"", b""
    for marker, content, scan in _walk(data):
        whole = bytes((0xFF, marker)) + (len(content) + 2).to_bytes(2, "big") + content
        if marker == _END:
            ended = True
        elif marker == _START_OF_SCAN:
            needed.append((whole + scan, True))
            scans += 1
        elif marker in _TABLES or marker in (_JFIF, _ADOBE):
            needed.append((whole, False))
        elif marker in _FRAMES:
            frame, kind = frame or content, marker
            needed.append((whole, False))
        elif marker == _EXIF and content.startswith(b"Exif\0\0"):
            exif += content
        elif marker == _EXIF and content.startswith(_XMP):
            xmp += content
    if len(frame) < 6 or scans == 0:
        raise UnreadableImage("damaged: a JPEG that ends before its picture")
    return JpegSegments(
        height=int.from_bytes(frame[1:3], "big"),
        width=int.from_bytes(frame[3:5], "big"),
        channels=frame[5],
        bits=frame[0],
        segments=tuple(needed),
        ended=ended or (scans == 1 and kind not in _PROGRESSIVE),
        exif=exif,
        xmp=xmp,
    )


def _walk(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Marker, content and, of a scan, the data behind it, up to the end or to what is no marker."""
    at = 2
    while found := _NEXT.search(data, at):
        marker, at = found[1][0], found.end()
        if marker in _ALONE:
            continue
        if marker not in _KNOWN:
            if marker == _END:
                yield _END, b"", b""
            return
        size = int.from_bytes(data[at : at + 2], "big")
        content, at = data[at + 2 : at + size], at + max(2, size)
        if at > len(data):
            return
        end = len(data)
        if marker == _START_OF_SCAN:
            behind = _END_OF_SCAN.search(data, at)
            end = behind.start() if behind else len(data)
        yield marker, content, data[at:end] if marker == _START_OF_SCAN else b""
        at = end if marker == _START_OF_SCAN else at


_MOST_REDUCED: Final = 8  # by the decoder, which can halve height and width three times

_START: Final = b"\xff\xd8\xff"
_TURNING: Final = (b"Exif\0\0", b"tiff:Orientation")  # where a file can ask to be turned
_CHANNELS: Final = {"GRAY": 1, "RGB": 3, "CMYK": 4}
_PREMATURE: Final = "premature end"  # of libjpeg's warnings, the one that pixels are missing


def plain_jpeg_header(data: bytes) -> tuple[int, int, int] | None:
    """Height, width and channels of a JPEG that is gray or RGB and stands upright.

    None for anything else, a damaged file included: ``decode_any_jpeg`` reads those.
    """
    # A search through all bytes costs little beside decoding; a false find only takes the slow way.
    if not data.startswith(_START) or any(mark in data for mark in _TURNING):
        return None
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    channels = {"YCbCr": 3, "RGB": 3, "Gray": 1}.get(space)
    return None if channels is None else (int(height), int(width), channels)


def decode_plain_jpeg(
    data: bytes,
    header: tuple[int, int, int],
    config: ImagesConfig,
    room: NDArray[np.uint8] | None = None,
) -> Decoded:
    """Decodes a JPEG of which ``plain_jpeg_header`` gave the header; see ``decode_jpeg``."""
    height, width, channels = header
    check_size(height, width, config)
    space = _space(config, channels)
    pixels = decode_jpeg(data, (height, width), space, config.decoded_side, room)
    return Decoded(pixels, "gray" if space == "GRAY" else "rgb")


def decode_any_jpeg(data: bytes, config: ImagesConfig) -> Decoded:
    """Decodes a JPEG of any colours and orientation, with whatever libjpeg only warns of.

    Raises:
        UnreadableImage: it ends early, or has numbers of more than 8 bits.
    """
    parts = jpeg_segments(data)
    check_size(parts.height, parts.width, config)
    if parts.bits != 8 or parts.channels not in (1, 3, 4):
        raise UnreadableImage(
            f"a JPEG of {parts.bits} bits and {parts.channels} channels: save it as PNG or TIFF"
        )
    space = "CMYK" if parts.channels == 4 else _space(config, parts.channels)
    pixels = decode_jpeg(data, (parts.height, parts.width), space, config.decoded_side)
    turned = orientation(parts.exif, parts.xmp)
    if space == "CMYK":  # as Adobe writes them: 0 is all ink
        return Decoded(pixels, "cmyk", inverted=True, orientation=turned)
    return Decoded(pixels, "gray" if space == "GRAY" else "rgb", orientation=turned)


def _space(config: ImagesConfig, channels: int) -> str:
    wanted = channels if config.color == "raw" else config.channels
    return "RGB" if wanted == 3 else "GRAY"


def decode_jpeg(
    data: bytes,
    size: tuple[int, int],
    space: str,
    side: int | None = None,
    room: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """Decodes a JPEG as it is stored, not turned.

    A reduced image is made from the low frequencies of each block of 8 x 8 pixels, which costs a
    fraction of the full decode. It differs from the average of the full one over squares of the
    same side by less than 1.5 of 255 in the mean over the pixels of a photograph, and by less than
    1 where the image is smooth.

    Args:
        data: the bytes of the file.
        size: height and width that the header names.
        space: "RGB", "GRAY" or, of a file that is stored so, "CMYK".
        side: pixels that the shorter side must keep: both are divided by 1, 2, 4 or 8, rounded up.
            What is still too large is reduced as the pixels of any other file are.
        room: uint8 (any,): the pixels are written to its beginning if they fit.

    Returns:
        (height, width, 3, 1 or 4), uint8.

    Raises:
        UnreadableImage: the data ends before the picture does.
        ValueError: the file is damaged.
    """
    wanted = reduced(size, min(_MOST_REDUCED, reduction(size, side)))
    needed = wanted[0] * wanted[1] * _CHANNELS[space]
    buffer = room[:needed] if room is not None and room.size >= needed else None
    least = (0, 0) if wanted == size else wanted
    try:
        return _decode(data, space, least, buffer)
    except ValueError as error:
        warning, parts = str(error), jpeg_segments(data)
    # In full, whatever size is wanted: fine detail that is missing may not show in a reduced image.
    in_full = _decode(
        parts.joined(), space, buffer=buffer if wanted == size else None, strict=False
    )
    # libjpeg reports its first warning only; that of missing pixels may have come after it.
    if not parts.ended or _PREMATURE in warning or _is_filled_up(parts, space, in_full):
        raise UnreadableImage("damaged: a JPEG that ends early; part of the picture is missing")
    if wanted == size:
        return in_full
    return _decode(parts.joined(), space, least, buffer, strict=False)


def _is_filled_up(parts: JpegSegments, space: str, in_full: NDArray[np.uint8]) -> bool:
    """Whether some pixels are not in the file: those that change with what follows its data."""
    return not np.array_equal(in_full, _decode(parts.joined(filled=True), space, strict=False))


def _decode(
    data: bytes,
    space: str,
    least: tuple[int, int] = (0, 0),
    buffer: NDArray[np.uint8] | None = None,
    *,
    strict: bool = True,
) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
        data,
        colorspace=space,
        min_height=least[0],
        min_width=least[1],
        buffer=buffer,
        strict=strict,
    )
    return pixels
