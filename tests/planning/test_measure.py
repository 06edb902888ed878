"""What is measured here: real steps, each part at the run's own shape, and opened images."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.method import (
    BankConfig,
    DictionaryConfig,
    KeyEncoderConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.run import RunConfig, TrainingConfig
from diptych.errors import ConfigError
from diptych.images import index
from diptych.images.open import open_images
from diptych.methods.contrastive import build_contrastive
from diptych.planning import measure
from diptych.planning.machine import MACHINES, Machine
from diptych.planning.measure import measure_logits, measure_networks, measure_opening, measure_step
from diptych.planning.planned_run import PlannedRun
from diptych.planning.storage import opening_by_rates

CPU = MACHINES["cpu"]
LOGITS_PASSES = 1  # to see how long a vector is
BASE = RunConfig(
    views=ViewsConfig(side_pixels=16),
    encoder=EncoderConfig(width=4, stage_blocks=(1,)),
    head=HeadConfig(hidden_features=8, output_features=5),
    training=TrainingConfig(batch_size=8, threads=1, device="cpu"),
)
QUEUE = MethodConfig(
    dictionary=DictionaryConfig("queue", queue=QueueConfig(size=50)),
    key_encoder=KeyEncoderConfig("momentum"),
)
BANK = MethodConfig(dictionary=DictionaryConfig("bank", bank=BankConfig(negatives=12)))


@pytest.fixture(autouse=True)
def one_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured runs twice, of which the first time does not count."""
    monkeypatch.setattr(measure, "_LEAST_REPEATS", 1)
    monkeypatch.setattr(measure, "_REPEAT_SECONDS", 0.0)


def passes_of(run: PlannedRun, machine: Machine = CPU) -> list[int]:
    """Views of each pass of an encoder while the networks are measured, in order."""
    method, found = build_contrastive(run.config, image_count=run.image_count).train(), list[int]()
    for one in method.modules():
        if isinstance(one, nn.Conv2d) and one.in_channels == 3:
            one.register_forward_hook(lambda module, inputs, output: found.append(len(inputs[0])))
    seconds = measure_networks(run, method, machine)
    assert all(value > 0 for value in seconds.values())
    assert measure_logits(run, method) > 0
    return found[:-LOGITS_PASSES]


@pytest.mark.parametrize(
    ("method", "training", "passes"),
    [
        (MethodConfig(), {}, [16] * 2),
        (QUEUE, {}, [8] * 4),  # keys, then queries, in both steps
        (BANK, {}, [8] * 2),  # its keys are those of earlier steps
        (MethodConfig(), {"chunk_size": 2}, [4, 4] * 4),  # two chunks, each encoded twice
    ],
)
def test_networks_are_measured_in_real_steps(
    method: MethodConfig, training: dict[str, Any], passes: list[int]
) -> None:
    config = replace(BASE, method=method, training=replace(BASE.training, **training))
    assert passes_of(PlannedRun(config, image_count=20)) == passes


def test_a_step_that_takes_long_is_made_with_some_of_its_images() -> None:
    slow = replace(CPU, flops_per_second=1.0)
    run = PlannedRun(replace(BASE, training=replace(BASE.training, batch_size=64)), image_count=100)
    assert passes_of(run, slow) == [4, 4]  # two views of two images


def test_no_device_is_measured_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device as 'a100' has"):
        measure_step(PlannedRun(BASE, 100), MACHINES["a100"])


@pytest.fixture
def photographs(tmp_path: Path) -> Callable[[int, int], Path]:
    def write(count: int, side: int) -> Path:
        folder = tmp_path / f"{count}x{side}"
        folder.mkdir()
        noise = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
        for number in range(count):
            Image.fromarray(noise).save(folder / f"photograph-{number:018d}.jpg")
        return folder

    return write


def opened(folder: Path, kept: Path) -> tuple[float, float, int]:
    """Bytes that a real opening reads of the images, those of its index, and its images."""
    read, real = [0], index.checksum

    def count(data: bytes) -> tuple[int, int]:
        read[0] += len(data)
        return real(data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "checksum", count)
        with ThreadPoolExecutor(1) as executor:
            images = open_images(ImagesConfig(path=str(folder), cache_folder=str(kept)), executor)
    (file,) = kept.glob("*.index")
    return read[0], file.stat().st_size, len(images.train)


def test_an_opening_reads_and_keeps_what_is_planned(
    photographs: Callable[[int, int], Path], tmp_path: Path
) -> None:
    """The oracle is a real opening, which sums what it reads and writes an index."""
    folder = photographs(300, 24)
    read, kept, count = opened(folder, tmp_path / "kept")
    config = replace(BASE, images=ImagesConfig(path=str(folder)))
    planned = measure_opening(PlannedRun(config, count), CPU)
    assert planned.read_bytes == pytest.approx(read)
    assert 0.5 < planned.index_bytes / kept < 1.5
    assert planned.measured
    assert 0 < planned.again_seconds < planned.first_seconds


def test_measuring_leaves_no_index_behind(
    photographs: Callable[[int, int], Path], tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    images = ImagesConfig(path=str(photographs(5, 16)), cache_folder=str(kept))
    measure_opening(PlannedRun(replace(BASE, images=images), 5), CPU)
    assert not kept.exists()


def test_more_images_than_are_opened_take_more(photographs: Callable[[int, int], Path]) -> None:
    config = replace(BASE, images=ImagesConfig(path=str(photographs(5, 16))))
    few = measure_opening(PlannedRun(config, 5), CPU)
    many = measure_opening(PlannedRun(config, 5_000_000), CPU)
    assert many.first_seconds > few.first_seconds
    assert many.read_bytes == 1e6 * few.read_bytes


def test_arrays_keep_no_index(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((10, 8, 8, 3), dtype=np.uint8))
    config = replace(BASE, images=ImagesConfig(path=str(tmp_path / "images.npy")))
    opening = measure_opening(PlannedRun(config, 10), CPU)
    assert opening.index_bytes == 0.0
    assert opening.first_seconds == opening.again_seconds > 0.0


def test_by_rates_all_pixels_are_decoded_once_or_all_bytes_read() -> None:
    run = PlannedRun(BASE, 1000, image_pixels=2e6, image_bytes=1e3)
    opening = opening_by_rates(run, CPU)
    assert opening.first_seconds * CPU.views_per_second == pytest.approx(1000 * 2.1e6 / (500 * 375))
    slow = replace(CPU, read_bytes_per_second=1e4)
    assert opening_by_rates(run, slow).first_seconds == pytest.approx(100.0)
    # docs/benchmarks.md: 97 s and 1.4 s for 100,000 photographs, on two threads.
    photographs = opening_by_rates(
        PlannedRun(BASE, 100_000), replace(CPU, views_per_second=2 * 1584)
    )
    assert 0.3 < photographs.first_seconds / 97 < 3
    assert 0.3 < photographs.again_seconds / 1.4 < 3
