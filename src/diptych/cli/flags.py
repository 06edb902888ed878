"""What each verb of the command line takes, and how it is read."""

import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import tyro
from tyro.conf import Positional

from diptych.config.detection import (
    DetectionConfig,
    DetectionNorm,
    DetectionSchedule,
)
from diptych.config.embedding import EmbedSettings
from diptych.config.files import SHORT_NAMES, nearest_name, nest
from diptych.config.sections import (
    CheckpointConfig,
    DistillationConfig,
    EncoderConfig,
    HeadConfig,
    ImagesConfig,
    MethodConfig,
    NormConfig,
    OptimizerConfig,
    ProbeConfig,
    ScheduleConfig,
    TrainingConfig,
    ViewsConfig,
)
from diptych.errors import ConfigError
from diptych.planning.machine import MachineConfig

Flags = TypeVar("Flags")

DEMO_RUN: Final = Path("runs/demo")
_NOT_SETTINGS: Final = frozenset(
    {"path", "out", "config", "resume", "report", "quiet", "rows", "columns"}
    | {
        "on",
        "processes",
        "images_count",
        "image_side",
        "image_kilobytes",
        "measure",
        "processes_here",
        "json",
    }
)
_NOT_SECTION: Final = "machine."  # of the planner's, beside the settings of a run


