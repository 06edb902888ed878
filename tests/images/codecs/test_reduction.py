"""Images of every format are reduced to the mean over squares, as the settings ask."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.images.codecs.decode import decode_bytes
from diptych.images.codecs.reduction import mean_of_squares, reduced, reduction
from diptych.images.open import open_images

SIZES = [(64, 64), (97, 131), (33, 200), (1, 9), (5, 5)]


def noise(height: int, width: int, channels: int = 3, bits: int = 8) -> NDArray[Any]:
    kind = np.uint8 if bits == 8 else np.uint16
    draws = np.random.default_rng(height + width)
    return draws.integers(0, 2**bits, (height, width, channels), dtype=kind)


def means(pixels: NDArray[Any], by: int) -> NDArray[np.float64]:
    """Square by square."""
    rows, columns = range(0, pixels.shape[0], by), range(0, pixels.shape[1], by)
    return np.array(
        [[pixels[y : y + by, x : x + by].mean(axis=(0, 1)) for x in columns] for y in rows]
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("by", [1, 2, 4, 16])
@pytest.mark.parametrize("bits", [8, 16])
def test_it_is_the_mean_over_squares(size: tuple[int, int], by: int, bits: int) -> None:
    pixels = noise(*size, bits=bits)
    found = mean_of_squares(pixels, by)
    assert found.dtype == pixels.dtype
    assert np.array_equal(found, np.floor(means(pixels, by) + 0.5))
    if bits == 8 and by > 1:  # whose sums are of another precision
        pillow = np.asarray(Image.fromarray(pixels).reduce(by)).astype(int)
        assert np.abs(found - pillow).max() <= 1


def test_no_sum_overflows() -> None:
    white = np.full((1030, 513, 1), 65535, dtype=np.uint16)
    assert (mean_of_squares(white, 256) == 65535).all()
    assert (mean_of_squares(white, 512) == 65535).all()


@pytest.mark.parametrize("shorter", range(1, 400))
def test_what_is_kept_is_at_least_what_is_asked_for_and_less_than_twice(shorter: int) -> None:
    for side in (1, 7, 80, 165):
        by = reduction((shorter, 400), side)
        kept = min(reduced((shorter, 400), by))
        assert kept >= min(side, shorter)
        assert kept < 2 * side or by == 1 or kept == 1
        # In two steps as in one, as a JPEG is.
        first = min(8, by)
        assert first * reduction(reduced((shorter, 400), first), side) == by


def png(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tiff(pixels: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, pixels, photometric="rgb")
    return file.getvalue()


@pytest.mark.parametrize("write", [png, tiff])
def test_files_are_reduced_after_their_colours_are_made(write: Any) -> None:
    pixels = noise(90, 61)
    found = decode_bytes(write(pixels), ImagesConfig(decoded_side=15))
    assert np.array_equal(found, np.floor(means(pixels, 4) + 0.5))
    gray = ImagesConfig(decoded_side=15, color="gray")
    full = decode_bytes(write(pixels), replace(gray, decoded_side=None))
    assert np.array_equal(decode_bytes(write(pixels), gray), np.floor(means(full, 4) + 0.5))


def test_transparent_pixels_are_white_before_they_are_averaged() -> None:
    pixels = np.zeros((64, 64, 4), dtype=np.uint8)
    pixels[:, ::2, 3] = 255  # every other column is black, the rest is not there
    found = decode_bytes(png(pixels), ImagesConfig(decoded_side=32))
    assert (found == 128).all()


@pytest.mark.parametrize("cache", ["none", "memory", "file"])
def test_a_folder_of_large_drawings_takes_little_room(
    cache: Any, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    folder = tmp_path / "drawings"
    folder.mkdir()
    drawings = [noise(130 + 40 * number, 200) for number in range(4)]
    for number, pixels in enumerate(drawings):
        (folder / f"{number}.png").write_bytes(png(pixels))
    config = ImagesConfig(path=str(folder), decoded_side=32, cache=cache)
    found = open_images(config, executor).train.pixels.gather(np.array([3, 1, 0]))
    for place, number in enumerate((3, 1, 0)):
        assert np.array_equal(found.image(place), np.floor(means(drawings[number], 4) + 0.5))
    assert found.heights.tolist() == [63, 43, 33]
