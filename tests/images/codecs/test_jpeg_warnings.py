"""What libjpeg only warns of is used; what ends early is not: in both ways in, at every scale."""

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images.codecs.decode import decode_bytes
from diptych.images.codecs.jpeg import plain_jpeg_header

CONFIG = ImagesConfig()
SCALES = (1.0, 0.5, 0.25, 0.125)
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gray": {"mode": "L"},
    "cmyk": {"mode": "CMYK"},
    "progressive": {"progressive": True},
    "restarts": {"restart_marker_rows": 1},
    "restart in each block": {"restart_marker_blocks": 1},
    "turned": {"turned": 6},
}


def jpeg(mode: str = "RGB", turned: int = 1, **options: Any) -> bytes:
    pixels = np.random.default_rng(2).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    if turned != 1:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = turned
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", quality=80, **options)
    return buffer.getvalue()


def at_scale(data: bytes, scale: float) -> NDArray[Any]:
    return decode_bytes(data, replace(CONFIG, decoded_side=int(50 * scale)))


def scaled(data: bytes) -> list[NDArray[Any]]:
    return [at_scale(data, scale) for scale in SCALES]


def assert_same(found: list[NDArray[Any]], wanted: list[NDArray[Any]]) -> None:
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


STRAY = bytes(np.random.default_rng(4).integers(0, 255, 258, dtype=np.uint8))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stray", [STRAY, b"\0", b"\0" * 4096, STRAY + b"\xff\xd3" + STRAY])
def test_stray_bytes_before_the_end(kind: str, stray: bytes) -> None:
    data = jpeg(**KINDS[kind])
    assert_same(scaled(data[:-2] + stray + data[-2:]), scaled(data))


@pytest.mark.parametrize("kind", KINDS)
def test_stray_bytes_elsewhere(kind: str) -> None:
    data = jpeg(**KINDS[kind])
    tables = data.index(b"\xff\xdb")
    before = data[:tables] + b"\x00junk\xff\x00" + data[tables:]
    profile = b"ICC_PROFILE\0\1\2bad"
    marker = b"\xff\xe2" + (len(profile) + 2).to_bytes(2, "big") + profile
    for damaged in (before, data[:tables] + marker + data[tables:], data + STRAY):
        assert_same(scaled(damaged), scaled(data))


@pytest.mark.parametrize("kind", KINDS)
def test_what_ends_early_is_refused(kind: str) -> None:
    data = jpeg(**KINDS[kind])
    begin = data.index(b"\xff\xda")
    places = np.linspace(begin + 12, len(data) - 5, 40).astype(int)
    for place in places.tolist():
        for end in (b"", b"\xff\xd9"):
            for scale in (1.0, 0.125):
                with pytest.raises(UnreadableImage, match="damaged"):
                    at_scale(data[:place] + end, scale)


def test_an_interval_that_is_missing_at_the_end_is_seen() -> None:
    data = jpeg(restart_marker_rows=1)
    last = max(
        data.rindex(bytes((0xFF, 0xD0 + number)))
        for number in range(8)
        if bytes((0xFF, 0xD0 + number)) in data
    )
    for cut in (last, last + 2):
        with pytest.raises(UnreadableImage, match="ends early"):
            decode_bytes(data[:cut] + b"\xff\xd9", CONFIG)


def test_only_the_end_marker_is_missing() -> None:
    for kind in ("plain", "gray", "restarts"):
        data = jpeg(**KINDS[kind])
        assert_same(scaled(data[:-2]), scaled(data))
    # There might have been finer scans.
    with pytest.raises(UnreadableImage, match="ends early"):
        decode_bytes(jpeg(progressive=True)[:-2], CONFIG)


def test_what_is_mended_is_decoded_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    data, calls, decode = jpeg(), list[bytes](), simplejpeg.decode_jpeg

    def counted(data: bytes, **options: Any) -> Any:
        calls.append(data)
        return decode(data, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    for scale, most in ((1.0, 3), (0.25, 4)):
        calls.clear()
        at_scale(data[:-2] + STRAY + data[-2:], scale)
        assert len(calls) <= most


def test_both_ways_in_are_tried() -> None:
    data = jpeg()
    assert plain_jpeg_header(data[:-2] + STRAY + data[-2:]) is not None
    assert plain_jpeg_header(jpeg(turned=6)) is None
    assert plain_jpeg_header(data[:20] + b"\0" + data[20:]) is None


def test_room_is_used_by_what_is_mended() -> None:
    data = jpeg()
    room = np.empty(50 * 70 * 3, dtype=np.uint8)
    found = decode_bytes(data[:-2] + STRAY + data[-2:], CONFIG, room=room)
    assert np.may_share_memory(found, room)
    assert np.array_equal(found, decode_bytes(data, CONFIG))
