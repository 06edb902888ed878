"""Each format, mode, depth, kind of alpha and photometric tag against formulas in float64."""

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Literal

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import decode_bytes

RAW16 = ImagesConfig(color="raw", bits=16)
HEIGHT, WIDTH = 11, 13
LUMA = np.array([0.299, 0.587, 0.114])
Alpha = Literal["none", "straight", "premultiplied", "other"]
EXTRA: dict[Alpha, str] = {
    "straight": "unassalpha",
    "premultiplied": "assocalpha",
    "other": "unspecified",
}


def noise(channels: int, white: int, seed: int = 0) -> NDArray[Any]:
    dtype = np.uint8 if white <= 255 else np.uint16
    shape = (HEIGHT, WIDTH, channels)
    found = np.random.default_rng(seed).integers(0, white + 1, shape).astype(dtype)
    found[0, 0], found[0, 1] = 0, white
    return found


def wanted(
    stored: NDArray[Any], colors: str, alpha: Alpha, white: int, config: ImagesConfig
) -> NDArray[np.float64]:
    """What should be seen: shares of white, by the definitions."""
    share = stored.astype(np.float64) / white
    count = {"gray": 1, "white": 1, "rgb": 3, "cmyk": 4}[colors]
    color = share[..., :count]
    if colors == "white":
        color = 1 - color
    if colors == "cmyk":
        color = (1 - color[..., :3]) * (1 - color[..., 3:])
    if alpha == "straight":
        color = color * share[..., count:] + 1 - share[..., count:]
    if alpha == "premultiplied":
        color = np.minimum(color + 1 - share[..., count:], 1)
    if config.color == "gray" and color.shape[2] == 3:
        color = (color @ LUMA)[..., None]
    if config.color == "rgb" and color.shape[2] == 1:
        color = np.repeat(color, 3, axis=2)
    return color * (255 if config.bits == 8 else 65535)


def assert_seen(data: bytes, stored: NDArray[Any], colors: str, alpha: Alpha, white: int) -> None:
    """In gray and RGB of 8 and 16 bits, to the roundings in the depth of the file and the run."""
    for color, bits in itertools.product(("rgb", "gray"), (8, 16)):
        config = ImagesConfig(color=color, bits=bits)  # type: ignore[arg-type]
        found = decode_bytes(data, config)
        assert found.dtype == (np.uint8 if bits == 8 else np.uint16)
        ideal = wanted(stored, colors, alpha, white, config)
        assert found.shape == ideal.shape
        roundings = 0.51 + 1.1 * (2**bits - 1) / white
        assert np.abs(found - ideal).max() <= roundings, (color, bits)


def tiff(pixels: NDArray[Any], **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, pixels, **options)
    return buffer.getvalue()


TIFF_COLORS = {"gray": ("minisblack", 1), "white": ("miniswhite", 1), "rgb": ("rgb", 3)}
TIFF_COLORS |= {"cmyk": ("separated", 4)}
LAYOUTS: tuple[dict[str, Any], ...] = (
    {},
    {"compression": "lzw", "rowsperstrip": 4},
    {"compression": "lzw", "predictor": True, "byteorder": ">"},
    {"compression": "zlib", "tile": (64, 64)},
    {"compression": "packbits", "tile": (16, 16), "bigtiff": True},
    {"compression": "zstd"},
    {"compression": "jpeg2000", "tile": (64, 64)},
    {"tile": (64, 64)},
    {"planarconfig": "separate"},
    {"planarconfig": "separate", "compression": "lzw", "tile": (16, 32)},
)


def tiff_cases() -> Iterator[tuple[str, Alpha, int, dict[str, Any]]]:
    for colors, alpha, white in itertools.product(
        TIFF_COLORS, ("none", "straight", "premultiplied", "other"), (255, 65535)
    ):
        for number, layout in enumerate(LAYOUTS):
            one_channel = colors in ("gray", "white") and alpha == "none"
            if not (one_channel and "planarconfig" in layout) and (number < 3 or colors == "rgb"):
                yield colors, alpha, white, layout  # type: ignore[misc]


