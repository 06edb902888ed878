"""Windows of photographs: which pixels they hold, and what a run on them keeps of photographs."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import diptych
from conftest import open_folder
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.diagnostics.health import build_health
from diptych.errors import ConfigError
from diptych.evaluation.protocols import evaluate
from diptych.images.collection import Collection, ImageSet
from diptych.images.groups import find_groups
from diptych.images.open import from_array
from diptych.images.pixels import DecodedPixels
from diptych.images.windows import in_windows
from diptych.models.weights import load_trained_on
from diptych.runs.folder import RunFolder
from diptych.views.batches import Order, ViewBatches

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
SMALL: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 8,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 32,
    "training.threads": 1,
    "probe.images": 16,
    "images.windows": 2,
}


def numbered(height: int, width: int, count: int = 3) -> ImageSet:
    """Images whose pixels say where they lie: row, column and image."""
    places = np.meshgrid(range(height), range(width), range(count), indexing="ij")
    stack = np.stack(places, axis=-1).astype(np.uint8).transpose(2, 0, 1, 3)
    return from_array(stack, None, ImagesConfig(path="x"))


@pytest.mark.parametrize("windows", [2, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(60, 90), (61, 97), (100, 50)])
def test_windows_cover_the_photograph_and_overlap_by_half(
    windows: int, height: int, width: int
) -> None:
    images = numbered(height, width)
    cut = in_windows(images, windows, side_pixels=8)
    assert len(cut) == len(cut.pixels) == 3 * windows**2
    batch = cut.pixels.gather(np.arange(len(cut)))
    assert np.array_equal(batch.heights, cut.heights)
    assert np.array_equal(batch.widths, cut.widths)
    for photograph in range(3):
        seen = np.zeros((height, width), dtype=int)
        starts = []
        for number in range(windows**2):
            window = batch.image(photograph * windows**2 + number).astype(int)
            assert (window[..., 2] == photograph).all()
            rows, columns = window[:, 0, 0], window[0, :, 1]
            assert (np.diff(rows) == 1).all()
            assert (np.diff(columns) == 1).all()
            assert (window[..., 0] == rows[:, None]).all()
            assert (window[..., 1] == columns).all()
            seen[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] += 1
            starts.append((rows[0], columns[0]))
            # Half of the next window lies in this one, to a pixel.
            for side, length in ((height, len(rows)), (width, len(columns))):
                assert abs(length - side / (windows + 1) * 2) < 1
        # Of what cannot be divided, less than two pixels are left over at the far ends.
        assert seen[: height - 1, : width - 1].min() >= 1
        for number, (top, left) in enumerate(starts):
            row, column = divmod(number, windows)
            assert abs(top - row * height / (windows + 1)) < 1
            assert abs(left - column * width / (windows + 1)) < 1


def test_windows_come_in_any_order_and_of_a_photograph_as_it_is_decoded(
    tmp_path: Path, executor: ThreadPoolExecutor, rng: np.random.Generator
) -> None:
    for number in range(4):
        pixels = rng.integers(0, 256, (160, 240, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.jpg")
    config = ImagesConfig(path=str(tmp_path), decoded_side=80, cache="none")
    images = open_folder(tmp_path, config, executor)
    cut = in_windows(images, 3, side_pixels=16)
    indices = np.array([35, 0, 9, 9, 1])
    batch = cut.pixels.gather(indices)
    whole = images.pixels.gather(np.arange(4))  # at half of its size
    assert (whole.heights[0], whole.widths[0]) == (80, 120)
    for place, (photograph, top, left) in enumerate(
        [(3, 40, 60), (0, 0, 0), (1, 0, 0), (1, 0, 0), (0, 0, 30)]
    ):
        wanted = whole.image(photograph)[top : top + 40, left : left + 60]
        assert np.array_equal(batch.image(place), wanted)
    full = cut.decoded_for(replace(config, decoded_side=None))
    assert full.pixels.gather(indices).heights.tolist() == [80] * 5


def test_a_photograph_is_decoded_once(
    tmp_path: Path, executor: ThreadPoolExecutor, rng: np.random.Generator
) -> None:
    for number in range(3):
        pixels = rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    config = ImagesConfig(path=str(tmp_path), cache="memory")
    images = open_folder(tmp_path, config, executor).decoded_for(config)
    decoded = list[int]()
    with pytest.MonkeyPatch.context() as patch:
        original = DecodedPixels.decode_into

        def counted(self: DecodedPixels, index: int, room: Any) -> None:
            decoded.append(index)
            original(self, index, room)

        patch.setattr(DecodedPixels, "decode_into", counted)
        cut = in_windows(images, 2, side_pixels=16)
        for _ in range(2):
            cut.pixels.gather(np.arange(12))
    assert sorted(decoded) == [0, 1, 2]


def test_windows_have_the_photographs_names_labels_and_groups(executor: ThreadPoolExecutor) -> None:
    images = replace(
        numbered(40, 40, 4),
        names=["a/1", "a/2", "b/1", "b/2"],
        labels=np.array([0, 0, 1, -1]),
        classes=("a", "b"),
    )
    cut = in_windows(images, 2, side_pixels=16)
    assert list(cut.names) == [name for name in images.names for _ in range(4)]
    assert cut.labels is not None
    assert cut.labels.tolist() == [0] * 8 + [1] * 4 + [-1] * 4
    groups = find_groups(cut.names, "folder")
    assert groups.numbers.tolist() == [0] * 8 + [1] * 8
    views = ViewsConfig(side_pixels=16, policy="crop + flip")
    batches = ViewBatches(cut, Order(0, len(cut), 8), views, executor, view_count=2, groups=groups)
    batch = batches.at(0)
    assert batch.groups is not None
    assert len(batch.views) == 2
    assert in_windows(images, 1, side_pixels=16) is images


def test_windows_smaller_than_a_view_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"windows = 3 .* 40 pixels into windows of 20, smaller"):
        in_windows(numbered(40, 60), 3, side_pixels=32)
    with pytest.raises(ConfigError, match=r"images\.windows must lie between 1 and 8; got 9"):
        ImagesConfig(windows=9)


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(32)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


@pytest.mark.slow
def test_evaluation_and_record_are_of_whole_photographs(images: Path, tmp_path: Path) -> None:
    def run(name: str, windows: int) -> RunFolder:
        settings = {**SMALL, "images.windows": windows, "epochs": 1}
        return RunFolder(diptych.pretrain(images, out=tmp_path / name, quiet=True, **settings))

    cut, whole = run("cut", 2), run("whole", 1)
    seen, seen_whole = (load_trained_on(one.trained_on) for one in (cut, whole))
    assert seen is not None
    assert seen_whole is not None
    assert np.array_equal(seen.checksums, seen_whole.checksums)
    split = evaluate(cut.path, ["knn"])["protocol"]
    assert split["train_images"] + split["test_images"] == 32
    untrained = [evaluate(one.path, ["knn"])["knn"]["untrained"] for one in (cut, whole)]
    assert untrained[0] == untrained[1]
    steps = [len(one.metrics.read_text().splitlines()) for one in (cut, whole)]
    assert steps == [2, 1]  # after the first and the last step: 4 of 128 windows; 1 of 32 images


def test_health_is_measured_on_windows_of_photographs_from_all_of_the_set(
    executor: ThreadPoolExecutor,
) -> None:
    photographs = numbered(40, 40, 90)
    collection = Collection(photographs, None, "")
    views = ViewsConfig(side_pixels=8, policy="center")
    health = build_health(collection, views, executor, image_count=30, windows=3)
    cut = in_windows(photographs, 3, side_pixels=8)
    batch = cut.pixels.gather(health.sample_indices)
    of_photographs = [int(batch.image(place)[0, 0, 2]) for place in range(len(batch.heights))]
    assert of_photographs[0] == 0
    assert of_photographs[-1] == 89
    assert len(set(of_photographs)) == len(of_photographs)
