"""Pages as images of their own, and what images.exclude leaves out."""

import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.decode import decode_bytes, page_of, pages
from diptych.images.collection import Collection
from diptych.images.listing import Listing
from diptych.images.open import locate_images, open_images

RNG = np.random.default_rng(0)
STACK = RNG.integers(0, 256, (4, 33, 47, 3), dtype=np.uint8)
DEEP = RNG.integers(0, 65536, (3, 20, 31), dtype=np.uint16)


def opened(path: Path, executor: ThreadPoolExecutor, **options: Any) -> Collection:
    return open_images(ImagesConfig(path=str(path), **options), executor)


def tiff(stack: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(
        buffer, bigtiff=options.pop("bigtiff", False), byteorder=options.pop("byteorder", "<")
    ) as file:
        for number, pixels in enumerate(stack):
            file.write(pixels, description=f"page {number}", **options)
            # A smaller copy after each page is no page.
            file.write(np.zeros((5, 6), np.uint8), subfiletype=1, photometric="minisblack")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "zlib", "rowsperstrip": 5},
        {"compression": "jpeg", "tile": (16, 16)},
        {"planarconfig": "separate"},
    ],
)
def test_each_page_of_a_tiff_is_a_file_with_its_pixels(options: dict[str, Any]) -> None:
    planar = "planarconfig" in options
    stack = STACK.transpose(0, 3, 1, 2) if planar else STACK
    data = tiff(stack, photometric="rgb", **options)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        wanted = [page.asarray() for page in file.pages if page.shape != (5, 6)]
    assert pages(data) == len(wanted) == 4
    for number, pixels in enumerate(wanted):
        one = page_of(data, number, ImagesConfig())
        assert pages(one) == 1
        assert len(one) < len(data) / 2
        if planar:
            pixels = pixels.transpose(1, 2, 0)
        assert np.array_equal(decode_bytes(one, ImagesConfig()), pixels)
        with tifffile.TiffFile(io.BytesIO(one)) as again:
            assert again.pages.first.description == f"page {number}"
    with pytest.raises(UnreadableImage, match="no page 5"):
        page_of(data, 4, ImagesConfig())


def test_a_page_is_no_file_of_its_own(tmp_path: Path) -> None:
    """Who asks for the files of images would get a file that stands for its first page."""
    Image.new("RGB", (30, 20)).save(tmp_path / "a.png")
    single = locate_images(ImagesConfig(path=str(tmp_path), pages="all")).train
    assert isinstance(single, Listing)
    assert single.file is not None
    (tmp_path / "b.tif").write_bytes(tiff(STACK, photometric="rgb"))
    found = locate_images(ImagesConfig(path=str(tmp_path), pages="all")).train
    assert isinstance(found, Listing)
    assert list(found.names) == ["a.png", *(f"b.tif#{number}" for number in range(1, 5))]
    assert found.file is None


def test_pages_keep_their_depth_and_meaning() -> None:
    config = ImagesConfig(color="gray", bits=16)
    data = tiff(DEEP, photometric="miniswhite")
    for number, pixels in enumerate(DEEP):
        found = decode_bytes(page_of(data, number, config), config)
        assert np.array_equal(found[..., 0], 65535 - pixels)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_each_frame_of_an_animation(kind: str) -> None:
    shades = [np.full((12, 20, 3), 40 * number, np.uint8) for number in range(1, 5)]
    shades[2][:6] = 255
    others = [Image.fromarray(one) for one in shades[1:]]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(shades[0], kind, save_all=True, append_images=others, **options)
    assert pages(data) == 4
    for number, shade in enumerate(shades):
        one = page_of(data, number, ImagesConfig())
        assert np.array_equal(decode_bytes(one, ImagesConfig()), shade)
    with pytest.raises(UnreadableImage, match="damaged"):
        page_of(data, 4, ImagesConfig())
    with pytest.raises(UnreadableImage, match="max_megapixels"):
        page_of(data, 1, ImagesConfig(max_megapixels=1e-4))


