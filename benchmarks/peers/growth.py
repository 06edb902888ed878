"""How time and memory grow with images, batch, queue and processes, and a drawing of it.

Opening is measured of sets of ever more files; links stand for most of them. The other three are
whole commands on the same images, of which the rate is the median of what the run logged.
"""

import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from peers.environments import runner_environment
from peers.results import Row
from peers.settings import Settings, jpegs
from peers.watch import Watched, watch

FILES, FILES_QUICK = (1_000, 10_000, 100_000, 1_000_000), (500, 2_000)
BATCHES, BATCHES_QUICK = (64, 256, 1024, 4096), (32, 64)
QUEUES, QUEUES_QUICK = (1_024, 16_384, 262_144, 1_048_576), (256, 1_024)
PROCESSES: Final = (1, 2)
LEARNED_FROM, LEARNED_FROM_QUICK = 16_384, 256
LINKED: Final = 500  # files that are there; the other names are links to them
SLACK: Final = 1.15  # over linear

_OPEN: Final = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from diptych.config.data import ImagesConfig
from diptych.images.open import open_images
config = ImagesConfig(path=sys.argv[1], cache_folder=sys.argv[2], cache="none")
with ThreadPoolExecutor(int(sys.argv[3])) as executor:
    begun = time.perf_counter()
    found = open_images(config, executor).train
    print(time.perf_counter() - begun, len(found))
"""

Curve = Mapping[int, tuple[float, float]]
"""Seconds and megabytes, by the size that grows."""


def growth(settings: Settings) -> list[Row]:
    """Exponents of time over size: one is linear. Draws the curves beside the results."""
    curves = {
        "images, opened the first time": opening(settings),
        "batch, an image's step": batches(settings),
        "queue, an image's step": queues(settings),
        "processes, an image's step": processes(settings),
    }
    draw(curves, settings.scratch / "growth.svg")
    rows = []
    for name, curve in curves.items():
        sizes = sorted(curve)
        first, last = curve[sizes[0]], curve[sizes[-1]]
        case = f"{name}: {sizes[0]:,} to {sizes[-1]:,}"
        # Time of a whole set grows as its size does; that of one image should not grow at all.
        linear = sizes[-1] / sizes[0] if name.startswith("images") else 1.0
        ratio = last[0] / first[0] / linear
        rows.append(
            Row(
                *("growth of time over linear", case, "s", last[0], {}, ratio, SLACK, "at most"),
                notes={"seconds and megabytes": {str(size): curve[size] for size in sizes}},
            )
        )
    return rows


def opening(settings: Settings) -> Curve:
    """Of ever more files of 32 pixels."""
    found = {}
    for count in FILES_QUICK if settings.quick else FILES:
        folder, kept = settings.scratch / f"files-{count}", settings.scratch / "index"
        _fill(folder, jpegs(settings.scratch / "linked", LINKED, 32), count)
        threads = str(len(os.sched_getaffinity(0)))
        command = [sys.executable, "-c", _OPEN, str(folder), str(kept), threads]
        log = settings.scratch / "opening.log"
        watched = watch(command, runner_environment(), log, memory=True)
        found[count] = (float(log.read_text().split()[-2]), watched.megabytes)
        print(f"{count:,} files: {found[count]}", flush=True)
        shutil.rmtree(folder)
        shutil.rmtree(kept, ignore_errors=True)
    return found


def _fill(folder: Path, linked: Path, count: int) -> None:
    """Class folders of so many names for a few files."""
    files = sorted((linked / "train").rglob("*.jpg"))
    for number in range(count):
        place = folder / f"class{number % 10}" / f"{number:07d}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        os.link(files[number % len(files)], place)


def batches(settings: Settings) -> Curve:
    """Of SimCLR, whose loss compares all views of a batch."""
    sizes = BATCHES_QUICK if settings.quick else BATCHES
    return {size: _run(settings, f"batch {size}", "--batch-size", str(size)) for size in sizes}


def queues(settings: Settings) -> Curve:
    """Of MoCo v2."""
    sizes = QUEUES_QUICK if settings.quick else QUEUES
    moco = ("--recipe", "moco_v2", "--method.dictionary.queue.size")
    return {size: _run(settings, f"queue {size}", *moco, str(size)) for size in sizes}


def processes(settings: Settings) -> Curve:
    """Of SimCLR with one thread in each process: the time should fall; here it is a core's."""
    found = {}
    for count in PROCESSES:
        threads = ("--threads", str(count))
        seconds, megabytes = _run(settings, f"{count} processes", *threads, processes=count)
        found[count] = (count * seconds, megabytes)
    return found


def _run(settings: Settings, name: str, *flags: str, processes: int = 1) -> tuple[float, float]:
    """Seconds of an image's step, and peak memory, of one whole command."""
    count = LEARNED_FROM_QUICK if settings.quick else LEARNED_FROM
    images = jpegs(settings.scratch / f"grown-{count}", math.ceil(1.25 * count), 32)
    out = settings.scratch / "grown"
    shutil.rmtree(out, ignore_errors=True)
    verb = ["pretrain", str(images / "train"), "--scale", "tiny", "--encoder.pool", "1"]
    verb += ["--views.side-pixels", "32", "--epochs", "2", "--probe.log-every-steps", "1"]
    verb += ["--no-report", "--quiet", "--out", str(out), *flags]
    if processes > 1:
        verb = ["launch", "--nproc-per-node", str(processes), "--", *verb]
    watched = watch(
        [sys.executable, "-m", "diptych", *verb],
        runner_environment(),
        settings.scratch / "grown.log",
        memory=True,
    )
    return _report(name, out, watched)


def _report(name: str, out: Path, watched: Watched) -> tuple[float, float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["views_per_second"] for line in lines[1:]]
    found = (2 / statistics.median(rates), watched.megabytes)
    print(f"{name}: {found}", flush=True)
    return found


def draw(curves: Mapping[str, Curve], file: Path) -> None:
    """Time and memory over each size, both axes logarithmic, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    figure, places = pyplot.subplots(2, len(curves), figsize=(3 * len(curves), 5), squeeze=False)
    for column, (name, curve) in enumerate(curves.items()):
        sizes = sorted(curve)
        parts: Sequence[tuple[str, int]] = (("seconds", 0), ("MB", 1))
        for unit, row in parts:
            place = places[row][column]
            place.loglog(sizes, [curve[size][row] for size in sizes], marker="o", color="black")
            place.set_xlabel(name.partition(",")[0])
            place.set_ylabel(unit)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
