"""Frames of videos: the second view from another frame, near in time."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import diptych
from diptych.config.data import ImagesConfig
from diptych.images.groups import groups_of

VIDEOS, LEARNED, HELD_OUT, SIDE = 24, 24, 8, 32


def bumps(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Places and signs of the spots of a pattern."""
    return np.column_stack([rng.uniform(-5, 5, (count, 2)), rng.choice([-1.0, 1.0], count)])


def frame(pattern: NDArray[np.float64], time: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The pattern of a video, which moves, turns and changes its light, before other scenery."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float64)
    angle, drift = np.sin(0.13 * time), 4.0 * np.array([np.sin(0.41 * time), np.cos(0.37 * time)])
    scenery = rng.normal(0, 1, (4, 4)).repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)
    picture = 0.35 * scenery
    for down, right, sign in pattern:
        turned = (
            SIDE / 2 + drift[0] + down * np.cos(angle) - right * np.sin(angle),
            SIDE / 2 + drift[1] + down * np.sin(angle) + right * np.cos(angle),
        )
        picture = picture + 1.6 * sign * np.exp(
            -((rows - turned[0]) ** 2 + (columns - turned[1]) ** 2) / 5.0
        )
    light = 1.0 + 0.4 * np.sin(0.3 * time)
    grey = np.clip(128 + 45 * light * picture, 0, 255).astype(np.uint8)
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames of made videos; the last of each, later in its course, are held out."""
    folder, rng = tmp_path_factory.mktemp("videos"), np.random.default_rng(0)
    for video in range(VIDEOS):
        pattern = bumps(rng, 5)
        for time in range(LEARNED + HELD_OUT):
            part = "train" if time < LEARNED else "test"
            place = folder / part / f"video{video:02d}"
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame(pattern, time, rng)).save(place / f"{time:04d}.png")
    return folder


def knn(videos: Path, out: Path, **more: Any) -> tuple[float, float]:
    """Share of held-out frames whose video is found, by the trained and the untrained encoder."""
    run = diptych.pretrain(
        videos,
        out=out,
        quiet=True,
        recipe="simclr",
        scale="tiny",
        epochs=40,
        threads=1,
        **{
            "encoder.width": 16,
            "training.batch_size": 64,
            "optimizer.learning_rate": 0.5,
            "views.policy": "crop(area=0.5..1) + flip",
            "probe.health_every_epochs": 40,
            **more,
        },
    )
    found = diptych.evaluate(run, protocols=("knn",))["knn"]
    return found["trained"], found["untrained"]


@pytest.mark.slow
def test_frames_near_in_time_tell_videos_apart(videos: Path, tmp_path: Path) -> None:
    """Views alone keep the scenery, which frames of a video do not share."""
    near = {"images.group_by": "folder", "images.group_within": 4}
    alone, untrained = knn(videos, tmp_path / "views")
    together, _ = knn(videos, tmp_path / "time", **near)
    # Chance is 4%, the untrained encoder finds 9%.
    assert alone > untrained
    assert together > alone + 0.05, (together, alone, untrained)


@pytest.mark.slow
def test_frames_of_a_film_are_partners_by_seconds(tmp_path: Path) -> None:
    """A folder of films, decoded by PyAV; two processes would see the same partners."""
    av = pytest.importorskip("av")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        pattern, written = bumps(rng, 5), io.BytesIO()
        with av.open(written, "w", format="mp4") as file:
            stream = file.add_stream("mpeg4", rate=10)
            stream.width = stream.height = SIDE
            for time in range(40):
                picture = av.VideoFrame.from_ndarray(frame(pattern, time, rng), format="rgb24")
                file.mux(stream.encode(picture))
            file.mux(stream.encode(None))
        (tmp_path / f"{name}.mp4").write_bytes(written.getvalue())
    config = ImagesConfig(
        path=str(tmp_path), video_seconds=0.5, group_by="name:(.*)#", group_within=1.0
    )
    names = [f"{name}.mp4#{number}" for name in ("one", "two") for number in range(1, 9)]
    groups = groups_of(names, config)
    assert groups is not None
    assert groups.counts.tolist() == 2 * [3, 4, 5, 5, 5, 5, 4, 3]
    settings: dict[str, Any] = {
        "encoder.width": 4,
        "training.batch_size": 8,
        "images.video_seconds": 0.5,
        "images.group_by": "name:(.*)#",
        "images.group_within": 1.0,
    }
    run = diptych.pretrain(
        tmp_path, out=tmp_path / "run", quiet=True, epochs=2, threads=1, **settings
    )
    assert (run / "encoder.safetensors").exists()