@pytest.mark.parametrize(("colors", "alpha", "white", "layout"), list(tiff_cases()))
def test_tiff(colors: str, alpha: Alpha, white: int, layout: dict[str, Any]) -> None:
    photometric, count = TIFF_COLORS[colors]
    stored = noise(count + (alpha != "none"), white)
    options: dict[str, Any] = {"photometric": photometric, "planarconfig": "contig", **layout}
    if stored.shape[2] == 1:
        del options["planarconfig"]
    if alpha != "none":
        options["extrasamples"] = [EXTRA[alpha]]
    planes = options.get("planarconfig") == "separate"
    given = np.ascontiguousarray(stored.transpose(2, 0, 1)) if planes else stored
    data = tiff(given if stored.shape[2] > 1 else stored[..., 0], **options)
    kept = decode_bytes(data, RAW16)
    upward = stored.copy()
    if colors == "white":
        upward[..., 0] = white - upward[..., 0]
    assert np.array_equal(kept, upward.astype(np.uint16) * (65535 // white))
    if alpha == "other" and colors in ("gray", "white"):
        with pytest.raises(UnreadableImage, match="2 channels are neither gray nor RGB"):
            decode_bytes(data, ImagesConfig())
    else:
        assert_seen(data, stored, colors, alpha, white)


def test_infrared_beside_rgb_is_no_transparency() -> None:
    pixels = np.full((4, 4, 4), (60000, 20000, 10000, 1000), dtype=np.uint16)
    data = tiff(pixels, photometric="rgb", planarconfig="contig", extrasamples=["unspecified"])
    assert np.array_equal(decode_bytes(data, ImagesConfig(bits=16)), pixels[..., :3])
    assert np.array_equal(decode_bytes(data, RAW16), pixels)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


ADAM7 = (
    *((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4)),
    *((2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)),
)


def png(pixels: NDArray[Any], *extra: bytes, interlaced: bool = False) -> bytes:
    """Written by the letter of the specification, without filters."""
    depth = 8 * pixels.dtype.itemsize
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[pixels.shape[2]]
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, depth, kind, 0, 0, interlaced)
    stored = pixels.astype(f">u{depth // 8}")
    parts = [stored[a::c, b::d] for a, b, c, d in ADAM7] if interlaced else [stored]
    lines = b"".join(b"\0" + row.tobytes() for part in parts if part.size for row in part)
    body = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines)))
    return b"\x89PNG\r\n\x1a\n" + b"".join(body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("white", [255, 65535])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_png(channels: int, white: int, interlaced: bool) -> None:
    stored = noise(channels, white)
    data = png(stored, interlaced=interlaced)
    assert np.array_equal(decode_bytes(data, RAW16), stored.astype(np.uint16) * (65535 // white))
    alpha: Alpha = "straight" if channels in (2, 4) else "none"
    assert_seen(data, stored, "gray" if channels < 3 else "rgb", alpha, white)


@pytest.mark.parametrize("white", [255, 65535])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_png(channels: int, white: int) -> None:
    stored = noise(channels, white)
    key = stored[5, 5].astype(">u2").tobytes()
    data = png(stored, chunk(b"tRNS", key))
    clear = (stored == stored[5, 5]).all(axis=2)
    opacity = np.where(clear, 0, white).astype(stored.dtype)[..., None]
    full = np.concatenate([stored, opacity], axis=2)
    assert np.array_equal(decode_bytes(data, RAW16), full.astype(np.uint16) * (65535 // white))
    assert_seen(data, full, "gray" if channels == 1 else "rgb", "straight", white)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits(bits: int) -> None:
    white = 2**bits - 1
    stored = noise(1, white)
    unpacked = np.unpackbits(stored[..., 0, None], axis=2)[..., 8 - bits :]
    packed = np.packbits(unpacked.reshape(HEIGHT, -1), axis=1)
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    assert_seen(b"\x89PNG\r\n\x1a\n" + body, stored, "gray", "none", white)


@pytest.mark.parametrize("white", [255, 1023, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
def test_netpbm(kind: int, white: int) -> None:
    channels = 1 if kind in (2, 5) else 3
    stored = noise(channels, white)
    header = b"P%d # made\n%d %d\n%d\n" % (kind, WIDTH, HEIGHT, white)
    plain = " ".join(map(str, stored.ravel().tolist())).encode()
    binary = stored.astype(f">u{stored.dtype.itemsize}").tobytes()
    data = header + (plain if kind in (2, 3) else binary)
    assert_seen(data, stored, "gray" if channels == 1 else "rgb", "none", white)


def jpeg2000(pixels: NDArray[Any], bits: int, kind: Literal["jp2", "j2k"]) -> bytes:
    options: dict[str, Any] = {"bitspersample": bits, "codecformat": kind}
    return bytes(imagecodecs.jpeg2k_encode(pixels.squeeze(), level=0, reversible=True, **options))


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg2000(channels: int, bits: int) -> None:
    stored = noise(channels, 2**bits - 1)
    data = jpeg2000(stored, bits, "jp2")
    assert_seen(data, stored, "gray" if channels == 1 else "rgb", "none", 2**bits - 1)


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_jpeg2000_and_webp_with_alpha(mode: str) -> None:
    stored = noise(len(mode), 255)
    for kind, options in (("JPEG2000", {}), ("WEBP", {"lossless": True, "exact": True})):
        if (mode, kind) != ("LA", "WEBP"):
            buffer = io.BytesIO()
            Image.fromarray(stored).save(buffer, kind, **options)
            assert_seen(
                buffer.getvalue(), stored, "gray" if mode == "LA" else "rgb", "straight", 255
            )


def test_a_fourth_component_of_jpeg2000_that_nothing_calls_alpha() -> None:
    for white in (255, 65535):
        stored = noise(4, white)
        data = jpeg2000(stored, 8 * stored.itemsize, "j2k")
        assert_seen(data, stored[..., :3], "rgb", "none", white)
        kept = decode_bytes(data, RAW16)
        assert np.array_equal(kept, stored.astype(np.uint16) * (65535 // white))


def test_avif_of_10_bits_is_not_reduced() -> None:
    stored = noise(3, 1023)
    data = bytes(imagecodecs.avif_encode(stored, level=100, bitspersample=10, pixelformat="444"))
    assert np.array_equal(imagecodecs.avif_decode(data), stored)
    assert_seen(data, stored, "rgb", "none", 1023)


def test_cmyk_jpeg_is_stored_inverted() -> None:
    inks = np.full((16, 16, 4), (10, 200, 60, 30), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.frombytes("CMYK", (16, 16), inks.tobytes()).save(buffer, "JPEG", quality=100)
    kept = decode_bytes(buffer.getvalue(), ImagesConfig(color="raw"))
    assert np.abs(kept.astype(int) - inks).max() <= 2
    seen = decode_bytes(buffer.getvalue(), ImagesConfig())
    ideal = wanted(inks, "cmyk", "none", 255, ImagesConfig())
    assert np.abs(seen - ideal).max() <= 3


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint32, np.float32, np.float16])
def test_tiff_without_a_black_and_a_white_is_refused(dtype: Any) -> None:
    data = tiff(np.ones((8, 8), dtype=dtype))
    for config in (ImagesConfig(), RAW16):
        with pytest.raises(UnreadableImage, match=rf"numbers of type {np.dtype(dtype)}.*unsigned"):
            decode_bytes(data, config)


def test_tiff_palettes_and_single_bits() -> None:
    indices = noise(1, 255)[..., 0]
    colormap = np.random.default_rng(3).integers(0, 256, (3, 256)).astype(np.uint16) * 257
    data = tiff(indices, photometric="palette", colormap=colormap)
    colors = (colormap.T // 257).astype(np.uint8)[indices]
    assert_seen(data, colors, "rgb", "none", 255)
    for white_is_zero in (False, True):
        bits = noise(1, 1)
        buffer = io.BytesIO()
        given = Image.fromarray(bits[..., 0] * np.uint8(255)).convert("1")
        given.save(buffer, "TIFF", tiffinfo={262: 0} if white_is_zero else {})
        shown = decode_bytes(buffer.getvalue(), ImagesConfig(color="gray"))
        again = np.asarray(Image.open(io.BytesIO(buffer.getvalue())).convert("L"))
        assert np.array_equal(shown[..., 0], again)


@pytest.mark.parametrize("turned", range(1, 9))
def test_deep_files_are_turned_as_shallow_ones(turned: int) -> None:
    for white in (255, 65535):
        stored = noise(3, white)
        exif = Image.Exif()
        exif[0x0112] = turned
        with_chunk = png(stored, chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")))
        text = f"\nexif\n 8\n{exif.tobytes().hex()}\n".encode()
        in_text = png(stored, chunk(b"tEXt", b"Raw profile type exif\0" + text))
        xmp = b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="%d"/>' % turned
        tag = [(0x0112, "H", 1, turned, True)]
        tagged = tiff(stored, photometric="rgb", extratags=tag)
        upright = {
            1: lambda p: p,
            2: lambda p: p[:, ::-1],
            3: lambda p: p[::-1, ::-1],
            4: lambda p: p[::-1],
            5: lambda p: p.transpose(1, 0, 2),
            6: lambda p: np.rot90(p, -1),
            7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
            8: lambda p: np.rot90(p, 1),
        }[turned](stored)
        for data in (with_chunk, in_text, png(stored, chunk(b"iTXt", xmp)), tagged):
            assert_seen(data, upright, "rgb", "none", white)


@pytest.mark.parametrize("bits", [8, 16])
def test_every_colour_of_every_transparency_is_laid_on_white_to_the_number(bits: int) -> None:
    """Of 8 bits all pairs; of 16 the ends of both ranges and whatever is drawn."""
    white, numbers = 2**bits - 1, np.arange(256)
    if bits == 16:
        ends = np.array([0, 1, 32767, 32768, white - 1, white])
        drawn = np.random.default_rng(1).integers(0, white + 1, 300)
        numbers = np.concatenate([ends, drawn])
    color, alpha = np.meshgrid(*2 * [numbers.astype(f"u{bits // 8}")])
    stored = np.stack([color, color, color, alpha], axis=-1)
    data = io.BytesIO()
    tifffile.imwrite(data, stored, photometric="rgb", extrasamples=["unassalpha"])
    own, share = color.astype(object), alpha.astype(object)  # of any size
    wanted = (own * share + (white - share) * white + white // 2) // white
    found = decode_bytes(data.getvalue(), ImagesConfig(bits=bits))  # type: ignore[arg-type]
    assert np.array_equal(found[..., 0], wanted.astype(np.int64))
