"""Image files to pixels: which formats are read, how each is recognised, what to do with others."""

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import BmpImagePlugin, GifImagePlugin

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.channels import Decoded, Pixels, Plugin, decode_opened, in_form
from diptych.images.codecs.dicom import decode_dicom, dicom_frame, dicom_pages
from diptych.images.codecs.formats import (
    decode_avif,
    decode_jpeg2000,
    decode_netpbm,
    decode_png,
    decode_webp,
    gif_pages,
    png_pages,
    webp_pages,
)
from diptych.images.codecs.heif import decode_heif
from diptych.images.codecs.jpeg import decode_any_jpeg, decode_plain_jpeg, plain_jpeg_header
from diptych.images.codecs.reduction import mean_of_squares, reduction
from diptych.images.codecs.single_pages import gif_frame, png_frame, tiff_page, webp_frame
from diptych.images.codecs.tiff import decode_tiff, tiff_pages


def _one(data: bytes) -> int:
    return 1


def _by(plugin: Plugin) -> Callable[[bytes, ImagesConfig], Decoded]:
    return lambda data, config: decode_opened(plugin, data, config)


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        extensions: of files that are looked into.
        starts: (place, bytes), one of which every such file has.
        decode: reads the first picture.
        pages: counts the pictures without decoding one.
        page: a file of one of the pictures, counted from 0. Raises where there is no such.
    """

    extensions: tuple[str, ...]
    starts: tuple[tuple[int, bytes], ...]
    decode: Callable[[bytes, ImagesConfig], Decoded]
    pages: Callable[[bytes], int] = _one
    page: Callable[[bytes, int, ImagesConfig], bytes] | None = None


_TIFF_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_AVIF_BRANDS: Final = (b"ftypavif", b"ftypavis")
_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_JPEG2000_STARTS: Final = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")

FORMATS: Final[Mapping[str, Format]] = MappingProxyType(
    {
        # First, as its 128 free bytes may be the beginning of a TIFF.
        "DICOM": Format(
            (".dcm", ".dicom", ".ima"), ((128, b"DICM"),), decode_dicom, dicom_pages, dicom_frame
        ),
        "JPEG": Format(
            (".jpg", ".jpeg", ".jpe", ".jfif"), ((0, b"\xff\xd8\xff"),), decode_any_jpeg
        ),
        "PNG": Format(
            (".png", ".apng"), ((0, b"\x89PNG\r\n\x1a\n"),), decode_png, png_pages, png_frame
        ),
        "WebP": Format((".webp",), ((8, b"WEBP"),), decode_webp, webp_pages, webp_frame),
        "BMP": Format((".bmp",), ((0, b"BM"),), _by(BmpImagePlugin.BmpImageFile)),
        "TIFF": Format(
            (".tif", ".tiff"),
            tuple((0, start) for start in _TIFF_STARTS),
            decode_tiff,
            tiff_pages,
            tiff_page,
        ),
        "GIF": Format(
            (".gif",), ((0, b"GIF8"),), _by(GifImagePlugin.GifImageFile), gif_pages, gif_frame
        ),
        "PBM, PGM, PPM": Format(
            (".ppm", ".pgm", ".pbm", ".pnm"),
            tuple((0, b"P%d" % kind) for kind in range(1, 7)),
            decode_netpbm,
        ),
        "AVIF": Format((".avif",), tuple((4, brand) for brand in _AVIF_BRANDS), decode_avif),
        "JPEG 2000": Format(
            (".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
            tuple((0, start) for start in _JPEG2000_STARTS),
            decode_jpeg2000,
        ),
        "HEIC": Format(
            (".heic", ".heif", ".hif"),
            tuple((4, b"ftyp" + brand) for brand in _HEIF_BRANDS),
            decode_heif,
        ),
    }
)
"""What is read, in the order in which it is asked for."""

EXTENSIONS: Final = frozenset(one for read in FORMATS.values() for one in read.extensions)
"""Names that count as images in a folder. What is inside decides how they are decoded."""

MANY_PAGED: Final = frozenset(
    one for read in FORMATS.values() if read.page is not None for one in read.extensions
)
"""Names of files that may hold several pictures."""

VIDEOS: Final = frozenset((".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg"))


def extensions_of(config: ImagesConfig) -> frozenset[str]:
    """Names of files that count as images, with those of videos where frames of them are wanted."""
    return EXTENSIONS if config.video_seconds is None else EXTENSIONS | VIDEOS


_PHOTOGRAPH: Final = "convert it to PNG or TIFF, for example with ImageMagick"
_CAMERA: Final = "develop it to a 16-bit TIFF, with darktable-cli or the Python package rawpy"
_DRAWING: Final = "it is a drawing: render it to PNG, with Inkscape or rsvg-convert"
_DOCUMENT: Final = "render its pages to PNG, with pdftoppm or Ghostscript"
_MEDICAL: Final = "write its slices as DICOM or 16-bit PNG, with the Python package SimpleITK"
_SLIDE: Final = "cut it into tiles of PNG or JPEG, with the Python package openslide-python"
_ARRAY: Final = "write its pictures as 16-bit TIFF or an .npz, with the Python package {}"
_FLOATS: Final = "stretch it to a 16-bit PNG or TIFF, for example with ImageMagick"

_PHOTOGRAPHS: Final = (
    *(".tga", ".pcx", ".psd", ".psb", ".xcf", ".ico", ".cur", ".icns", ".dds", ".dib", ".bpg"),
    *(
        ".avifs",
        ".sgi",
        ".ras",
        ".xbm",
        ".xpm",
        ".qoi",
        ".jxl",
        ".jxr",
        ".wdp",
        ".jls",
        ".jng",
        ".mng",
    ),
)
_CAMERAS: Final = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".sr2", ".dng", ".orf", ".rw2", ".raf"),
    *(".pef", ".srw", ".3fr", ".iiq", ".x3f", ".raw"),
)

HOW_TO_READ: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(_PHOTOGRAPHS, _PHOTOGRAPH),
        **dict.fromkeys(_CAMERAS, _CAMERA),
        **dict.fromkeys((".svg", ".svgz", ".emf", ".wmf"), _DRAWING),
        **dict.fromkeys((".pdf", ".eps", ".ps", ".djvu", ".ai"), _DOCUMENT),
        **dict.fromkeys((".nii", ".mgz", ".mha", ".mhd", ".nrrd"), _MEDICAL),
        **dict.fromkeys((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif"), _SLIDE),
        **dict.fromkeys((".czi", ".lif", ".nd2", ".oib", ".oif", ".lsm"), _ARRAY.format("bioio")),
        **dict.fromkeys((".fit", ".fits", ".fts"), _ARRAY.format("astropy")),
        **dict.fromkeys((".h5", ".hdf5", ".hdf", ".mat"), _ARRAY.format("h5py")),
        **dict.fromkeys((".exr", ".hdr", ".pfm"), _FLOATS),
        **dict.fromkeys(
            (".img", ".vrt", ".ecw", ".sid"), "convert it to TIFF, with gdal_translate"
        ),
        **dict.fromkeys(VIDEOS, "images.video_seconds takes a frame every so many seconds"),
    }
)
"""Other extensions of images, in lower case, and what to do with such files."""


def format_of(data: bytes) -> Format | None:
    """The format that a file begins as; None for one that is not read."""
    for one in FORMATS.values():
        if any(data.startswith(start, place) for place, start in one.starts):
            return one
    return None


def pages(data: bytes) -> int:
    """Pictures in a file, of which the first is read; 1 where that is not known.

    Only headers are looked at. Smaller copies of a picture in its own file are not counted.
    """
    found = format_of(data)
    try:
        return 1 if found is None else max(1, found.pages(data))
    except Exception:  # a damaged file is reported when it is decoded
        return 1


def page_of(data: bytes, number: int, config: ImagesConfig) -> bytes:
    """A file of one picture out of a file that holds several.

    Args:
        data: the bytes of the file.
        number: of the picture, counted from 0.
        config: gives the largest number of pixels.

    Raises:
        UnreadableImage: there is no such picture, or it cannot be taken out.
    """
    found = format_of(data)
    if found is None or found.page is None:
        raise UnreadableImage("no longer a file that holds several pictures")
    try:
        return found.page(data, number, config)
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise UnreadableImage(f"damaged: {_first_line(error)}") from error


def decode_file(path: str | Path, config: ImagesConfig) -> Pixels:
    """Reads an image file.

    Args:
        path: of the file.
        config: gives the colour mode, the depth and the largest number of pixels.

    Returns:
        (height, width, channels): 3 channels for "rgb", 1 for "gray", the file's for "raw"; uint8
        or uint16.

    Raises:
        UnreadableImage: the file is missing, is no regular file, is damaged or too large. The
            message gives the reason in a few words.
    """
    return decode_bytes(read_bytes(path), config)


def read_bytes(path: str | Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        UnreadableImage: the file is missing or is no regular one.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
            raise UnreadableImage("not a regular file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        missing_target = os.path.islink(path) and not os.path.exists(path)
        reason = "broken symbolic link" if missing_target else error.strerror or str(error)
        raise UnreadableImage(reason) from error


def decode_bytes(
    data: bytes,
    config: ImagesConfig,
    room: NDArray[np.uint8] | None = None,
) -> Pixels:
    """Decodes an image held in memory; see ``decode_file``.

    Args:
        data: the bytes of the file.
        config: gives the colour mode, the depth, the largest number of pixels, and the side that a
            large image may be reduced to.
        room: where to lay the pixels if they are decoded in place; see ``decode_jpeg``.
    """
    if not data:
        raise UnreadableImage("empty file")
    try:
        pixels = in_form(_decode(data, config, room), config)
        # The decoder of JPEG has done this, or three halvings of it.
        return mean_of_squares(pixels, reduction(pixels.shape[:2], config.decoded_side))
    except UnreadableImage:
        raise
    # The index looks for this cause: a lack of memory says nothing of the file, and is not kept.
    except MemoryError as error:
        raise UnreadableImage("does not fit in memory") from error
    except Exception as error:  # decoders raise whatever they like on damaged data
        raise UnreadableImage(f"damaged: {_first_line(error)}") from error


def _decode(data: bytes, config: ImagesConfig, room: NDArray[np.uint8] | None) -> Decoded:
    plain = plain_jpeg_header(data)  # the common case, without a look at every segment
    if plain is not None:
        return decode_plain_jpeg(data, plain, config, room)
    found = format_of(data)
    if found is None:
        raise UnreadableImage("not an image of a known format")
    return found.decode(data, config)


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
