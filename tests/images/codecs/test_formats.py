"""Which formats are read, their one limit of size, and the pictures that are left in a file."""

import io
import struct
import sys
import warnings
import zlib
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import EXTENSIONS, FORMATS, HOW_TO_READ, decode_bytes, pages

SMALL = np.zeros((20, 30, 3), dtype=np.uint8)
KINDS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF", "JPEG2000")


def saved(kind: str, pixels: Any = SMALL, count: int = 1, **options: Any) -> bytes:
    buffer = io.BytesIO()
    if count > 1:
        others = [Image.fromarray(pixels + np.uint8(9 * i)) for i in range(1, count)]
        options |= {"save_all": True, "append_images": others}
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def test_every_extension_is_read_or_explained() -> None:
    assert not EXTENSIONS & set(HOW_TO_READ)
    for one in (*EXTENSIONS, *HOW_TO_READ):
        assert one.startswith(".")
        assert one == one.lower()
    assert {".svg", ".psd", ".exr", ".nef", ".jxl"} <= set(HOW_TO_READ)
    assert {".ppm", ".avif", ".jp2", ".apng"} <= EXTENSIONS
    assert len(FORMATS) == len(KINDS) + 2  # with those of extras: HEIC and DICOM


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_of_size_is_asked_of_the_header(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = saved(kind)
    assert decode_bytes(data, ImagesConfig(max_megapixels=6e-4)).shape == SMALL.shape
    with pytest.raises(UnreadableImage, match=r"30 x 20 is .* images\.max_megapixels = 0\.00059"):
        decode_bytes(data, ImagesConfig(max_megapixels=5.9e-4))
    # Pillow's own limit, of which the rest of the process may think what it likes, plays no part.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_bytes(data, ImagesConfig()).shape == SMALL.shape
    assert Image.MAX_IMAGE_PIXELS == 100


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_pictures_of_more_megapixels_than_pillow_opens() -> None:
    width, height = 20_000, 10_000
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    lines = zlib.compress(bytes(height * (1 + width // 8)))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    data = b"\x89PNG\r\n\x1a\n" + body
    gray = ImagesConfig(color="gray", max_megapixels=250)
    assert decode_bytes(data, gray).shape == (height, width, 1)
    with pytest.raises(
        UnreadableImage, match=r"20000 x 10000 is 200 megapixels, .*images\.max_megapixels = 80"
    ):
        decode_bytes(data, ImagesConfig())


def test_tiles_are_bounded_like_the_picture() -> None:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, SMALL, photometric="rgb", tile=(512, 512), compression="zlib")
    limit = ImagesConfig(max_megapixels=0.3)
    assert np.array_equal(decode_bytes(buffer.getvalue(), limit), SMALL)
    with pytest.raises(UnreadableImage, match=r"512 x 512 is .* images\.max_megapixels = 0\.1"):
        decode_bytes(buffer.getvalue(), ImagesConfig(max_megapixels=0.1))


def with_decoy(kind: str) -> bytes:
    """A picture of 30 x 20 whose file has, elsewhere, what looks like the header of 1 x 1."""
    if kind == "WEBP":
        body = saved(kind, lossless=True)[8:] + b"VP8X" + struct.pack("<I", 10) + bytes(10)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    data = saved(kind)
    size = b"\xff\x4f\xff\x51" + struct.pack(">HHIIII", 47, 0, 1, 1, 0, 0) + bytes(40)
    first, after = data[:32], data[32:]  # the signature and the box `ftyp`
    return first + struct.pack(">I4s", 8 + len(size), b"free") + size + after


@pytest.mark.parametrize("kind", ["JPEG2000", "WEBP"])
def test_the_size_is_that_of_the_header_which_is_decoded(kind: str) -> None:
    data = with_decoy(kind)
    assert decode_bytes(data, ImagesConfig(max_megapixels=6e-4)).shape == SMALL.shape
    with pytest.raises(UnreadableImage, match=r"30 x 20 is .* images\.max_megapixels"):
        decode_bytes(data, ImagesConfig(max_megapixels=5.9e-4))


def test_a_picture_where_no_decoder_should_look_is_refused() -> None:
    """A decoder may take what lies in its place for a picture of any size."""
    webp = saved("WEBP", lossless=True)
    with pytest.raises(UnreadableImage, match="a WebP without a picture"):
        decode_bytes(webp[:12] + b"JUNK" + struct.pack("<I", 2) + b"--" + webp[12:], ImagesConfig())
    jp2 = saved("JPEG2000")
    for damaged in (
        jp2.replace(b"jp2c\xff\x4f", b"jp2c\0\0\xff\x4f"),  # no codestream where it should be
        jp2[:32] + struct.pack(">I", 7) + jp2[36:],  # a box that is shorter than its head
        jp2[:32],
    ):
        with pytest.raises(UnreadableImage, match="a JPEG 2000 without a picture"):
            decode_bytes(damaged, ImagesConfig())


def test_jpeg_2000_without_boxes_and_with_long_ones() -> None:
    jp2 = saved("JPEG2000")
    at = jp2.index(b"jp2c")
    size = struct.unpack(">I", jp2[at - 4 : at])[0] or len(jp2) - at + 4
    stream = jp2[at + 4 :]
    long = jp2[: at - 4] + struct.pack(">I4sQ", 1, b"jp2c", size + 8) + stream
    for data in (stream, long):
        assert np.array_equal(decode_bytes(data, ImagesConfig()), SMALL)


def test_what_is_wrong_beside_the_picture_is_not_told(capfd: pytest.CaptureFixture[str]) -> None:
    png = saved("PNG")
    for extra in (chunk(b"acTL", bytes(8)), chunk(b"iCCP", b"x\0\0" + zlib.compress(b"none"))):
        assert np.array_equal(decode_bytes(png[:33] + extra + png[33:], ImagesConfig()), SMALL)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12"
    assert decode_bytes(saved("JPEG", exif=exif), ImagesConfig()).shape == SMALL.shape
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("module", "extra", "data"),
    [
        ("pillow_heif", "heic", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("pydicom", "dicom", bytes(128) + b"DICM"),
    ],
)
def test_a_missing_extra_is_named(
    module: str, extra: str, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UnreadableImage, match=rf"pip install 'diptych\[{extra}\]'"):
        decode_bytes(data, ImagesConfig())
    assert pages(data) == 1


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_pages(kind: str, count: int) -> None:
    noise = np.random.default_rng(0).integers(0, 255, SMALL.shape, dtype=np.uint8)
    assert pages(saved(kind, noise, count)) == count


def test_smaller_copies_are_no_pages() -> None:
    for big in (False, True):
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=big) as file:
            file.write(SMALL, photometric="rgb", subifds=0)
            file.write(SMALL[::2, ::2], photometric="rgb", subfiletype=1)
            file.write(SMALL, photometric="rgb")
        assert pages(buffer.getvalue()) == 2


def test_pages_of_what_is_no_image() -> None:
    for data in (b"", b"GIF89a", b"II*\0", b"no image", saved("JPEG")):
        assert pages(data) == 1
