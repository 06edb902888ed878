"""How time and memory grow with images, batch, queue and processes, and a drawing of it.

Opening is measured of sets of ever more files; links stand for most of them. The other three are
whole commands on the same images, of which the rate is the median of what the run logged.

Growth is judged at its largest size: what starts cost hides it at small ones. Time is that of one
file, or of one image's step: at the largest size over the least of any smaller one. Memory is what
was added to that of the smallest size, for each file or key or image that was added: up to the
largest size over that up to the size before.
"""

import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
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
UNCERTAIN_MEGABYTES: Final = 20.0  # growth by less is taken for as much: chance may make it

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


def growth(settings: Settings) -> Iterator[Row]:
    """Exponents over size, of which one is linear. Draws the curves beside the results."""
    makers = {
        "images, opened the first time": opening,
        "batch, an image's step": batches,
        "queue, an image's step": queues,
        "processes, an image's step": processes,
    }
    curves = dict[str, Curve]()
    settings.out.mkdir(parents=True, exist_ok=True)
    for name, make in makers.items():
        curves[name] = make(settings)
        draw(curves, settings.out / "growth.svg")
        # Time of a whole set grows as its size does; that of one image should not grow at all.
        yield from rows_of(name, curves[name], whole=make is opening)


def rows_of(name: str, curve: Curve, *, whole: bool) -> Iterator[Row]:
    """The exponents of time and of memory between the last two sizes, and whether they may be.

    Args:
        name: of what grows.
        curve: measured.
        whole: whether its times are of all that is counted, and not of one image.
    """
    sizes = sorted(curve)
    case = f"{name}: {sizes[-2]:,} to {sizes[-1]:,}"
    ratios = {"time": time_growth(curve, whole=whole), "memory": memory_growth(curve)}
    for part, (what, ratio) in enumerate(ratios.items()):
        values = [curve[size][part] for size in sizes]
        notes = {
            "exponent over all sizes": exponent(sizes, values),
            what: {str(size): value for size, value in zip(sizes, values, strict=True)},
        }
        last = exponent(sizes[-2:], values[-2:])
        figure = f"growth of {what}, over linear"
        yield Row(figure, case, "exponent", last, {}, ratio, SLACK, "at most", notes)


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Slope of the straight line through the logarithms, by least squares."""
    across, up = ([math.log(one) for one in some] for some in (sizes, values))
    return statistics.linear_regression(across, up).slope


def time_growth(curve: Curve, *, whole: bool) -> float:
    """Seconds of one at the largest size, over the least at any smaller size."""
    *smaller, largest = [curve[size][0] / (size if whole else 1) for size in sorted(curve)]
    return largest / min(smaller)


def memory_growth(curve: Curve) -> float:
    """Memory that each one more took up to the largest size, over that up to the size before.

    Of two sizes alone, memory at the second over what its size allows.
    """
    first, (before, last) = min(curve), sorted(curve)[-2:]
    base = curve[first][1]
    if first == before:
        return curve[last][1] / base / (last / first)
    # What is too little to be measured is taken for as much as may be missed.
    until, all_of_it = (max(curve[size][1] - base, UNCERTAIN_MEGABYTES) for size in (before, last))
    return all_of_it / until / ((last - first) / (before - first))


def opening(settings: Settings) -> Curve:
    """Of ever more files of 32 pixels."""
    found = {}
    for count in FILES_QUICK if settings.quick else FILES:
        folder, kept = settings.scratch / f"files-{count}", settings.scratch / "index"
        for left in (folder, kept):  # by a run that was interrupted
            shutil.rmtree(left, ignore_errors=True)
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
    """Time and memory over each size, both axes logarithmic, as SVG.

    Each height is a decade at least, so that what hardly grows looks as if it did not.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator, NullFormatter

    figure, places = pyplot.subplots(2, len(curves), figsize=(3 * len(curves), 5), squeeze=False)
    for column, (name, curve) in enumerate(curves.items()):
        sizes = sorted(curve)
        parts: Sequence[tuple[str, int]] = (("seconds", 0), ("MB", 1))
        for unit, row in parts:
            place = places[row][column]
            values = [curve[size][row] for size in sizes]
            place.loglog(sizes, values, marker="o", color="black")
            place.set_xticks(sizes, [f"{size:,}" for size in sizes], rotation=30)
            middle = math.sqrt(min(values) * max(values))
            spread = max(math.sqrt(10), 1.2 * max(values) / middle)
            place.set_ylim(middle / spread, middle * spread)
            place.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            place.yaxis.set_major_formatter("{x:g}")
            for axis in (place.xaxis, place.yaxis):
                axis.set_minor_formatter(NullFormatter())
            place.set_xlabel(name.partition(",")[0])
            place.set_ylabel(unit)
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)
