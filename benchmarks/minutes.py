"""How long a run of so many minutes takes, report included, as a command of its own.

Wanted: within a tenth of the minutes. Other programs that start or end meanwhile move the end by
what evaluation and report take longer or shorter.

    python benchmarks/minutes.py --data FOLDER   # every set in FOLDER, of 5 and 20 minutes each
    python benchmarks/minutes.py --data FOLDER --minutes 5
    python benchmarks/minutes.py --quick         # 128 images made here, of half a minute
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measuring import Figure, add_arguments, publish
from PIL import Image

from diptych.images.sources.known_sets import whole_photographs

TOLERANCE = 0.1
MINUTES, MINUTES_QUICK = (5.0, 20.0), (0.5,)
PICTURES_QUICK, SIDE_QUICK = 128, 128


def fill(folder: Path) -> None:
    """Two class folders of photographs."""
    pictures = [Image.fromarray(one) for one in whole_photographs()]
    for number in range(PICTURES_QUICK):
        path = folder / f"class{number % 2}" / f"{number:03d}.jpg"
        path.parent.mkdir(exist_ok=True)
        picture = pictures[number % len(pictures)].rotate(number)
        picture.resize((SIDE_QUICK, SIDE_QUICK)).save(path, quality=90)


def measure(images: Path, minutes: float, out: Path) -> Figure:
    """By how much of the minutes the command ended too early or too late."""
    command = [sys.executable, "-m", "diptych", "pretrain", str(images), "--minutes", str(minutes)]
    begun = time.monotonic()
    done = subprocess.run([*command, "--out", str(out)], check=True, capture_output=True, text=True)
    taken = (time.monotonic() - begun) / 60
    said = next(one for one in done.stdout.splitlines() if f"{minutes:g} minute" in one)
    print(f"{images.name}: {minutes:g} minutes wanted, {taken:.2f} taken. {said}", flush=True)
    name = f"{images.name}, {minutes:g} minutes: |taken - wanted| over wanted"
    return Figure(name, abs(taken / minutes - 1), TOLERANCE, "at most")


def main() -> None:
    """Runs every set for every length."""
    parser = add_arguments(__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="holds sets of images")
    parser.add_argument("--minutes", type=float, nargs="+", metavar="M", help="of each run")
    flags = parser.parse_args()
    lengths = flags.minutes or (MINUTES_QUICK if flags.quick else MINUTES)
    if flags.data is None and not flags.quick:
        parser.error("give --data FOLDER, or --quick")
    with tempfile.TemporaryDirectory() as place:
        if flags.quick:
            sets = [Path(place) / "photographs"]
            sets[0].mkdir()
            fill(sets[0])
        else:
            sets = sorted(one for one in flags.data.iterdir() if one.is_dir())
        figures = [
            measure(one, minutes, Path(place) / f"{one.name}-{minutes:g}")
            for one in sets
            for minutes in lengths
        ]
    publish(figures, "Runs of so many minutes", flags.json)


if __name__ == "__main__":
    main()
