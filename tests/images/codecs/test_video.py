"""Frames of a video that PyAV makes here: the right ones, at the right times."""

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
