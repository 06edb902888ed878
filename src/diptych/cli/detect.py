"""The verb `detect`: detectors on a run's ResNet and on an untrained one."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional, arg

from diptych.cli.flags import DeviceOptions, parse
from diptych.config.downstream import DetectionConfig
from diptych.runtime.console import ProgressBars


@dataclass(frozen=True)
class DetectFlags:
    """What `diptych detect` takes."""

    run: Positional[Path]
    """A run folder whose training has ended, of a ResNet-18 to -152."""
    data: str
    """Images with boxes: a folder in Pascal VOC's layout, or with COCO's JSON files.
    docs/detection.md says more."""
    train_part: str = "train"
    """The part to train on."""
    test_part: str = "test"
    """The part to measure on."""
    settings: Annotated[DetectionConfig, arg(name="")] = field(default_factory=DetectionConfig)
    runtime: Annotated[DeviceOptions, arg(name="")] = field(default_factory=DeviceOptions)


COMMON: Final = {
    "images": ("data", "train_part", "test_part", "side"),
    "training": (
        *("epochs", "batch_size", "learning_rate", "schedule", "norm", "seeds", "device"),
    ),
}
"""Flags that most people need."""


def detect(arguments: Sequence[str]) -> None:
    """Measure how well a run's ResNet finds objects, as the backbone of a Faster R-CNN.

    The same detectors are trained on untrained ResNets. Writes detection.json; interrupted, the
    same command continues. Needs the extra diptych[detection].

    Examples:
      diptych detect runs/cells --data BCCD
      diptych detect runs/cells --data BCCD --side 160 --epochs 10 --seeds 3 --norm frozen
    """
    flags = parse(DetectFlags, detect, arguments, common=COMMON)

    from diptych.evaluation.detection.protocol import measure_detection

    console = Console(markup=False)

    def tell(backbone: str, seed: int, was_there: bool) -> None:
        done = "found" if was_there else "done"
        console.print(f"Detector on the {backbone} ResNet, seed {seed}: {done}.", highlight=False)

    with ProgressBars(console) as bars:
        found = measure_detection(
            flags.run,
            flags.data,
            flags.settings,
            train_part=flags.train_part,
            test_part=flags.test_part,
            progress=bars,
            on_cell=tell,
            **asdict(flags.runtime),
        )
    _print_detection(console, found)


def _print_detection(console: Console, found: dict[str, Any]) -> None:
    protocol, backbones = found["protocol"], found["backbones"]
    table = Table(
        title=f"Detection in {protocol['test_images']:,} images, {protocol['seeds']} seed(s) (in "
        "brackets: 95% of resamples)",
        title_justify="left",
    )
    rows = ("pretrained", "untrained")
    for column in ("", *rows, "difference"):
        table.add_column(column, justify="right" if column else "left")
    for name in found["difference"]:
        figures = [*(backbones[row]["figures"][name] for row in rows), found["difference"][name]]
        table.add_row(name, *(_interval_in_points(one) for one in figures))
    console.print(table)
    for remark in (found["split"]["words"], *found["remarks"]):
        console.print(remark, highlight=False)


def _interval_in_points(figure: dict[str, Any]) -> str:
    if figure["value"] is None:
        return "no boxes"
    value, low, high = (100 * figure[key] for key in ("value", "low", "high"))
    return f"{value:.1f} ({low:.1f} .. {high:.1f})"
