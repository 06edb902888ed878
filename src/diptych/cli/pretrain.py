"""The verbs that make a run: `pretrain`, `demo` on photographs; and `recipes` of its settings."""

import inspect
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from tyro.conf import Positional

from diptych.cli.evaluate import print_verdict
from diptych.cli.flags import explicit_settings, parse
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.files import flatten, load_run_config, nest, to_toml
from diptych.config.method import DistillationConfig, MethodConfig
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.recipes import RECIPES, recipe_config
from diptych.config.run import (
    CheckpointConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainingConfig,
)
from diptych.errors import ConfigError, ImagesError, RunFolderError
from diptych.escaping import quoted
from diptych.runs.atomic import remove_leftovers
from diptych.runs.folder import RunFolder
from diptych.runtime.console import ProgressBars
from diptych.runtime.world import read_world

DEMO_EPOCHS: Final = 16
DEMO_RUN: Final = Path("runs/demo")
_DEMO: Final[dict[str, Any]] = {
    "images.path": "photographs",
    "recipe": "simclr",
    "scale": "tiny",
    "encoder.width": 16,
    "training.epochs": DEMO_EPOCHS,
    "probe.health_every_epochs": 4,
}
"""The settings of a demo, by which an earlier one is known."""


@dataclass(frozen=True)
class PretrainFlags:
    """What `diptych pretrain` takes. The sections at the end hold every single setting."""

    path: Positional[str | None] = None
    """A folder, tar shards, a file, a URL, or the name photographs; folders may be nested, with any
    mix of formats, and files be .parquet, .npz, .npy, IDX or a list of paths (.txt). Also
    torchvision:NAME. docs/images.md says more."""
    recipe: str = "simclr"
    """The method with its paper's settings; `diptych recipes` lists them."""
    scale: str | None = None
    """How large: tiny, small, paper or cifar10. That is a small ResNet on views of 32 pixels,
    ResNet-18 on 96, ResNet-50 on 224, or SimCLR's of its appendix B.9. By default chosen from the
    images' size and the device."""
    out: Path | None = None
    """The run folder. A new one under runs/ by default."""
    config: Path | None = None
    """A TOML file with settings; they override the recipe's, and flags override them."""
    resume: bool = False
    """Continue from the newest intact checkpoint of --out; begin there if it has none."""
    begin_from: str | None = None
    """Begin a new run from a checkpoint of RUN, or of RUN@STEP: with its settings, of which a few
    may be changed, as --optimizer.learning-rate. Short for --training.begin-from."""
    weights: str | None = None
    """Weights to begin from: a file, a run, or `pretrained`. Short for --encoder.weights, which
    says more; docs/weights.md lists the libraries whose files are read."""
    epochs: int | None = None
    """Passes over the images; short for --training.epochs."""
    minutes: float | None = None
    """Minutes that the command may take, report included. Network, side, batch and length that are
    not given are chosen to fit. Short for --training.minutes."""
    batch_size: int | None = None
    """Images in a batch; short for --training.batch-size."""
    seed: int = 0
    """Decides initial weights, order of images and every view."""
    threads: int | None = None
    """CPU threads; all cores by default. Short for --training.threads."""
    group_by: str | None = None
    """Take the second view from another image of the same group: folder, folder:LEVEL,
    name:PATTERN or FILE.csv:COLUMN. Short for --images.group-by."""
    report: bool = True
    """Evaluate at the end, if there are labels, and write the report."""
    quiet: bool = False
    """Show nothing but errors."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    norm: NormConfig = field(default_factory=NormConfig)
    head: HeadConfig = field(default_factory=HeadConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    distillation: DistillationConfig = field(default_factory=DistillationConfig)


COMMON: Final = {
    "run": ("out", "resume", "begin_from", "config", "report"),
    "what to learn from": ("group_by", "views.side_pixels", "views.policy"),
    "method": (
        *("recipe", "scale", "encoder.name", "weights", "norm.kind", "method.loss.temperature"),
    ),
    "training": (
        *("epochs", "minutes", "batch_size", "optimizer.learning_rate", "seed"),
        *("training.chunk_size", "training.device", "training.precision", "threads"),
    ),
}
"""Flags that most people need."""


def pretrain(arguments: Sequence[str]) -> None:
    """Learn a representation of unlabelled images; write encoder, metrics, checkpoints and report.

    Settings come from the recipe at a scale, then from --config, then from flags, each overriding
    the one before. Folders of classes give labels, which evaluation uses.

    Examples:
      diptych pretrain photos/ --minutes 10 --out runs/photos
      diptych pretrain photos/ --out runs/photos --resume
      diptych pretrain photos/ --encoder resnet50 --norm.kind shuffle --training.chunk-size 64
    """
    flags = parse(PretrainFlags, pretrain, arguments, common=COMMON)
    settings = explicit_settings(flags, arguments)
    _run_to_report(
        settings,
        out=flags.out,
        config_file=flags.config,
        resume=flags.resume,
        quiet=flags.quiet,
        report=flags.report,
    )


@dataclass(frozen=True)
class DemoFlags:
    """What `diptych demo` takes."""

    out: Path = DEMO_RUN
    """The run folder; an earlier demo there is replaced."""
    threads: int | None = None
    """CPU threads; all cores by default."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""