def write_stacks(root: Path) -> Path:
    for name, count in (("cats", 3), ("dogs", 2)):
        (root / name).mkdir(parents=True)
        (root / name / "s.tif").write_bytes(tiff(STACK[:count], photometric="rgb"))
        Image.fromarray(STACK[3]).save(root / name / "single.png")
    return root


@pytest.mark.parametrize("cache", ["memory", "none", "file"])
def test_all_pages_are_images_with_the_label_of_their_file(
    cache: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    root = write_stacks(tmp_path / "root")
    for _ in range(2):  # the second time from what is kept
        found = opened(root, executor, pages="all", cache=cache)
        images = found.train
        assert list(images.names) == [
            *(f"cats/s.tif#{number}" for number in (1, 2, 3)),
            "cats/single.png",
            *(f"dogs/s.tif#{number}" for number in (1, 2)),
            "dogs/single.png",
        ]
        assert images.labels is not None
        assert images.labels.tolist() == [0, 0, 0, 0, 1, 1, 1]
        gathered = images.pixels.gather(np.arange(7))
        for row, page in enumerate((0, 1, 2, 3, 0, 1, 3)):
            assert np.array_equal(gathered.image(row), STACK[page])
        assert images.checksums is not None
        assert len(np.unique(images.checksums, axis=0)) == 7 - 3
    first = opened(root, executor)
    assert len(first.train) == 4
    assert "images.pages = 'all'" in first.description
    assert "further pages" not in found.description


def test_a_damaged_file_of_pages_is_listed_as_one_image(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    root = write_stacks(tmp_path / "root")
    (root / "cats/bad.gif").write_bytes(b"GIF89a" + b"\xff" * 20)
    (root / "cats/empty.tif").write_bytes(b"")
    found = opened(root, executor, pages="all", max_unreadable_share=0.5)
    assert len(found.train) == 7
    assert {one.name for one in found.train.skipped} == {"cats/bad.gif", "cats/empty.tif"}


def test_a_file_that_claims_any_number_of_pictures_is_refused(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    data = encoded(STACK[0], "PNG")
    claim = b"acTL" + struct.pack(">II", 2**31 - 1, 0)
    chunk = struct.pack(">I", 8) + claim + struct.pack(">I", zlib.crc32(claim))
    (tmp_path / "bomb.png").write_bytes(data[:33] + chunk + data[33:])
    with pytest.raises(ImagesError, match=r"bomb\.png says that it holds 2,147,483,647 pictures"):
        opened(tmp_path, executor, pages="all")
    assert len(opened(tmp_path, executor).train) == 1


def test_excluded_folders_and_files_are_left_out_and_counted(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    for name in ("train/a/1.png", "train/a/1_mask.png", "train/b/2.png", "test/a/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(STACK[0]).save(tmp_path / name)
    (tmp_path / "training").mkdir()
    Image.fromarray(STACK[0]).save(tmp_path / "training/1.png")
    with pytest.raises(ImagesError, match="several parts"):
        opened(tmp_path, executor)
    found = opened(tmp_path, executor, exclude=("*_mask.*", "training/"))
    assert list(found.train.names) == ["a/1.png", "b/2.png"]
    assert found.test is not None
    assert [(one.name, one.reason) for one in found.left_out] == [
        ("training", "left out by images.exclude"),
        ("train/a/1_mask.png", "left out by images.exclude"),
    ]


def test_images_of_other_sources_are_excluded_by_name(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    root = write_stacks(tmp_path / "root")
    listed = tmp_path / "list.txt"
    listed.write_text("root/cats/single.png\nroot/dogs/single.png\n")
    found = opened(listed, executor, exclude=("root/cats",))
    assert list(found.train.names) == ["root/dogs/single.png"]
    assert [one.count for one in found.left_out] == [1]
    with pytest.raises(ImagesError, match=r"images\.exclude = \*\.png leaves no image"):
        opened(listed, executor, exclude=("*.png",))
    assert list(opened(root, executor, exclude=("*.png", "dogs")).train.names) == ["cats/s.tif"]
