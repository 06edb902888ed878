"""Does comparing places help a detector? MoCo v2 and DenseCL at one budget, on blood cells.

Both learn from the photographs of the training part alone, without their boxes, and each becomes
the backbone of detectors; the same detectors on untrained networks stand beside them.

    python benchmarks/dense.py --data BCCD      # Pascal VOC's layout; hours on two cores
    python benchmarks/dense.py --data BCCD --quick --json quick.json

Runs and detectors are kept in `--keep`, so that a benchmark that was stopped goes on.
"""

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
from measuring import Figure, add_arguments, publish
from rich.console import Console
from rich.table import Table

from diptych.config.downstream import DetectionConfig
from diptych.evaluation.detection.protocol import measure_detection
from diptych.pretraining import pretrain

RECIPES: Final = ("moco_v2", "densecl")
NAMES: Final = ("mAP", "AP50", "AP75")
POLICY: Final = (
    "crop(area=0.2..1) + flip + vertical_flip"
    " + color(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)"
)
SETTINGS: Final[Mapping[str, Any]] = {
    "scale": "small",
    "encoder.name": "resnet18",
    "views.policy": POLICY,
    "images.windows": 2,
    "method.dictionary.queue.size": 1024,
    "schedule.warmup_epochs": 2.0,
}
"""Of both runs. The network is the recipe's; smears look alike, so views and rate are mild."""

WHOLE: Final[Mapping[str, Any]] = {
    "views.side_pixels": 112,  # maps of 4 x 4 places
    "training.batch_size": 64,
    "training.epochs": 40,
}
QUICK: Final[Mapping[str, Any]] = {
    "views.side_pixels": 64,
    "training.batch_size": 16,
    "training.epochs": 2,
    "probe.images": 64,
}
QUICK_IMAGES: Final = {"train": 12, "test": 6}
WARMUP: Final = 100  # of some 500 steps
DETECTORS: Final = DetectionConfig(
    epochs=6, learning_rate=0.02, side=128, pyramid_channels=64, proposals=128, seeds=3
)
DETECTORS_QUICK: Final = DetectionConfig(
    epochs=1, learning_rate=0.02, side=64, pyramid_channels=32, proposals=32, seeds=1
)


def main() -> None:
    """Runs the benchmark."""
    parser = add_arguments(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="photographs with boxes")
    parser.add_argument("--keep", type=Path, help="folder of runs and detectors")
    parser.add_argument("--threads", type=int, help="of training; all cores when not given")
    asked = parser.parse_args()
    with ExitStack() as opened:
        keep = asked.keep or Path(opened.enter_context(tempfile.TemporaryDirectory()))
        keep.mkdir(parents=True, exist_ok=True)
        if asked.quick:
            asked.data = part_of(asked.data, keep / "part")
        photographs = listed(asked.data, keep)
        found = {recipe: measured(recipe, photographs, keep, asked) for recipe in RECIPES}
    show(found)
    publish(figures(found), "Dense positives for detection", asked.json)


def part_of(data: Path, folder: Path) -> Path:
    """A copy of the first photographs of either part, in the same layout."""
    for sub in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / sub).mkdir(parents=True, exist_ok=True)
    for part, count in QUICK_IMAGES.items():
        names = (data / f"ImageSets/Main/{part}.txt").read_text().split()[:count]
        (folder / f"ImageSets/Main/{part}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            for file in (f"JPEGImages/{name}.jpg", f"Annotations/{name}.xml"):
                shutil.copyfile(data / file, folder / file)
    return folder


def listed(data: Path, keep: Path) -> Path:
    """A list of the photographs of the training part."""
    names = (data / "ImageSets/Main/train.txt").read_text().split()
    file = keep / "photographs.txt"
    paths = (str((data / "JPEGImages" / f"{name}.jpg").absolute()) for name in names)
    file.write_text("\n".join(paths) + "\n")
    return file


def measured(recipe: str, photographs: Path, keep: Path, asked: Namespace) -> dict[str, Any]:
    """Pretrains by a recipe, and detects; the figures of both backbones."""
    folder = keep / recipe
    settings: dict[str, Any] = {**SETTINGS, **(QUICK if asked.quick else WHOLE)}
    if asked.threads is not None:  # a setting that is given must be that of the run that goes on
        settings["training.threads"] = asked.threads
    if recipe == "densecl":
        settings["method.dense.warmup_steps"] = 2 if asked.quick else WARMUP
    pretrain(
        photographs,
        out=folder,
        resume=True,
        recipe=recipe,
        **settings,
    )
    config = DETECTORS_QUICK if asked.quick else DETECTORS
    return measure_detection(folder, asked.data, config, threads=asked.threads)


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Prints average precisions in %, with intervals; the untrained network once."""
    table = Table(title="Average precision, % (95% interval)", title_justify="left")
    rows = {"untrained": found[RECIPES[0]]["backbones"]["untrained"]}
    rows |= {recipe: one["backbones"]["pretrained"] for recipe, one in found.items()}
    for column in ("", *rows):
        table.add_column(column, justify="right" if column else "left")
    for name in next(iter(rows.values()))["figures"]:
        table.add_row(name, *(in_points(one["figures"][name]) for one in rows.values()))
    Console().print(table)


def in_points(figure: Mapping[str, float | None]) -> str:
    """A figure with its interval, in points."""
    if figure["value"] is None:
        return "no boxes"
    value, low, high = (100 * (figure[key] or 0.0) for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} to {high:.1f})"


def figures(found: Mapping[str, Mapping[str, Any]]) -> list[Figure]:
    """By how many points DenseCL is above MoCo v2, and above the untrained network."""

    def points(recipe: str, backbone: str, name: str) -> float:
        seeds = found[recipe]["backbones"][backbone]["seeds"]
        return 100 * float(np.mean([one[name] for one in seeds]))

    made = []
    for name in NAMES:
        dense = points("densecl", "pretrained", name)
        moco = points("moco_v2", "pretrained", name)
        untrained = points("densecl", "untrained", name)
        made.append(Figure(f"{name}: densecl less moco_v2, points", dense - moco, 0.0))
        made.append(Figure(f"{name}: densecl less untrained, points", dense - untrained, 0.0))
    return made


if __name__ == "__main__":
    main()
