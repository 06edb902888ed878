"""What each verb of the command line takes, and how it is read."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import tyro
from tyro.conf import Positional

from diptych.config_file import SHORT_NAMES, nest
from diptych.configs import (
    CheckpointConfig,
    EncoderConfig,
    HeadConfig,
    ImagesConfig,
    MethodConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainingConfig,
    ViewsConfig,
)

Flags = TypeVar("Flags")

DEMO_RUN: Final = Path("runs/demo")
_NOT_SETTINGS: Final = frozenset(
    {"path", "out", "config", "resume", "report", "quiet", "rows", "columns"}
)


@dataclass(frozen=True)
class PretrainFlags:
    """What `diptych pretrain` takes. The sections at the end hold every single setting."""

    path: Positional[str | None] = None
    """A folder of images (nested, any mix of formats), a .npz, .npy or IDX file, or the built-in
    set named photographs."""
    recipe: str = "simclr"
    """The method with its paper's settings: simclr or moco_v2."""
    scale: str | None = None
    """The size of it all: tiny (small ResNet, 32 pixels), small (ResNet-18, 96) or paper
    (ResNet-50, 224). By default chosen from the images' size and the device."""
    out: Path | None = None
    """The run folder. A new one under runs/ by default."""
    config: Path | None = None
    """A TOML file with settings; they override the recipe's, and flags override them."""
    resume: bool = False
    """Go on from the newest good checkpoint of --out; begin there if it has none."""
    epochs: int | None = None
    """Passes over the images; short for --training.epochs."""
    batch_size: int | None = None
    """Images in a batch; short for --training.batch-size."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""
    threads: int | None = None
    """CPU threads; all cores by default. Short for --training.threads."""
    report: bool = True
    """Evaluate (where there are labels) and write the report when training ends."""
    quiet: bool = False
    """Show nothing but errors."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)


@dataclass(frozen=True)
class DemoFlags:
    """What `diptych demo` takes."""

    out: Path = DEMO_RUN
    """The run folder; an earlier demo there is replaced."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""


@dataclass(frozen=True)
class EvaluateFlags:
    """What `diptych evaluate` takes."""

    run: Positional[Path]
    """A run folder whose training has ended."""
    train: Path | None = None
    """Labelled images, one folder for each class, to fit the probes on. The run's own by
    default."""
    test: Path | None = None
    """Labelled images to measure on. By default those held out with the run's own images, or one
    in five of them."""
    threads: int | None = None
    """CPU threads; all cores by default."""


@dataclass(frozen=True)
class ReportFlags:
    """What `diptych report` takes."""

    run: Positional[Path]
    """A run folder whose training has ended."""
    threads: int | None = None
    """CPU threads; all cores by default."""


@dataclass(frozen=True)
class ViewsFlags:
    """What `diptych views` takes."""

    path: Positional[str]
    """As for `diptych pretrain`."""
    out: Path = Path("sheet.png")
    """The PNG file to write."""
    recipe: str = "simclr"
    """Whose views to show."""
    scale: str | None = None
    """At which scale. By default chosen from the images' size and the device."""
    config: Path | None = None
    """A TOML file with settings that override the recipe's."""
    seed: int = 0
    """Decides every view."""
    rows: int = 8
    """Images shown."""
    columns: int = 8
    """Views of each image."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)


def parse(kind: type[Flags], verb: Callable[..., None], arguments: Sequence[str]) -> Flags:
    """Flags of a verb. Wrong ones end the process with a hint at the nearest right one."""
    parsed: Flags = tyro.cli(
        kind,
        args=list(arguments),
        prog=f"diptych {verb.__name__}",
        description=inspect.cleandoc(verb.__doc__ or ""),
    )
    return parsed


def explicit_settings(
    flags: PretrainFlags | ViewsFlags, arguments: Sequence[str]
) -> dict[str, Any]:
    """The settings that were given, and not those that only have defaults, as nested tables."""
    values = _flag_values(flags)
    given = {}
    for argument in arguments:
        if argument.startswith("--"):
            name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
            if name not in values and ".no_" in f".{name}":
                name = ".".join(part.removeprefix("no_") for part in name.split("."))
            if name in values and name not in _NOT_SETTINGS:
                given[SHORT_NAMES.get(name, name)] = values[name]
    if flags.path is not None:
        given["images.path"] = flags.path
    return nest(given)


def _flag_values(flags: object, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in fields(flags):  # type: ignore[arg-type]
        value, name = getattr(flags, one.name), f"{prefix}{one.name}"
        found |= _flag_values(value, f"{name}.") if is_dataclass(value) else {name: value}
    return found
