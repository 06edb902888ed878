"""The segments of a JPEG file, found as libjpeg finds them, and the file without what is stray."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from diptych.errors import UnreadableImage

_NEXT: Final = re.compile(rb"\xff+([^\x00\xff])")  # what lies before a marker is skipped
_END_OF_SCAN: Final = re.compile(rb"\xff+[^\x00\xff\xd0-\xd7]")
_ALONE: Final = frozenset((0x01, *range(0xD0, 0xD8)))  # markers without content
_START_OF_SCAN, _END, _JFIF, _ADOBE, _EXIF = 0xDA, 0xD9, 0xE0, 0xEE, 0xE1
_TABLES: Final = frozenset((0xC4, 0xCC, 0xDB, 0xDD))
_FRAMES: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE: Final = frozenset((0xC2, 0xC6, 0xCA, 0xCE))
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
