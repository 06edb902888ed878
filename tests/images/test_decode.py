"""A folder of hostile files: the good ones have right pixels, the bad ones are listed."""

import os
import struct
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from conftest import open_folder
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_bytes, decode_file

CONFIG = ImagesConfig()
EXIF_ORIENTATION = 0x0112


def gradient(height: int = 24, width: int = 40) -> NDArray[np.uint8]:
    rows, columns = np.mgrid[:height, :width]
    red, green = rows * 255 // max(1, height - 1), columns * 255 // max(1, width - 1)
    return np.stack([red, green, np.full_like(red, 90)], axis=-1).astype(np.uint8)


def close(ours: Pixels, wanted: NDArray[np.uint8], within: int) -> None:
    assert ours.shape == wanted.shape
    assert ours.dtype == np.uint8
    assert np.abs(ours.astype(int) - wanted.astype(int)).max() <= within


Maker = Callable[[Path], NDArray[np.uint8]]


def save(kind: str, within_name: str, **options: object) -> tuple[str, Maker]:
    def make(path: Path) -> NDArray[np.uint8]:
        pixels = gradient()
        Image.fromarray(pixels).save(path, kind, **options)
        return pixels

    return within_name, make


def exif(orientation: int) -> Maker:
    """The stored pixels are turned so that the orientation turns them back."""
    undo = {
        1: lambda p: p,
        2: lambda p: p[:, ::-1],
        3: lambda p: p[::-1, ::-1],
        4: lambda p: p[::-1],
        5: lambda p: p.transpose(1, 0, 2),
        6: lambda p: np.rot90(p, 1),
        7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
        8: lambda p: np.rot90(p, -1),
    }

    def make(path: Path) -> NDArray[np.uint8]:
        pixels = gradient()
        tags = Image.Exif()
        tags[EXIF_ORIENTATION] = orientation
        stored = Image.fromarray(np.ascontiguousarray(undo[orientation](pixels)))
        stored.save(path, "JPEG", quality=100, subsampling=0, exif=tags)
        return pixels

    return make


def cmyk(path: Path) -> NDArray[np.uint8]:
    pixels = gradient()
    Image.fromarray(pixels).convert("CMYK").save(path, "JPEG", quality=100, subsampling=0)
    return pixels


def gray(path: Path) -> NDArray[np.uint8]:
    plane = gradient()[..., 1]
    Image.fromarray(plane).save(path)
    return np.repeat(plane[..., None], 3, axis=2)


def gray_jpeg(path: Path) -> NDArray[np.uint8]:
    plane = gradient()[..., 1]
    Image.fromarray(plane).save(path, "JPEG", quality=100)
    return np.repeat(plane[..., None], 3, axis=2)


def deep_gray(path: Path) -> NDArray[np.uint8]:
    plane = gradient()[..., 1]
    Image.fromarray(plane.astype(np.uint16) * 257).save(path)
    return np.repeat(plane[..., None], 3, axis=2)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def deep_rgb_png(path: Path) -> NDArray[np.uint8]:
    """A 16-bit RGB PNG, chunk by chunk: Pillow cannot write one."""
    pixels = gradient()
    wide = (pixels.astype(">u2") * 257).astype(">u2")
    lines = b"".join(b"\0" + line.tobytes() for line in wide)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 16, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return pixels


def one_bit(path: Path) -> NDArray[np.uint8]:
    plane = (gradient()[..., 1] > 127).astype(np.uint8) * 255
    Image.fromarray(plane).convert("1").save(path)
    return np.repeat(plane[..., None], 3, axis=2)


def palette_with_alpha(path: Path) -> NDArray[np.uint8]:
    """Left half red, right half transparent, which shows white."""
    indices = np.zeros((10, 20), dtype=np.uint8)
    indices[:, 10:] = 1
    image = Image.fromarray(indices, mode=None).convert("P")
    image.putpalette([255, 0, 0, 0, 255, 0] + [0] * 750)
    image.putdata(indices.ravel().tolist())
    image.save(path, transparency=1)
    wanted = np.zeros((10, 20, 3), dtype=np.uint8)
    wanted[:, :10, 0], wanted[:, 10:] = 255, 255
    return wanted


def half_transparent(path: Path) -> NDArray[np.uint8]:
    pixels = np.zeros((8, 8, 4), dtype=np.uint8)
    pixels[..., 2], pixels[..., 3] = 200, 128
    Image.fromarray(pixels).save(path)
    alpha = 128 / 255
    wanted = np.array([255 * (1 - alpha)] * 2 + [200 * alpha + 255 * (1 - alpha)])
    return np.broadcast_to(np.rint(wanted), (8, 8, 3)).astype(np.uint8)


def animated(kind: str) -> Maker:
    def make(path: Path) -> NDArray[np.uint8]:
        first, second = (np.full((12, 12, 3), v, dtype=np.uint8) for v in (250, 10))
        options = {"lossless": True} if kind == "WEBP" else {}
        Image.fromarray(first).save(
            path, kind, save_all=True, append_images=[Image.fromarray(second)], **options
        )
        return first

    return make


def sized(height: int, width: int) -> Maker:
    def make(path: Path) -> NDArray[np.uint8]:
        pixels = gradient(height, width)
        Image.fromarray(pixels).save(path)
        return pixels

    return make