@dataclass(frozen=True)
class PretrainFlags:
    """What `diptych pretrain` takes. The sections at the end hold every single setting."""

    path: Positional[str | None] = None
    """A folder of images (nested, any mix of formats), tar shards, a .parquet, .npz, .npy or IDX
    file, a list of paths (.txt), torchvision:NAME, a URL, or the built-in set named photographs.
    docs/images.md says more."""
    recipe: str = "simclr"
    """The method with its paper's settings; `diptych recipes` lists them."""
    scale: str | None = None
    """The size of it all: tiny (small ResNet, 32 pixels), small (ResNet-18, 96), paper
    (ResNet-50, 224), or cifar10. By default chosen from the images' size and the device."""
    out: Path | None = None
    """The run folder. A new one under runs/ by default."""
    config: Path | None = None
    """A TOML file with settings; they override the recipe's, and flags override them."""
    resume: bool = False
    """Go on from the newest good checkpoint of --out; begin there if it has none."""
    begin_from: str | None = None
    """RUN or RUN@STEP: begin a new run where that one stood, with its settings, of which a few may
    be given anew, as --optimizer.learning-rate. Short for --training.begin-from."""
    epochs: int | None = None
    """Passes over the images; short for --training.epochs."""
    batch_size: int | None = None
    """Images in a batch; short for --training.batch-size."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""
    threads: int | None = None
    """CPU threads; all cores by default. Short for --training.threads."""
    group_by: str | None = None
    """Take the second view from another image of the same group: folder, folder:LEVEL,
    name:PATTERN or FILE.csv:COLUMN. Short for --images.group-by."""
    report: bool = True
    """Evaluate (where there are labels) and write the report when training ends."""
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


@dataclass(frozen=True)
class PlanFlags(PretrainFlags):
    """What `diptych plan` takes: all that `pretrain` does, and the machine."""

    on: str = "cpu"
    """What each process runs on: cpu, t4, l4, a100 or h100, by their data sheets. --machine.NAME
    overrides what you know better."""
    processes: int = 1
    """Processes that share each batch, one device each."""
    images_count: int | None = None
    """Images to learn from. Those at the path when not given."""
    image_side: int | None = None
    """Sides of an image as it is stored, in pixels. Those at the path, or 430, when not given."""
    image_kilobytes: float | None = None
    """An encoded image. 0.6 bytes for each of its pixels when not given, as JPEG files of ImageNet.
    """
    measure: bool = False
    """Measure on this machine what the network's parts, views and messages take, at the run's own
    shapes, instead of planning by rates."""
    processes_here: int = 1
    """Of --measure: processes that will share this machine's cores."""
    json: Path | None = None
    """Also write all figures to this file."""
    machine: MachineConfig = field(default_factory=MachineConfig)


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
    protocol: tuple[str, ...] = ("knn", "linear")
    """What to measure, one or several of: knn, linear, linear_sgd, finetune, transfer, geometry,
    transformations. Results of others stay in evaluation.json. docs/evaluation.md says more."""
    train: str | None = None
    """Labelled images, one folder for each class, to fit the probes on. The run's own by
    default."""
    test: str | None = None
    """Labelled images to measure on. By default those held out with the run's own images, or a
    fifth cut from them; what pretraining saw of them is said."""
    supervised: bool = False
    """Compare with the same network trained on the labels, with the run's views, optimizer and
    steps. It is trained once and kept in the run folder; that takes about as long as the run."""
    against: tuple[str, ...] = ()
    """Other encoders to compare with: run folders, or encoder.safetensors files."""
    head_layers: int = 0
    """Hidden layers of the projection head to keep behind the encoder."""
    crops: Literal["center", "five"] = "center"
    """What is seen of an image: its centre, or the mean over five views, corners and centre."""
    neighbours: int = 20
    """Of knn: how many vote."""
    knn_temperature: float = 0.07
    """Of knn: a vote weighs exp(cosine / temperature)."""
    l2_sweep: Literal["seven", "simclr"] = "seven"
    """Of linear and transfer: penalties to choose from, 7 from 1 to 1e-6, or SimCLR's 45 from 1e5
    to 1e-6."""
    sgd: Literal["moco", "simclr"] = "moco"
    """Of linear_sgd: whose settings."""
    sgd_epochs: int | None = None
    """Of linear_sgd: MoCo's 100 or SimCLR's 90 when not given."""
    finetune_shares: tuple[float, ...] = (1.0, 0.1, 0.01)
    """Of finetune: shares of the labels, the same of each class."""
    finetune_epochs: int | None = None
    """Of finetune: 30, and 60 for 1% of the labels, when not given; labels alone may get three
    times as many."""
    seeds: int = 3
    """Of finetune: how many."""
    transfer: tuple[str, ...] = ()
    """Of transfer: labelled images, each path a task."""
    threads: int | None = None
    """CPU threads; all cores by default."""


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
    epochs: int = DetectionConfig.epochs
    """Passes over the training images."""
    batch_size: int = DetectionConfig.batch_size
    """Images in a batch."""
    learning_rate: float = DetectionConfig.learning_rate
    """Peak learning rate of SGD with momentum 0.9."""
    weight_decay: float = DetectionConfig.weight_decay
    """Of every weight."""
    schedule: DetectionSchedule = DetectionConfig.schedule
    """After warm-up: a cosine to 0, or a tenth after 2/3 and 8/9 of the steps."""
    warmup_steps: int = DetectionConfig.warmup_steps
    """Steps over which the learning rate rises; a quarter of all at most."""
    norm: DetectionNorm = DetectionConfig.norm
    """Batch norms of the ResNet: `frozen` as constants, `batch` trained over the batch, `sync` over
    the batches of all processes. Both of the latter also normalise the pyramid."""
    side: int = DetectionConfig.side
    """Shorter side of an image, in pixels; the longer one is 5/3 of it at most."""
    jitter: float = DetectionConfig.jitter
    """In training the side is drawn from (1 - jitter) to (1 + jitter) times --side."""
    pyramid_channels: int = DetectionConfig.pyramid_channels
    """Channels of the feature pyramid; 256 in the paper."""
    proposals: int = DetectionConfig.proposals
    """Regions of each image that train the box head; 512 in the paper."""
    seeds: int = DetectionConfig.seeds
    """Detectors of each backbone; asking for more later adds to those there are."""
    threads: int | None = None
    """CPU threads; all cores by default."""


