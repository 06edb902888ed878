"""Frames of a video that PyAV makes here: the right ones, at the right times."""

import struct
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.images.codecs.decode import VIDEOS
from diptych.images.inventory import why_no_image
from diptych.images.open import open_images

av = pytest.importorskip("av", reason="PyAV reads videos")

PER_SECOND, SECONDS = 10, 4


def write_video(path: Path, codec: str = "mpeg4") -> Path:
    """Ten frames a second, each with the gray level of six times its number."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.time_base = Fraction(1, PER_SECOND)
        for number in range(PER_SECOND * SECONDS):
            gray = np.full((48, 64, 3), 6 * number, np.uint8)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(gray, "rgb24")))
        file.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("end", [".mp4", ".mkv"])
def test_a_frame_every_so_many_seconds(
    end: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    write_video(tmp_path / f"walks/a{end}")
    (tmp_path / "stills").mkdir()
    Image.new("RGB", (64, 48)).save(tmp_path / "stills/1.png")
    config = ImagesConfig(path=str(tmp_path), video_seconds=0.8)
    found = open_images(config, executor).train
    assert list(found.names) == ["stills/1.png", *(f"walks/a{end}#{n}" for n in range(1, 6))]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 1, 1, 1, 1]
    levels = [int(found.pixels.gather(np.array([row])).image(0).mean()) for row in range(1, 6)]
    assert np.abs(np.array(levels) - [0, 48, 96, 144, 192]).max() <= 3


# The matrix of a track (ISO/IEC 14496-12, 8.3.2): x' = a x + c y + tx, y' = b x + d y + ty, y down.
# By a quarter of a turn clockwise it takes x to y and y to -x.
MATRICES = {
    0: (1, 0, 0, 1),
    1: (0, 1, -1, 0),
    2: (-1, 0, 0, -1),
    3: (0, -1, 1, 0),
}


@pytest.mark.parametrize("quarters", MATRICES)
def test_a_video_is_seen_as_it_was_held(
    quarters: int, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    """Its upper left corner is white; where that belongs follows from the matrix of the file."""
    path = tmp_path / "a.mp4"
    corner = np.zeros((48, 64, 3), np.uint8)
    corner[:16, :16] = 255
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(PER_SECOND):
            file.mux(stream.encode(av.VideoFrame.from_ndarray(corner, "rgb24")))
        file.mux(stream.encode(None))
    data = bytearray(path.read_bytes())
    begin = data.index(b"tkhd") + 4 + 40
    one = 1 << 16
    assert struct.unpack_from(">9i", data, begin) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    a, b, c, d = MATRICES[quarters]
    rows = (one * a, one * b, 0, one * c, one * d, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, begin, *rows)
    path.write_bytes(data)
    found = open_images(ImagesConfig(path=str(tmp_path), video_seconds=0.5), executor).train
    image = found.pixels.gather(np.array([1])).image(0).mean(axis=2)
    across, down = (abs(a * 64 + c * 48), abs(b * 64 + d * 48))
    assert image.shape == (down, across)
    # The middle of the corner, from the middle of the picture.
    x, y = 8 - 32, 8 - 24
    place = (int(b * x + d * y + down / 2), int(a * x + c * y + across / 2))
    assert image[place] > 200
    assert (image > 128).mean() == pytest.approx(16 * 16 / (48 * 64), abs=0.02)


def test_a_video_that_cannot_be_read_is_listed(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    whole = write_video(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "b.mp4").write_bytes(whole[:300])
    (tmp_path / "c.mp4").write_bytes(b"no video")
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")
    config = ImagesConfig(path=str(tmp_path), video_seconds=2, max_unreadable_share=0.9)
    found = open_images(config, executor).train
    assert list(found.names) == ["1.png", "a.mp4#1", "a.mp4#2"]
    assert {one.name for one in found.skipped} == {"b.mp4", "c.mp4"}
    small = ImagesConfig(
        path=str(tmp_path), video_seconds=2, max_unreadable_share=1, max_megapixels=0.001
    )
    with pytest.raises(Exception, match=r"images\.max_megapixels"):
        open_images(small, executor)


def test_without_the_setting_videos_are_left_out() -> None:
    for end in VIDEOS:
        assert "images.video_seconds" in why_no_image(f"a{end}")
