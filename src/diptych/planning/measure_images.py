"""What images take on this machine: to open them, and to make their views in every step."""

import statistics
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diptych.images.collection import ImageSet, spread_indices
from diptych.images.listing import open_listing
from diptych.images.open import from_array, locate_images, open_images
from diptych.images.sources.known_sets import whole_photographs
from diptych.planning.machine import Machine
from diptych.planning.planned_run import PlannedRun
from diptych.planning.storage import ImageOpening, opening_by_rates
from diptych.runtime.device import use_threads, views_device
from diptych.views.batches import Order, ViewBatches

_OPENED: Final = 256  # images that are opened as if nothing were known of them
_MOST_VIEWED: Final = 1024  # images of which views are made
_MADE_UP: Final = 64  # images
_LEAST_REPEATS: Final = 3
_REPEAT_SECONDS: Final = 0.25


def measure_opening(run: PlannedRun, machine: Machine) -> ImageOpening:
    """Opens some of the images at the run's path with an empty index, and multiplies.

    Arrays are opened as they are: nothing is kept of them, and every time is as the first.

    Args:
        run: its images have a path.
        machine: for what is not measured.
    """
    config, rated = run.config.images, opening_by_rates(run, machine)
    begun = time.perf_counter()
    found = locate_images(config).train
    walked = time.perf_counter() - begun
    if isinstance(found, ImageSet):
        whole = walked * run.image_count / len(found)
        return replace(
            rated, first_seconds=whole, again_seconds=whole, index_bytes=0.0, measured=True
        )
    walked /= len(found.names)
    some = found.select(spread_indices(len(found.names), _OPENED))
    with (
        tempfile.TemporaryDirectory() as folder,
        ThreadPoolExecutor(use_threads(run.config.training.threads)) as executor,
    ):
        alone = replace(
            config, limit=None, cache="none", cache_folder=folder, max_unreadable_share=1.0
        )
        begun = time.perf_counter()
        open_listing(some, alone, executor)
        looked = walked + (time.perf_counter() - begun) / len(some.names)
    sizes = [len(some.read(place)) for place in range(len(some.names))]
    return replace(
        rated,
        first_seconds=run.image_count * looked,
        again_seconds=max(rated.again_seconds, run.image_count * walked),
        read_bytes=run.image_count * statistics.fmean(sizes),
        measured=True,
    )


def measure_views(
    run: PlannedRun,
    images: ImageSet | None,
    executor: Executor,
    *,
    most: int = _MOST_VIEWED,
) -> float:
    """Seconds of all views of a process's images, decoding included where every step does it."""
    config, count = run.config, min(run.images, most)
    with sample_images(run, images, executor) as found:
        taken = np.arange(count, dtype=np.int64) % len(found)
        batches = ViewBatches(
            found,
            Order(config.seed, len(found), 1),
            config.views,
            executor,
            view_count=config.method.views,
            device=views_device(config.views.applier, torch.device(config.training.device)),
        )
        batches.of(taken, epoch=0)
        times, ends = list[float](), time.perf_counter() + _REPEAT_SECONDS
        while len(times) < _LEAST_REPEATS or time.perf_counter() < ends:
            begun = time.perf_counter()
            batches.of(taken, epoch=0)
            times.append(time.perf_counter() - begun)
    return statistics.median(times) * run.images / count


@contextmanager
def sample_images(
    run: PlannedRun, given: ImageSet | None, executor: Executor
) -> Iterator[ImageSet]:
    """The given images, or made up ones of the size that is planned for: photographs.

    They are arrays where decoded images are kept, and JPEG files otherwise.
    """
    if given is not None:
        yield given.decoded_for(run.config.images)
        return
    config = replace(run.config.images, limit=None, cache="none")
    pictures = _pictures(round(run.image_pixels**0.5), config.channels)
    if run.kept_bytes or config.channels not in (1, 3):
        yield from_array(pictures, None, config)
        return
    with tempfile.TemporaryDirectory() as folder:
        for number, picture in enumerate(pictures):
            Image.fromarray(picture.squeeze()).save(Path(folder) / f"{number}.jpg", quality=90)
        # What is known of them goes with them.
        here = replace(config, path=folder, cache_folder=folder)
        yield open_images(here, executor).train.decoded_for(config)


def _pictures(side: int, channels: int) -> NDArray[np.uint8]:
    """(images, side, side, channels) of the built-in photographs, resized."""
    found = list[NDArray[np.uint8]]()
    for picture in whole_photographs():
        resized = Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC)
        found.append(np.asarray(resized)[..., np.arange(channels) % 3])
    return np.stack([found[number % len(found)] for number in range(_MADE_UP)])
