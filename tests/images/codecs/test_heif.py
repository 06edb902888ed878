"""HEIC files, made by pillow-heif: their pixels in every mode, and damaged ones."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import decode_bytes

pillow_heif = pytest.importorskip("pillow_heif", reason="pillow-heif reads HEIC")

GRAY = np.linspace(0, 255, 48 * 66).reshape(48, 66).astype(np.uint8)
RGB = np.stack([GRAY, GRAY[::-1], np.full_like(GRAY, 90)], axis=-1)
LOSSLESS_TO = 3  # of 255: colours go through YCbCr


def heic(pixels: NDArray[np.uint8 | np.uint16], mode: str) -> bytes:
    size, buffer = (pixels.shape[1], pixels.shape[0]), io.BytesIO()
    made = pillow_heif.from_bytes(mode=mode, size=size, data=pixels.tobytes())
    made.save(buffer, quality=-1, chroma=444)
    return buffer.getvalue()


def difference(found: NDArray[np.generic], wanted: NDArray[np.generic]) -> int:
    assert found.shape == wanted.shape
    return int(np.abs(found.astype(int) - wanted.astype(int)).max())


def test_pixels_are_those_that_were_saved() -> None:
    assert difference(decode_bytes(heic(RGB, "RGB"), ImagesConfig()), RGB) <= LOSSLESS_TO
    gray = ImagesConfig(color="gray")
    assert difference(decode_bytes(heic(GRAY, "L"), gray), GRAY[..., None]) <= 1


def test_ten_bits_keep_black_and_white() -> None:
    ramp = np.linspace(0, 65535, GRAY.size).reshape(GRAY.shape).astype(np.uint16)
    deep = np.stack([ramp] * 3, axis=-1)
    config = ImagesConfig(bits=16)
    found = decode_bytes(heic(deep, "RGB;16"), config)
    assert found.dtype == np.uint16
    assert difference(found, deep) <= LOSSLESS_TO * 257
    assert len(np.unique(found)) > 256


def test_transparent_pixels_lie_on_white() -> None:
    clear = np.dstack([RGB, np.zeros_like(GRAY)])
    assert decode_bytes(heic(clear, "RGBA"), ImagesConfig()).min() == 255


def test_a_turned_photograph_is_upright_once() -> None:
    """As a telephone writes it: turned by the file's own box, which EXIF repeats."""
    tags, buffer = Image.Exif(), io.BytesIO()
    tags[0x0112] = 6
    made = pillow_heif.from_bytes(mode="RGB", size=(66, 48), data=RGB.tobytes())
    made.save(buffer, quality=-1, chroma=444, exif=tags.tobytes())
    found = decode_bytes(buffer.getvalue(), ImagesConfig())
    assert difference(found, np.rot90(RGB, -1)) <= LOSSLESS_TO


def test_too_large_and_damaged_ones_are_refused() -> None:
    data = heic(RGB, "RGB")
    with pytest.raises(UnreadableImage, match=r"66 x 48 .* images\.max_megapixels"):
        decode_bytes(data, ImagesConfig(max_megapixels=0.001))
    for cut in (20, 200, len(data) - 50):
        with pytest.raises(UnreadableImage):
            decode_bytes(data[:cut], ImagesConfig())


def test_an_avif_that_names_the_general_brand_first_is_one() -> None:
    avif = encoded(RGB, "AVIF", quality=100)
    renamed = avif[:8] + b"mif1" + avif[12:]
    found = decode_bytes(renamed, ImagesConfig())
    assert np.array_equal(found, decode_bytes(avif, ImagesConfig()))
