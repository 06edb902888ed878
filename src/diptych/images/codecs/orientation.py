"""How the rows of a file are to be turned, as its EXIF or XMP data says.

Read here and not by Pillow, which prints warnings about what else is wrong in them.
"""

import re
import struct
from typing import Final

from diptych.images.form import UPRIGHT

TAG: Final = 0x0112
_SHORT, _LONG = 3, 4
_XMP: Final = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")


def orientation(exif: bytes = b"", xmp: bytes = b"") -> int:
    """1 .. 8; of EXIF where it names one, else of XMP, else 1 (upright)."""
    named = _of_exif(exif)
    if named is not None:
        return named
    found = _XMP.search(xmp)
    return int(found[1]) if found else UPRIGHT


def _of_exif(exif: bytes) -> int | None:
    while exif.startswith(b"Exif\0\0"):
        exif = exif[6:]
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return None
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(order + "HH", exif, entry)
            if tag == TAG and kind in (_SHORT, _LONG):
                letter = "H" if kind == _SHORT else "I"
                (value,) = struct.unpack_from(order + letter, exif, entry + 8)
                return value if 1 <= value <= 8 else UPRIGHT
    except struct.error:  # cut off
        return None
    return None