@dataclass(frozen=True)
class EmbedFlags:
    """What `diptych embed` takes."""

    run: Positional[Path]
    """A run folder whose training has ended, or its encoder.safetensors."""
    path: Positional[str]
    """Images, as for `diptych pretrain`; of those with a held-out part, the others."""
    out: Annotated[Path, tyro.conf.arg(aliases=["-o"])]
    """The folder of the embeddings, the same for all shards."""
    shard: str | None = None
    """Make one shard only, i/N, counted from 0: for a task of a job array."""
    shards: int | None = None
    """Split the whole into this many, of which each process takes its share. One for each process
    of torchrun when not given."""
    layer: str = EmbedSettings.layer
    """What to store: h, the encoder's features; or of the head `hidden 1`, `hidden 2`, ..., g."""
    precision: Literal["float32", "float16"] = EmbedSettings.precision
    """Numbers that vectors are stored in."""
    normalize: bool = EmbedSettings.normalize
    """Store vectors of length one."""
    crops: Literal["center", "five"] = EmbedSettings.crops
    """What is seen of an image: its centre, or the mean over five views, corners and centre."""
    batch_size: int = EmbedSettings.batch_size
    """Images that the network sees at once."""
    column: str | None = EmbedSettings.column
    """Of Parquet files: the column with the images."""
    max_unreadable_share: float = EmbedSettings.max_unreadable_share
    """A shard with more unreadable images than this share is not finished."""
    threads: int | None = None
    """CPU threads of all processes of this machine together; all cores by default."""
    quiet: bool = False
    """Show nothing but errors."""

    def settings(self) -> EmbedSettings:
        """How images become vectors."""
        return EmbedSettings(**{one.name: getattr(self, one.name) for one in fields(EmbedSettings)})


@dataclass(frozen=True)
class ReportFlags:
    """What `diptych report` takes."""

    run: Positional[Path]
    """A run folder whose training has ended."""
    threads: int | None = None
    """CPU threads; all cores by default."""


@dataclass(frozen=True)
class RankFlags:
    """What `diptych rank` takes."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, one or several."""
    images: str | None = None
    """Images to measure on, which need no labels; by default the runs' own, and of these the
    held-out ones."""
    labels: bool = False
    """Measure kNN too, where there are labels, and say how each measure agrees with it."""
    checkpoints: bool | None = None
    """Rank every checkpoint that was kept, not only the newest; by default when there is one run.
    """
    image_count: int = 2048
    """Images to measure on, at most."""
    json: Path | None = None
    """Also write all figures to this file."""
    threads: int | None = None
    """CPU threads; all cores by default."""


@dataclass(frozen=True)
class RecipesFlags:
    """What `diptych recipes` takes."""

    recipe: Positional[str | None] = None
    """Print this recipe's settings; list all recipes when not given."""
    scale: str = "paper"
    """At which scale: tiny, small, paper, or cifar10 where the paper gives it."""


@dataclass(frozen=True)
class CheckLeakFlags:
    """What `diptych check-leak` takes."""

    run: Positional[Path]
    """A run folder with a checkpoint."""
    images: int = 2048
    """Images to encode, in whole batches."""
    threads: int | None = None
    """CPU threads; all cores by default."""


@dataclass(frozen=True)
class StudyFlags:
    """What `diptych study` takes."""

    name: Positional[str | None] = None
    """Which study; all are listed when not given."""
    data: str | None = None
    """Labelled images, as for `diptych pretrain`: a folder with train and test, or class
    folders."""
    out: Path | None = None
    """The study's folder, where it goes on if it was cut; `runs/studies/NAME` when not given."""
    images: int | None = None
    """Images to learn from; the study's own number when not given."""
    epochs: int | None = None
    """Epochs of a cell; the study's own number when not given."""
    seeds: int = 3
    """Seeds of each cell, from 0 on."""
    jobs: int = 1
    """Cells that run at once, each in a process of its own."""
    threads: int | None = None
    """CPU threads of each cell; all cores divided by --jobs when not given."""
    cell: str | None = None
    """Run one cell only, CELL/seed-K, and write no page."""
    write_commands: Path | None = None
    """Run nothing: write one command a line to this file, each for one cell that is not done."""
    only_run: bool = False
    """Run the cells and write no page."""
    only_report: bool = False
    """Run nothing: write table, figure and page of the cells that are done."""