def demo(arguments: Sequence[str]) -> None:
    """Learn from patches of sixteen built-in photographs, measure, and write runs/demo/report.html.

    Takes a minute or two on two cores. An earlier demo is replaced.

    Examples:
      diptych demo
      diptych demo --out runs/mine --seed 1
    """
    flags = parse(DemoFlags, demo, arguments)
    _remove_earlier_demo(flags.out)
    settings = nest(_DEMO | {"seed": flags.seed, "training.threads": flags.threads})
    _run_to_report(settings, out=flags.out, config_file=None, resume=False, quiet=False)


def _run_to_report(
    settings: dict[str, Any],
    *,
    out: Path | None,
    config_file: Path | None,
    resume: bool,
    quiet: bool,
    report: bool = True,
) -> None:
    """Trains, then evaluates where there are labels, then writes the report."""
    begun = time.monotonic()  # before torch is imported, which takes seconds
    from diptych.images.pixels import shared_pixels
    from diptych.logging.progress import Display
    from diptych.pretraining import run_pretraining

    console = Console(quiet=quiet, markup=False)
    with shared_pixels():  # what training has decoded is not decoded again
        with Display(console) as display:
            folder = run_pretraining(
                settings,
                out=out,
                config_file=config_file,
                resume=resume,
                watcher=display,
                on_progress=display.files,
                evaluates=report,
                begun=begun,
            )
        # The others would write the same files.
        if not read_world().is_first:
            return
        console.print(f"Encoder: {folder.encoder}", highlight=False, soft_wrap=True)
        if report:
            _measure_and_report(folder, console)


def _measure_and_report(folder: RunFolder, console: Console) -> None:
    # Only now, as they would delay the first step.
    from diptych.diagnostics.candidates import read_choice, words_for_kept
    from diptych.evaluation.protocols import evaluate as measure
    from diptych.report.charts import print_tables
    from diptych.report.page import write_report
    from diptych.training.budget import evaluation_limits

    # The run's: they may stand in a file, or be those of an earlier command.
    training = load_run_config(folder.config).training
    limits = evaluation_limits(training.minutes)
    device, threads = training.device, training.threads
    with ProgressBars(console) as bars:
        try:
            found = measure(folder.path, progress=bars, device=device, threads=threads, **limits)
            print_tables(console, found, words_for_kept(read_choice(folder), found))
        except ImagesError as error:  # no labels, say; the report is written all the same
            console.print(str(error), highlight=False)
        page = write_report(folder.path, progress=bars, device=device, threads=threads)
    print_verdict(console, folder.path)
    console.print(f"Report: {page}", highlight=False, soft_wrap=True)
    console.print(
        f"To walk through the images: diptych gallery {quoted(folder.path)}",
        highlight=False,
        soft_wrap=True,
    )


def _remove_earlier_demo(out: Path) -> None:
    """Deletes the run of an earlier demo, and nothing else.

    Raises:
        RunFolderError: there is something else at ``out``, or in it; it is left as it was.
    """
    # Not `exists`, for which a link that leads nowhere is not there.
    if not os.path.lexists(out):
        return
    config = RunFolder(out).config
    try:
        if out.is_symlink() or config.is_symlink():  # what it points to may be anyone's
            problem = f"{out if out.is_symlink() else config} is a link"
        else:
            found = flatten(load_run_config(config))
            problem = _why_no_demo(out, found)
            if not problem:
                shutil.rmtree(out)
                return
    except ConfigError as error:
        problem = str(error).rstrip(".")
    raise RunFolderError(
        f"{out} is not replaced: wanted an earlier demo, whose config.toml says images.path = "
        f'"{_DEMO["images.path"]}", and nothing beside its files; but {problem}. Choose another '
        "--out, or remove it yourself."
    )


def _why_no_demo(out: Path, settings: Mapping[str, Any]) -> str:
    """What a run has that an earlier demo has not; empty for nothing."""
    for name, wanted in _DEMO.items():
        if (came := settings[name]) != wanted:
            what = "on" if name == "images.path" else f"with {name} ="
            return f"it holds a run {what} {came!r}"
    remove_leftovers(out)
    # All that a run folder holds by itself: labels of a gallery, say, are beside it.
    own = {
        getattr(RunFolder(out), name).name
        for name, value in vars(RunFolder).items()
        if isinstance(value, property)
    }
    others = sorted(one.name for one in out.iterdir() if one.name not in own)
    return f"it holds {others[0]} too, which the demo did not write" if others else ""


@dataclass(frozen=True)
class RecipesFlags:
    """What `diptych recipes` takes."""

    recipe: Positional[str | None] = None
    """Print this recipe's settings; list all recipes when not given."""
    scale: str = "paper"
    """At which scale: tiny, small, paper, or cifar10 where the paper gives it."""


def recipes(arguments: Sequence[str]) -> None:
    """List the recipes, or print one as a config file.

    Examples:
      diptych recipes
      diptych recipes moco_v2 --scale small > moco.toml
    """
    flags = parse(RecipesFlags, recipes, arguments)
    if flags.recipe is not None:
        print(to_toml(recipe_config(flags.recipe, flags.scale)), end="")
        return
    for name, make in RECIPES.items():
        print(f"{name:12} {inspect.cleandoc(make.__doc__ or '').splitlines()[0]}")
    print(
        "\n`diptych recipes NAME --scale tiny|small|cifar10|paper` prints one as a config "
        "file; cifar10 is of simclr and simsiam."
    )
