"""A reduced JPEG has the right size and is near the average of the full one."""

import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import open_folder
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_bytes, decode_file
from diptych.images.pixels import DecodedPixels
from diptych.images.sources.known_sets import PHOTOGRAPHS, _file

CONFIG = ImagesConfig()
EXIF_ORIENTATION = 0x0112


def reduced_to(side: int) -> ImagesConfig:
    return replace(CONFIG, decoded_side=side)


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    waves = [np.sin(rows / 40), np.cos(columns / 50), np.sin((rows + columns) / 60)]
    return np.rint(127.5 + 100 * np.stack(waves, axis=-1)).astype(np.uint8)


def as_jpeg(pixels: Pixels, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels.squeeze()).save(buffer, "JPEG", quality=90, **options)
    return buffer.getvalue()


def box_averaged(pixels: Pixels, by: int) -> NDArray[np.float64]:
    """Means over squares; the last row and column are repeated to fill the last ones."""
    height, width = -(-pixels.shape[0] // by) * by, -(-pixels.shape[1] // by) * by
    room = ((0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0))
    full = np.pad(pixels.astype(float), room, mode="edge")
    return full.reshape(height // by, by, width // by, by, -1).mean(axis=(1, 3))


def assert_reduced_well(data: bytes, within: float) -> None:
    full = decode_bytes(data, CONFIG)
    shorter = min(full.shape[:2])
    for by in (2, 4, 8):
        reduced = decode_bytes(data, reduced_to(-(-shorter // by)))
        assert reduced.shape == (-(-full.shape[0] // by), -(-full.shape[1] // by), 3)
        assert np.abs(reduced - box_averaged(full, by)).mean() < within
    assert np.array_equal(decode_bytes(data, reduced_to(-(-shorter // 2) + 1)), full)


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_reduced_photographs(name: str) -> None:
    photograph = decode_file(_file(PHOTOGRAPHS[name]), CONFIG)[:601, :602]
    assert_reduced_well(as_jpeg(photograph), 1.5)  # as `decode_jpeg` says


@pytest.mark.parametrize("size", [(240, 320), (97, 131), (16, 16), (9, 300)])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_reduced_smooth_images(size: tuple[int, int], options: dict[str, object]) -> None:
    assert_reduced_well(as_jpeg(smooth(*size), **options), 1.0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_reduced_as_it_is_seen(orientation: int) -> None:
    tags = Image.Exif()
    tags[EXIF_ORIENTATION] = orientation
    data = as_jpeg(smooth(121, 202), exif=tags)
    full, half = decode_bytes(data, CONFIG), decode_bytes(data, reduced_to(60))
    assert full.shape[:2] == ((202, 121) if orientation >= 5 else (121, 202))
    assert half.shape[:2] == (-(-full.shape[0] // 2), -(-full.shape[1] // 2))
    # Away from the ends, where turning moves the row that is left over.
    difference = np.abs(half[2:50, 2:50] - box_averaged(full, 2)[2:50, 2:50])
    assert difference.mean() < 3.0


@pytest.mark.parametrize("by", [16, 32])
def test_what_the_decoder_of_jpeg_leaves_too_large_is_reduced_further(by: int) -> None:
    data = as_jpeg(smooth(481, 650))
    full, found = decode_bytes(data, CONFIG), decode_bytes(data, reduced_to(-(-481 // by)))
    assert found.shape == (-(-481 // by), -(-650 // by), 3)
    assert np.abs(found - box_averaged(full, by)).mean() < 3.0


@pytest.fixture
def mixed_folder(tmp_path: Path) -> Path:
    """JPEG and PNG, gray and colour, of several sizes."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    for number, size in enumerate([(64, 48), (33, 70), (80, 80)]):
        (folder / f"{number}.jpg").write_bytes(as_jpeg(smooth(*size)))
        (folder / f"{number} gray.jpg").write_bytes(as_jpeg(smooth(*size)[..., 0]))
        Image.fromarray(smooth(*size)).save(folder / f"{number}.png")
    return folder


Options = dict[str, object]


@pytest.mark.parametrize("options", [{}, {"color": "gray"}, {"bits": 16}])
def test_gathering_lays_each_image_at_its_place(
    options: Options, mixed_folder: Path, executor: ThreadPoolExecutor
) -> None:
    config = ImagesConfig(cache="none", **options)  # type: ignore[arg-type]
    found = open_folder(mixed_folder, config, executor)
    assert isinstance(found.pixels, DecodedPixels)
    rows = np.array([3, 0, 8, 3, 5, 1])
    smaller = replace(config, decoded_side=16)
    full, some = found.pixels.gather(rows), found.decoded_for(smaller).pixels.gather(rows)
    for place, row in enumerate(rows.tolist()):
        data = (mixed_folder / found.names[row]).read_bytes()
        assert np.array_equal(full.image(place), decode_bytes(data, config))
        assert np.array_equal(some.image(place), decode_bytes(data, smaller))
    assert full.heights.tolist() == found.heights[rows].tolist()
    assert full.widths.tolist() == found.widths[rows].tolist()
    assert some.heights[1] < full.heights[1]
    assert len(some.pixels) == sum(some.image(place).size for place in range(len(rows)))
    selected = found.select(rows).decoded_for(smaller).pixels.gather(np.array([2, 1]))
    assert np.array_equal(selected.image(1), some.image(1))


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(path.read_bytes()[:300]), "damaged"),
        (lambda path: path.write_bytes(as_jpeg(smooth(90, 90))), "its size was 48 x 64"),
        (lambda path: path.write_bytes(as_jpeg(smooth(9, 9))), "its size was 48 x 64"),
    ],
)
def test_a_file_that_changed_is_named(
    change: Change, reason: str, mixed_folder: Path, executor: ThreadPoolExecutor
) -> None:
    found = open_folder(mixed_folder, ImagesConfig(cache="none"), executor)
    change(mixed_folder / "0.jpg")
    with pytest.raises(ImagesError, match=rf"0\.jpg was readable at the start.*{reason}"):
        found.pixels.gather(np.arange(len(found)))
