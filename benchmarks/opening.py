"""How long a set takes to open again, over the first time.

The same JPEG photographs are linked under many names into class folders. The first opening looks at
every file; the next ones find what is known of them, and look at the names, sizes and times alone.
Each opening is a process of its own, as a resume, an evaluation or a report is; first and second
alternate over rounds, the first with an empty folder for what is kept. Files of 32 x 32 pixels are
the hardest case, as there is hardly anything to decode.

    python benchmarks/opening.py            # 100,000 files; about six minutes on two cores
    python benchmarks/opening.py --quick    # 3,000 files
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Figure, parse_arguments, publish
from PIL import Image

from diptych.images.sources.known_sets import whole_photographs

GOAL = 0.02
FILES, FILES_QUICK = 100_000, 3_000
ROUNDS, ROUNDS_QUICK = {"photographs": 2, "tiny": 3}, {"photographs": 1, "tiny": 1}
SIZES = {"photographs": (500, 375), "tiny": (32, 32)}
DIFFERENT = 500  # pictures; the rest of the names are links to them
CLASSES = 10
SETTLED_SECONDS = 2.5  # a file that changed just now is looked at twice

OPEN = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from diptych.config.data import ImagesConfig
from diptych.images.open import open_images
config = ImagesConfig(path=sys.argv[1], cache_folder=sys.argv[2])
with ThreadPoolExecutor(int(sys.argv[3])) as executor:
    begun = time.perf_counter()
    found = open_images(config, executor).train
    print(time.perf_counter() - begun, len(found))
"""


def fill(folder: Path, size: tuple[int, int], count: int) -> None:
    """Class folders of so many JPEG files."""
    pictures = [Image.fromarray(one) for one in whole_photographs()]
    for number in range(count):
        path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(exist_ok=True)
        if number < DIFFERENT:
            picture = pictures[number % len(pictures)].rotate(number // len(pictures))
            picture.resize(size).save(path, quality=90)
        else:
            first = number % DIFFERENT
            os.link(folder / f"class{first % CLASSES}" / f"{first:06d}.jpg", path)


def seconds_to_open(folder: Path, kept: Path) -> float:
    """In a process of its own."""
    threads = str(len(os.sched_getaffinity(0)))
    command = [sys.executable, "-c", OPEN, str(folder), str(kept), threads]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(answer.split()[0])


def measure(name: str, count: int, rounds: int) -> Figure:
    """The second opening over the first, a median over rounds."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "images"
        folder.mkdir()
        fill(folder, SIZES[name], count)
        time.sleep(SETTLED_SECONDS)
        ratios = []
        for number in range(rounds):
            kept = Path(place) / f"kept{number}"
            first, second = (seconds_to_open(folder, kept) for _ in range(2))
            print(f"{name}: {first:.2f} s the first time, {second:.3f} s the second")
            ratios.append(second / first)
    width, height = SIZES[name]
    return Figure(
        f"{count:,} files of {width} x {height} opened again over the first time",
        statistics.median(ratios),
        GOAL,
        "at most",
    )


def main() -> None:
    """Measures both sizes."""
    flags = parse_arguments(__doc__)
    count, rounds = (FILES_QUICK, ROUNDS_QUICK) if flags.quick else (FILES, ROUNDS)
    figures = [measure(name, count, rounds[name]) for name in SIZES]
    publish(figures, "Opening a set again", flags.json)


if __name__ == "__main__":
    main()