GOOD: list[tuple[str, Maker, int]] = [
    (*save("JPEG", "plain.jpg", quality=100, subsampling=0), 3),
    (*save("JPEG", "capital.JPEG", quality=100, subsampling=0), 3),
    (*save("JPEG", "progressive.jpg", quality=100, subsampling=0, progressive=True), 3),
    (*save("PNG", "plain.png"), 0),
    (*save("WEBP", "plain.webp", lossless=True), 0),
    (*save("BMP", "plain.bmp"), 0),
    (*save("TIFF", "plain.tiff"), 0),
    (*save("TIFF", "lzw.tif", compression="tiff_lzw"), 0),
    (*save("PNG", "png named.jpg"), 0),
    (*save("PNG", "name with spaces and ünïcødé 猫.png"), 0),
    ("cmyk.jpg", cmyk, 12),
    ("gray.png", gray, 0),
    ("gray.jpg", gray_jpeg, 3),
    ("deep gray.png", deep_gray, 0),
    ("deep gray.tif", deep_gray, 0),
    ("deep rgb.png", deep_rgb_png, 1),
    ("one bit.png", one_bit, 0),
    ("palette with alpha.png", palette_with_alpha, 0),
    ("half transparent.png", half_transparent, 1),
    ("animated.gif", animated("GIF"), 6),
    ("animated.webp", animated("WEBP"), 1),
    ("one pixel.png", sized(1, 1), 0),
    ("long.png", sized(1, 5000), 0),
    *((f"exif {n}.jpg", exif(n), 4) for n in range(1, 9)),
]


def whole_jpeg(path: Path) -> bytes:
    Image.fromarray(gradient(200, 200)).save(path, "JPEG")
    return path.read_bytes()


def bomb(path: Path) -> None:
    """A valid header that claims 60,000 x 60,000 pixels."""
    header = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    lines = zlib.compress(bytes(100_000))
    body = chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


def truncated_jpeg(path: Path) -> None:
    path.write_bytes(whole_jpeg(path)[:900])


def truncated_png(path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:5000])


def flipped_png(path: Path) -> None:
    Image.fromarray(gradient(90, 90)).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def float_tiff(path: Path) -> None:
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(path)


def pipe(path: Path) -> None:
    os.mkfifo(path)


BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("truncated.jpg", truncated_jpeg, "damaged"),
    ("truncated.png", truncated_png, "damaged"),
    ("flipped.png", flipped_png, "damaged"),
    ("empty.jpg", lambda path: path.write_bytes(b""), "empty file"),
    ("text.png", lambda path: path.write_text("not a picture"), "not an image"),
    ("bomb.png", bomb, "more than images.max_megapixels|too many pixels"),
    ("broken link.jpg", lambda path: path.symlink_to("nowhere"), "broken symbolic link"),
    ("float.tif", float_tiff, "floating-point"),
    ("pipe.jpg", pipe, "not a regular file"),
]


@pytest.mark.parametrize(("name", "make", "within"), GOOD, ids=[g[0] for g in GOOD])
def test_good_files_have_the_right_pixels(
    name: str, make: Maker, within: int, tmp_path: Path
) -> None:
    wanted = make(tmp_path / name)
    close(decode_file(tmp_path / name, CONFIG), wanted, within)


@pytest.mark.parametrize(("name", "make", "reason"), BAD, ids=[b[0] for b in BAD])
def test_bad_files_are_refused_with_a_reason(
    name: str, make: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(UnreadableImage, match=reason):
        decode_file(tmp_path / name, CONFIG)


def test_the_whole_hostile_folder(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    wanted = {name: make(tmp_path / name) for name, make, _ in GOOD}
    for name, make, _ in BAD:
        make(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not counted")
    (tmp_path / ".hidden.png").write_bytes(b"not counted")
    (tmp_path / "loop").symlink_to(tmp_path)
    config = ImagesConfig(max_unreadable_share=0.5)
    begun = time.monotonic()
    found = open_folder(tmp_path, config, executor)
    assert time.monotonic() - begun < 60
    assert sorted(found.names) == sorted(wanted)
    assert {one.name for one in found.skipped} == {name for name, _, _ in BAD}
    assert len(wanted) + len(BAD) >= 40
    tolerance = {name: within for name, _, within in GOOD}
    batch = found.pixels.gather(np.arange(len(found)))
    for index, name in enumerate(found.names):
        close(batch.image(index), wanted[name], tolerance[name])


def test_too_many_unreadable_images_stop_before_training(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    gray(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(ImagesError, match=r"(?s)1 of 2 images.*bad\.png: not an image"):
        open_folder(tmp_path, CONFIG, executor)


def test_a_set_limit_on_pixels_is_kept(tmp_path: Path) -> None:
    sized(40, 50)(tmp_path / "image.png")
    with pytest.raises(UnreadableImage, match="50 x 40"):
        decode_file(tmp_path / "image.png", ImagesConfig(max_megapixels=0.001))


def test_gray_mode_gives_one_channel(tmp_path: Path) -> None:
    for name, kind in (("a.png", "PNG"), ("a.jpg", "JPEG")):
        Image.fromarray(gradient()).save(tmp_path / name, kind, quality=100)
        pixels = decode_file(tmp_path / name, ImagesConfig(color="gray"))
        wanted = np.asarray(Image.fromarray(gradient()).convert("L"))[..., None]
        close(pixels, wanted, 3)


def test_random_bytes_never_crash(rng: np.random.Generator, tmp_path: Path) -> None:
    sources = []
    for name, make, _ in GOOD[:8]:
        make(tmp_path / name)
        sources.append((tmp_path / name).read_bytes())
    for trial in range(200):
        data = bytearray(sources[trial % len(sources)])
        for position in rng.integers(0, len(data), size=8):
            data[position] = rng.integers(0, 256)
        try:
            pixels = decode_bytes(bytes(data[: rng.integers(1, len(data) + 1)]), CONFIG)
        except UnreadableImage:
            continue
        assert pixels.ndim == 3
