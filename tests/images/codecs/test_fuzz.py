"""Damaged files of every format give pixels or UnreadableImage, in silence."""

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import decode_bytes, pages

CONFIGS = (
    ImagesConfig(max_megapixels=1),
    ImagesConfig(color="raw", bits=16, max_megapixels=1),
)
DEEP = np.random.default_rng(0).integers(0, 65536, (40, 30, 4), dtype=np.uint16)
SHALLOW = (DEEP >> 8).astype(np.uint8)


def by_pillow(kind: str, mode: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(SHALLOW).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def by_tifffile(**options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, DEEP, photometric="rgb", planarconfig="contig", **options)
    return buffer.getvalue()


SECOND = {"save_all": True, "append_images": [Image.fromarray(SHALLOW[::-1])]}
FILES: dict[str, bytes] = {
    "jpeg": by_pillow("JPEG", "RGB"),
    "jpeg progressive": by_pillow("JPEG", "RGB", progressive=True),
    "jpeg restarts": by_pillow("JPEG", "RGB", restart_marker_rows=1),
    "jpeg cmyk": by_pillow("JPEG", "CMYK"),
    "jpeg gray": by_pillow("JPEG", "L"),
    "png": by_pillow("PNG", "RGBA"),
    "png palette": by_pillow("PNG", "P", transparency=3),
    "png deep": bytes(imagecodecs.png_encode(DEEP)),
    "png animated": by_pillow("PNG", "RGBA", **SECOND),
    "webp": by_pillow("WEBP", "RGBA"),
    "webp lossless": by_pillow("WEBP", "RGB", lossless=True),
    "webp animated": by_pillow("WEBP", "RGBA", **SECOND),
    "bmp": by_pillow("BMP", "RGB"),
    "gif": by_pillow("GIF", "P"),
    "gif animated": by_pillow("GIF", "P", **SECOND),
    "ppm": by_pillow("PPM", "RGB"),
    "pgm deep": b"P5 30 40 65535\n" + DEEP[..., 0].astype(">u2").tobytes(),
    "pgm plain": b"P2 30 40 999\n" + b" ".join(b"%d" % i for i in range(1200)),
    "avif": by_pillow("AVIF", "RGBA"),
    "avif deep": bytes(imagecodecs.avif_encode(DEEP[..., :3] >> 6, bitspersample=10)),
    "jp2": by_pillow("JPEG2000", "RGBA"),
    "jp2 deep": bytes(imagecodecs.jpeg2k_encode(DEEP, level=0, reversible=True)),
    "tiff": by_tifffile(),
    "tiff lzw": by_tifffile(compression="lzw", predictor=True, rowsperstrip=7),
    "tiff deflate tiles": by_tifffile(compression="zlib", tile=(64, 64)),
    "tiff packbits": by_tifffile(compression="packbits", rowsperstrip=7),
    "tiff zstd": by_tifffile(compression="zstd", bigtiff=True),
    "tiff jpeg 2000": by_tifffile(compression="jpeg2000"),
    "tiff jpeg": by_pillow("TIFF", "RGB", compression="jpeg"),
    "tiff palette": by_pillow("TIFF", "P"),
    "tiff bits": by_pillow("TIFF", "1", compression="group4"),
}


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, or with some bytes changed, most of them where headers are."""
    if rng.random() < 0.3:
        return data[: rng.integers(1, len(data))]
    changed = bytearray(data)
    within = len(data) if rng.random() < 0.5 else min(len(data), 300)
    for place in rng.integers(0, within, size=rng.integers(1, 6)):
        changed[place] = rng.integers(0, 256)
    return bytes(changed)


def try_damaged(name: str, trials: int, capfd: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(sum(name.encode()))
    for _ in range(trials):
        data = damaged(FILES[name], rng)
        assert pages(data) >= 1
        for config in CONFIGS:
            try:
                found = decode_bytes(data, config)
            except UnreadableImage:
                continue
            assert found.ndim == 3
            assert found.dtype == (np.uint8 if config.bits == 8 else np.uint16)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", FILES)
def test_damaged_files(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert decode_bytes(FILES[name], CONFIGS[0]).shape == (40, 30, 3)
    try_damaged(name, 30, capfd)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_many_damaged_files(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    try_damaged(name, 3000, capfd)


@pytest.mark.parametrize("name", [name for name in FILES if "animated" not in name])
def test_files_that_end_early(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = FILES[name]
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(UnreadableImage):
            decode_bytes(data[: int(len(data) * share)], CONFIGS[0])
    assert capfd.readouterr() == ("", "")