@dataclass(frozen=True)
class ViewsFlags:
    """What `diptych views` takes."""

    path: Positional[str]
    """As for `diptych pretrain`."""
    out: Path = Path("sheet.png")
    """The file to write: a contact sheet if it ends in .png, a page that opens offline if it ends
    in .html."""
    recipe: str = "simclr"
    """Whose views to show."""
    scale: str | None = None
    """At which scale. By default chosen from the images' size and the device."""
    config: Path | None = None
    """A TOML file with settings that override the recipe's."""
    seed: int = 0
    """Decides every view: those shown are of the first epoch of a run with this seed."""
    rows: int = 8
    """Images shown, evenly spread over the set."""
    columns: int = 8
    """Full-sized views of each image, the two branches taking turns."""
    images: ImagesConfig = field(default_factory=ImagesConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)


def parse(kind: type[Flags], verb: Callable[..., None], arguments: Sequence[str]) -> Flags:
    """Flags of a verb. Wrong ones end the process with a hint at the nearest right one."""
    arguments = _whole_names(arguments)
    command = f"diptych {verb.__name__.replace('_', '-')}"
    _refuse_unknown(_flag_names(kind), arguments, command)
    parsed: Flags = tyro.cli(
        kind,
        args=list(arguments),
        prog=command,
        description=inspect.cleandoc(verb.__doc__ or ""),
    )
    return parsed


def explicit_settings(
    flags: PretrainFlags | ViewsFlags, arguments: Sequence[str]
) -> dict[str, Any]:
    """The settings that were given, and not those that only have defaults, as nested tables."""
    arguments, names = _whole_names(arguments), _flag_names(type(flags))
    given: dict[str, Any] = {}
    for name in (_to_name(a, names) for a in arguments if a.startswith("--")):
        if name in names and name not in _NOT_SETTINGS and not name.startswith(_NOT_SECTION):
            given[SHORT_NAMES.get(name, name)] = attrgetter(name)(flags)
    if flags.path is not None:
        if given.get("images.path", flags.path) != flags.path:
            raise ConfigError(
                f"two paths of images: {flags.path} and --images.path {given['images.path']}. Give "
                "one of them."
            )
        given["images.path"] = flags.path
    return nest(given)


def _flag_names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of all flags of a dataclass and of the configs in it, in order."""
    found: list[str] = []
    for one in fields(kind):
        section = one.default_factory if isinstance(one.default_factory, type) else None
        if section is not None and is_dataclass(section):
            found += _flag_names(section, f"{prefix}{one.name}.")
        else:
            found.append(f"{prefix}{one.name}")
    return found


def _whole_names(arguments: Sequence[str]) -> list[str]:
    """The same arguments with ``--encoder NAME`` written out; a section cannot be a flag itself."""

    def whole(argument: str) -> str:
        name, equals, value = argument.partition("=")
        return f"--encoder.name{equals}{value}" if name == "--encoder" else argument

    return [whole(argument) for argument in arguments]


def _to_name(argument: str, names: Sequence[str]) -> str:
    """``--training.no-compile`` to ``training.compile``, ``--epochs=3`` to ``epochs``."""
    name = argument.partition("=")[0].removeprefix("--").replace("-", "_")
    section, dot, last = name.rpartition(".")
    positive = f"{section}{dot}{last.removeprefix('no_')}"
    return positive if name not in names and positive in names else name


def _refuse_unknown(names: Sequence[str], arguments: Sequence[str], command: str) -> None:
    for argument in arguments:
        if not argument.startswith("--") or argument in ("--", "--help"):
            continue
        name = _to_name(argument, names)
        if name not in names:
            nearest = nearest_name(name, names)
            hint = f" Did you mean --{nearest.replace('_', '-')}?" if nearest else ""
            given = argument.partition("=")[0]
            print(
                f"{command}: there is no flag {given}.{hint} `{command} --help` lists all.",
                file=sys.stderr,
            )
            raise SystemExit(2)
