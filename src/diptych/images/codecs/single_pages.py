"""One picture out of a file that holds several, as a file of its own that loses nothing."""

import io
import itertools
import struct
from typing import TYPE_CHECKING, Final

from PIL import GifImagePlugin, PngImagePlugin, WebPImagePlugin

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Plugin, check_size
from diptych.images.codecs.tiff import page_places

if TYPE_CHECKING:
    from tifffile import TiffPage

_OFFSETS: Final = (273, 324)  # tags with the places of strips and of tiles
_POINTERS: Final = (330, 34665, 34853)  # to what is not copied: smaller copies, EXIF, GPS


def gif_frame(data: bytes, number: int, config: ImagesConfig) -> bytes:
    """A frame of a GIF as a player shows it, as PNG."""
    return _frame(GifImagePlugin.GifImageFile, data, number, config)


def webp_frame(data: bytes, number: int, config: ImagesConfig) -> bytes:
    """A frame of an animated WebP as a player shows it, as PNG."""
    return _frame(WebPImagePlugin.WebPImageFile, data, number, config)


def png_frame(data: bytes, number: int, config: ImagesConfig) -> bytes:
    """A frame of an animated PNG as a player shows it, as PNG."""
    return _frame(PngImagePlugin.PngImageFile, data, number, config)


def _frame(plugin: Plugin, data: bytes, number: int, config: ImagesConfig) -> bytes:
    with plugin(io.BytesIO(data)) as image:
        check_size(image.height, image.width, config)
        # A PNG may show another picture where animation is unknown, which is none of the frames.
        image.seek(number + bool(getattr(image, "default_image", False)))
        shown = image.convert("RGBA" if image.has_transparency_data else "RGB")
        written = io.BytesIO()
        shown.save(written, "PNG", compress_level=1)
        return written.getvalue()


def tiff_page(data: bytes, number: int, config: ImagesConfig) -> bytes:
    """A page of a TIFF with its own tags and packed strips, as a TIFF; smaller copies left out."""
    import tifffile

    del config  # the file that is made is checked when it is decoded
    place = next(itertools.islice(page_places(data), number, None), None)
    if place is None:
        raise UnreadableImage(f"it has no page {number + 1} any more")
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        # Not through all pages before it: a stack may have thousands.
        file.filehandle.seek(place)
        return _rewritten(tifffile.TiffPage(file, index=number), data)


def _rewritten(page: "TiffPage", data: bytes) -> bytes:
    """A TIFF in the byte order and form of the file: header, tags, long values, strips."""
    form = page.parent.tiff
    order, big = form.byteorder, form.is_bigtiff
    word, entry, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    head = struct.pack(
        order + "HHHQ" if big else order + "HI", *((43, 8, 0, 16) if big else (42, 8))
    )
    begin = (b"II" if order == "<" else b"MM") + head
    tags = [tag for tag in page.tags if tag.code not in _POINTERS]
    values_at = len(begin) + (8 if big else 2) + entry * len(tags) + inline
    raw = [data[tag.valueoffset : tag.valueoffset + tag.valuebytecount] for tag in tags]
    long = sum(len(one) + len(one) % 2 for one in raw if len(one) > inline)
    # Places are always written as words: strips lie elsewhere now.
    places_at = values_at + long
    strips, at = list[int](), places_at + len(page.dataoffsets) * struct.calcsize(word)
    for count in page.databytecounts:
        strips.append(at)
        at += count
    packed = struct.pack(f"{order}{len(strips)}{word}", *strips)
    entries, values = b"", b""
    for tag, one in zip(tags, raw, strict=True):
        kind, count = int(tag.dtype), tag.count
        if tag.code in _OFFSETS:
            kind, count = (16 if big else 4), len(strips)
            short, place = packed, places_at
        else:
            short, place = one, values_at + len(values)
            values += one + bytes(len(one) % 2) if len(one) > inline else b""
        field = (
            short.ljust(inline, b"\0") if len(short) <= inline else struct.pack(order + word, place)
        )
        entries += struct.pack(order + "HH" + word, tag.code, kind, count) + field
    number = struct.pack(order + ("Q" if big else "H"), len(tags))
    picture = (data[a : a + n] for a, n in zip(page.dataoffsets, page.databytecounts, strict=True))
    return b"".join(
        (begin, number, entries, bytes(inline), values.ljust(long, b"\0"), packed, *picture)
    )
