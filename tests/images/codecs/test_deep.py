"""16 bits and any number of channels: kept where asked for, reduced where not, refused in words."""

import io
import struct
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError, ImagesError, UnreadableImage
from diptych.images.codecs.decode import decode_bytes
from diptych.images.open import open_images
from diptych.resolve import Overrides, resolve

DEEP, RAW = ImagesConfig(bits=16), ImagesConfig(color="raw")
DEEP_RAW = ImagesConfig(color="raw", bits=16)
PNG_COLORS = {1: 0, 3: 2, 2: 4, 4: 6}


def noise(*shape: int, dtype: Any = np.uint16) -> NDArray[Any]:
    most = np.iinfo(dtype).max + 1
    return np.random.default_rng(1).integers(0, most, shape, dtype=dtype)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


def filtered(rows: bytes, line_bytes: int, step: int) -> bytes:
    """Each line with another of the five filters, by the letter of the PNG specification."""

    def guess(kind: int, left: int, above: int, corner: int) -> int:
        distances = [abs(left + above - corner - one) for one in (left, above, corner)]
        paeth = (left, above, corner)[distances.index(min(distances))]
        return [0, left, above, (left + above) // 2, paeth][kind]

    out = bytearray()
    for start in range(0, len(rows), line_bytes):
        kind = start // line_bytes % 5
        out.append(kind)
        for i in range(start, start + line_bytes):
            inside = i - start >= step
            left, above = rows[i - step] if inside else 0, rows[i - line_bytes] if start else 0
            corner = rows[i - line_bytes - step] if inside and start else 0
            out.append((rows[i] - guess(kind, left, above, corner)) % 256)
    return bytes(out)


def png16(pixels: NDArray[np.uint16], *, interlaced: int = 0, lines: bytes | None = None) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLORS[channels], 0, 0, interlaced)
    rows = pixels.astype(">u2").tobytes()
    lines = lines or filtered(rows, width * channels * 2, 2 * channels)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def image(pixels: NDArray[Any], kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def rounded(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return np.floor(pixels / 65535 * 255 + 0.5).astype(np.uint8)


RGB16, RGBA16, GRAY16 = noise(9, 7, 3), noise(9, 7, 4), noise(9, 7, 1)
MANY8, MANY16 = noise(9, 7, 7, dtype=np.uint8), noise(9, 7, 7)
BANDS = {"photometric": "minisblack", "planarconfig": "contig"}
KEPT: list[tuple[str, bytes, NDArray[Any]]] = [
    ("png rgb", png16(RGB16), RGB16),
    ("png rgba", png16(RGBA16), RGBA16),
    ("png gray", png16(GRAY16), GRAY16),
    ("tiff rgb", tiff(RGB16, photometric="rgb"), RGB16),
    ("tiff rgb deflate", tiff(RGB16, photometric="rgb", compression="zlib"), RGB16),
    ("tiff gray", tiff(GRAY16[..., 0]), GRAY16),
    ("tiff seven", tiff(MANY16, **BANDS), MANY16),
    ("tiff big endian", tiff(MANY16, byteorder=">", **BANDS), MANY16),
    ("big tiff", tiff(MANY16, bigtiff=True, **BANDS), MANY16),
    (
        "tiff planes",
        tiff(
            np.ascontiguousarray(MANY16.transpose(2, 0, 1)),
            photometric="minisblack",
            planarconfig="separate",
        ),
        MANY16,
    ),
]


@pytest.mark.parametrize(("data", "wanted"), [k[1:] for k in KEPT], ids=[k[0] for k in KEPT])
def test_raw_16_bits_are_kept_exactly(data: bytes, wanted: NDArray[Any]) -> None:
    found = decode_bytes(data, DEEP_RAW)
    assert found.dtype == np.uint16
    assert np.array_equal(found, wanted)
    assert np.array_equal(decode_bytes(data, RAW).shape, wanted.shape)
    assert np.abs(decode_bytes(data, RAW).astype(int) - rounded(wanted).astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("mode", "channels"),
    [("L", 1), ("1", 1), ("LA", 2), ("RGB", 3), ("P", 3), ("RGBA", 4), ("CMYK", 4)],
)
def test_raw_keeps_the_channels_of_8_bits(mode: str, channels: int) -> None:
    kind = "TIFF" if mode == "CMYK" else "PNG"
    converted = Image.fromarray(noise(9, 7, 3, dtype=np.uint8)).convert(mode)
    buffer = io.BytesIO()
    converted.save(buffer, kind)
    found = decode_bytes(buffer.getvalue(), RAW)
    assert found.dtype == np.uint8
    assert found.shape == (9, 7, channels)
    if mode in ("L", "LA", "RGB", "RGBA", "CMYK"):
        assert np.array_equal(found, np.asarray(converted).reshape(9, 7, channels))
    wide = decode_bytes(buffer.getvalue(), DEEP_RAW)
    assert np.array_equal(wide, found.astype(np.uint16) * 257)


def test_extra_channels_beside_rgb_are_not_dropped() -> None:
    five = noise(9, 7, 5, dtype=np.uint8)
    assert np.array_equal(decode_bytes(tiff(five, photometric="rgb"), RAW), five)
    assert np.array_equal(decode_bytes(tiff(MANY8, **BANDS), RAW), MANY8)


@pytest.mark.parametrize("data", [png16(RGB16), tiff(RGB16, photometric="rgb")])
def test_16_bits_in_color_and_gray(data: bytes) -> None:
    assert np.array_equal(decode_bytes(data, DEEP), RGB16)
    gray = decode_bytes(data, ImagesConfig(color="gray", bits=16))
    wanted = RGB16.astype(float) @ [0.299, 0.587, 0.114]
    assert gray.dtype == np.uint16
    assert np.abs(gray[..., 0] - wanted).max() <= 0.5001
    eight = decode_bytes(data, ImagesConfig())
    assert np.abs(eight.astype(int) - rounded(RGB16)).max() <= 1


def test_16_bits_of_gray_and_of_8_bit_files() -> None:
    assert np.array_equal(decode_bytes(png16(GRAY16), DEEP), np.repeat(GRAY16, 3, axis=2))
    eight = noise(9, 7, 3, dtype=np.uint8)
    assert np.array_equal(decode_bytes(image(eight), DEEP), eight.astype(np.uint16) * 257)


def test_transparency_of_16_bits_is_laid_on_white() -> None:
    alpha = RGBA16[..., 3:] / 65535
    wanted = RGBA16[..., :3] * alpha + 65535 * (1 - alpha)
    assert np.abs(decode_bytes(png16(RGBA16), DEEP) - wanted).max() <= 0.5001


@pytest.mark.parametrize(
    "options", [{"compression": one} for one in ("zlib", "packbits", "zstd", "lzw", None)], ids=str
)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_strips_may_go_on_below_the_picture(options: dict[str, Any], planar: str) -> None:
    pixels = noise(24, 7, 3, dtype=np.uint8)
    stored = pixels if planar == "contig" else pixels.transpose(2, 0, 1)
    more = {"photometric": "rgb", "planarconfig": planar, "rowsperstrip": 8}
    data = bytearray(tiff(stored, **options, **more))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        place = file.pages.first.tags["ImageLength"].valueoffset
    data[place : place + 2] = (20).to_bytes(2, "little")
    assert np.array_equal(decode_bytes(bytes(data), ImagesConfig()), pixels[:20])


def test_a_strip_of_jpeg2000_is_bounded_by_the_picture() -> None:
    data = bytearray(
        tiff(noise(24, 7, 3, dtype=np.uint8), photometric="rgb", compression="jpeg2000")
    )
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages.first.tags
        places = [tags[name].valueoffset for name in ("ImageLength", "RowsPerStrip")]
    for place in places:
        data[place : place + 2] = (20).to_bytes(2, "little")
    with pytest.raises(UnreadableImage, match="a strip unpacks to more than the picture"):
        decode_bytes(bytes(data), ImagesConfig())


def bomb() -> bytes:
    """A strip that unpacks to far more than the picture."""
    data = tiff(noise(9, 7, 7), compression="zlib", **BANDS)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages.first
        ((start,), (count,)) = page.dataoffsets, page.databytecounts
        places = [page.tags[name].valueoffset for name in ("StripOffsets", "StripByteCounts")]
    packed = zlib.compress(bytes(50_000_000))
    changed = bytearray(data + packed)
    for place, value in zip(places, (len(data), len(packed)), strict=True):
        old = start if value == len(data) else count
        width = 4 if struct.unpack_from("<I", changed, place)[0] == old else 2
        struct.pack_into("<I" if width == 4 else "<H", changed, place, value)
    return bytes(changed)


REFUSED: list[tuple[str, bytes, ImagesConfig, str]] = [
    ("seven as rgb", tiff(MANY8, **BANDS), ImagesConfig(), "images.color = 'raw' keeps them"),
    ("floats", tiff(np.zeros((9, 7, 5), np.float32), **BANDS), RAW, "numbers of type float32"),
    ("32 bits", tiff(np.zeros((9, 7, 5), np.uint32), **BANDS), RAW, "numbers of type uint32"),
    ("short", png16(RGB16, lines=b"\0" * 100), DEEP, "fewer pixels than its header says"),
    ("filter", png16(RGB16, lines=b"\5" * 9999), DEEP, "filter value"),
    ("too many", tiff(noise(9, 7, 65), **BANDS), RAW, "65 channels"),
    ("too large", tiff(MANY8, **BANDS), ImagesConfig(color="raw", max_megapixels=5e-5), "7 x 9"),
    ("bomb", bomb(), RAW, "unpacks to more than the picture"),
    ("cut off", tiff(noise(99, 70, 7), **BANDS)[:2000], RAW, "damaged"),
    ("only a start", b"II*\0", RAW, "damaged"),
    ("other count", tiff(MANY8, **BANDS), ImagesConfig(color="raw", raw_channels=4), "7 channels"),
]


@pytest.mark.parametrize(
    ("data", "config", "words"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED]
)
def test_what_cannot_be_kept_is_refused(data: bytes, config: ImagesConfig, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        decode_bytes(data, config)


def test_random_bytes_never_crash(rng: np.random.Generator) -> None:
    sources: Sequence[bytes] = [data for _, data, _ in KEPT]
    for trial in range(200):
        data = bytearray(sources[trial % len(sources)])
        for place in rng.integers(0, len(data), size=6):
            data[place] = rng.integers(0, 256)
        try:
            found = decode_bytes(bytes(data[: rng.integers(1, len(data) + 1)]), DEEP_RAW)
        except UnreadableImage:
            continue
        assert found.ndim == 3


def test_most_of_the_images_decide_on_the_channels(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    for number in range(12):
        channels = 3 if number == 5 else 4
        data = image(noise(9, 7, channels, dtype=np.uint8))
        (tmp_path / f"{number:02d}.png").write_bytes(data)
    config = ImagesConfig(path=str(tmp_path), color="raw")
    found = open_images(config, executor).train
    assert (len(found), found.channels) == (11, 4)
    assert [one.name for one in found.skipped] == ["05.png"]
    assert "has 3 channels; the set has 4" in found.skipped[0].reason
    assert found.pixels.gather(np.array([0])).image(0).shape == (9, 7, 4)
    three = ImagesConfig(path=str(tmp_path), color="raw", raw_channels=3, max_unreadable_share=0.95)
    assert list(open_images(three, executor).train.names) == ["05.png"]


def test_raw_photographs_are_in_color(executor: ThreadPoolExecutor) -> None:
    found = open_images(ImagesConfig(path="photographs", color="raw", bits=16), executor)
    assert found.train.channels == 3
    assert found.train.pixels.gather(np.array([0])).pixels.dtype == np.uint16


def test_channels_are_unknown_until_the_images_are_open() -> None:
    with pytest.raises(ConfigError, match="not open yet"):
        _ = RAW.channels
    assert ImagesConfig(color="raw", raw_channels=7).channels == 7
    with pytest.raises(ConfigError, match="between 1 and 64"):
        ImagesConfig(color="raw", raw_channels=65)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bits", [8, 16])
def test_arrays_of_any_channels_and_depth(
    dtype: type[np.generic], bits: Any, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    pixels = noise(5, 9, 7, 12, dtype=dtype)
    np.savez(tmp_path / "a.npz", images=pixels, test_images=pixels[:2])
    config = ImagesConfig(path=str(tmp_path / "a.npz"), color="raw", bits=bits)
    found = open_images(config, executor)
    batch = found.train.pixels.gather(np.array([3]))
    assert batch.pixels.dtype == (np.uint8 if bits == 8 else np.uint16)
    wide = pixels[3].astype(np.int64) * (257 if dtype is np.uint8 else 1)
    ours = batch.image(0).astype(np.int64) * (257 if bits == 8 else 1)
    assert np.abs(ours - wide).max() <= (128 if (bits, dtype) == (8, np.uint16) else 0)
    assert found.test is not None
    assert found.train.channels == found.test.channels == 12
    for color, words in (("rgb", "wanted 1 or 3 channels"), ("raw", "wanted 5 channels")):
        wrong = ImagesConfig(
            path=str(tmp_path / "a.npz"),
            color=color,  # type: ignore[arg-type]
            raw_channels=5,
        )
        with pytest.raises(ImagesError, match=words):
            open_images(wrong, executor)


def test_a_run_keeps_the_channels_that_were_found() -> None:
    layers: Overrides = [({"images": {"path": "photographs", "color": "raw"}}, "the test")]
    config, _ = resolve(layers, image_count=500, median_side_pixels=32, channels=7)
    assert config.images.raw_channels == config.images.channels == 7
    plain: Overrides = [({"images": {"path": "photographs"}}, "the test")]
    config, _ = resolve(plain, image_count=500, median_side_pixels=32, channels=3)
    assert config.images.raw_channels is None
