"""How fast images are read from shards against a folder, and what a million paths weigh.

Reading: the same JPEG files in a folder and in tar shards, decoded at every use by the same calls
of ``gather`` in threads, in the same random order. The two alternate; the figure is the median over
rounds of images per second from shards over those from the folder.

Memory: a list of 1,000,000 paths, which name a few thousand tiny JPEGs again and again, is opened
in a process of its own, with the decoded images kept nowhere. The figure is what that process holds
afterwards (VmRSS) above one that opens 1,000 paths; the peak (VmHWM) is compared alike.

    python benchmarks/loader.py --images DIR    # about five minutes on two cores
    python benchmarks/loader.py --quick         # a small list; folder and shards only with --images
"""

import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from measuring import Figure, add_arguments, publish, resident_bytes
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.images.collection import ImageSet
from diptych.images.open import open_images
from diptych.images.tree import walk

SPEED_GOALS = (0.9, 1.1)
MEMORY_GOAL = 400.0  # MB
SHARD_FILES = 100
CHUNK = 8  # images that a thread gathers at once
ROUNDS, ROUNDS_QUICK = 15, 3
PATHS, PATHS_QUICK, PATHS_BASE = 1_000_000, 20_000, 1_000
TINY_FILES, TINY_SIDE = 2_000, 32
KINDS: tuple[Literal["VmRSS", "VmHWM"], ...] = ("VmRSS", "VmHWM")


def shard(folder: Path, out: Path) -> None:
    """Writes the images of a folder into tar shards, in the same order."""
    names = walk(folder).names_in()
    for start in range(0, len(names), SHARD_FILES):
        with tarfile.open(out / f"{start // SHARD_FILES:06d}.tar", "w") as tar:
            for name in names[start : start + SHARD_FILES]:
                tar.add(os.path.realpath(folder / name), arcname=name)


def images_per_second(images: ImageSet, order: np.ndarray, executor: ThreadPoolExecutor) -> float:
    """One pass over the images, in chunks, over the threads."""
    chunks = [order[start : start + CHUNK] for start in range(0, len(order), CHUNK)]
    begun = time.perf_counter()
    for _ in executor.map(images.pixels.gather, chunks):
        pass
    return len(order) / (time.perf_counter() - begun)


def compare_reading(folder: Path, rounds: int) -> list[Figure]:
    """Images per second from shards over those from the folder, a median over rounds."""
    config, threads = ImagesConfig(cache="none"), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as aside, ThreadPoolExecutor(threads) as executor:
        shard(folder, Path(aside))
        paths = {"folder": folder, "shards": Path(aside)}
        sets = {
            name: open_images(replace(config, path=str(path)), executor).train
            for name, path in paths.items()
        }
        speeds: dict[str, list[float]] = {name: [] for name in sets}
        generator = np.random.default_rng(0)
        for number in range(rounds):
            order = generator.permutation(len(sets["folder"]))
            for name in list(sets)[:: 1 if number % 2 else -1]:
                speeds[name].append(images_per_second(sets[name], order, executor))
    medians = {name: statistics.median(found) for name, found in speeds.items()}
    print(", ".join(f"{name}: {speed:.0f} images per second" for name, speed in medians.items()))
    ratio = statistics.median(map(float.__truediv__, speeds["shards"], speeds["folder"]))
    least, most = SPEED_GOALS
    return [
        Figure("speed from shards / from a folder", ratio, least),
        Figure("the same, from above", ratio, most, "at most"),
    ]


def write_tiny(folder: Path) -> None:
    """A few thousand JPEGs of the size of CIFAR's."""
    generator = np.random.default_rng(0)
    for number in range(TINY_FILES):
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        side = (TINY_SIDE, TINY_SIDE)
        picture = Image.fromarray(coarse).resize(side, Image.Resampling.BICUBIC)
        picture.save(folder / f"{number:06d}.jpg", quality=90)


def open_list(path: Path) -> None:
    """In a process of its own: opens a list and prints what the process holds then."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as executor:
        images = open_images(ImagesConfig(path=str(path), cache="none"), executor).train
        held = {kind: resident_bytes(kind) for kind in KINDS}
    print(json.dumps({**held, "images": len(images)}))


def compare_memory(count: int) -> list[Figure]:
    """Megabytes that a list of so many paths takes above one of a thousand."""
    held = []
    with tempfile.TemporaryDirectory(prefix="a-folder-with-a-name-of-usual-length-") as aside:
        folder = Path(aside)
        write_tiny(folder)
        for paths in (PATHS_BASE, count):
            text = folder / f"{paths}.txt"
            names = (f"{folder}/{number % TINY_FILES:06d}.jpg\n" for number in range(paths))
            with open(text, "w") as file:
                file.writelines(names)
            command = [sys.executable, __file__, "--open", str(text)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            assert found["images"] == paths
            held.append(found)
    return [
        Figure(f"MB of {count:,} paths ({kind})", above / 1e6, MEMORY_GOAL, "at most")
        for kind in KINDS
        for above in [held[1][kind] - held[0][kind]]
    ]


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of large JPEGs")
    parser.add_argument("--open", type=Path, help="open a list and say what that takes; then end")
    flags = parser.parse_args()
    if flags.open is not None:
        open_list(flags.open)
        return
    parts: list[Callable[[], list[Figure]]] = [
        lambda: compare_memory(PATHS_QUICK if flags.quick else PATHS)
    ]
    if flags.images is not None and flags.images.is_dir():
        rounds = ROUNDS_QUICK if flags.quick else ROUNDS
        parts.append(lambda: compare_reading(flags.images, rounds))
    else:
        print("Folder and shards are not compared: --images names no folder of JPEGs.")
    figures = [figure for part in parts for figure in part()]
    publish(figures, "Reading images", flags.json)


if __name__ == "__main__":
    main()
