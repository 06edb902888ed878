"""How a run goes: optimizer, learning rate, training, checkpoints; and all settings of a run."""

from dataclasses import dataclass, field, replace
from typing import Final, Literal

from diptych.config.checks import Checks, require
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.method import SIAMESE, DistillationConfig, MethodConfig
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig


@dataclass(frozen=True)
class LarsConfig:
    """Of the optimizer `lars` (1708.03888)."""

    trust: float = 0.001
    """Length of a layer's step as a share of the length of its weights."""
    spared_share: float = 1.0
    """Of norms and biases, whose steps are not scaled: the share of the rate that they learn at
    (Barlow Twins: 0.0048 of 0.2)."""

    def __post_init__(self) -> None:
        check = Checks("optimizer.lars", self)
        check.finite()
        check.positive("trust", "spared_share")


@dataclass(frozen=True)
class AdamWConfig:
    """Of the optimizer `adamw` (1711.05101)."""

    beta2: float = 0.999
    """Share of the mean squared gradient that is kept."""

    def __post_init__(self) -> None:
        Checks("optimizer.adamw", self).must(
            "beta2", lambda share: 0 <= share < 1, "be at least 0 and below 1"
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """How weights move."""

    kind: Literal["sgd", "lars", "adamw"] = "sgd"
    """`sgd` with momentum, `lars`, which scales each layer's step to its weights, or `adamw`."""
    learning_rate: float = 0.03
    """The rate before scaling by the batch size; see `scaling`."""
    scaling: Literal["linear", "square_root", "none"] = "linear"
    """Peak rate: learning_rate x batch / 256, or learning_rate x sqrt(batch), or as given."""
    momentum: float = 0.9
    """Share of the last step that is kept; AdamW's first beta."""
    weight_decay: float = 1e-4
    """Pull of each weight towards zero: of matrices and kernels, never of norms, biases, tokens,
    position embeddings and layer scales (MoCo's published code pulls at all of them)."""
    weight_decay_end: float | None = None
    """The weight decay at the end of the run, to which it goes along half a cosine (DINO, section
    3.2). It stays as it is when not given."""
    layer_decay: float = 1.0
    """The last part of the encoder learns at this share of the rate, the one before it at the share
    squared, and so on down to the stem; the head at the full rate (BEiT, 2106.08254; MAE)."""
    pull_to_start: float = 0.0
    """Instead of `weight_decay`, in the encoder: the strength of a pull of each of these weights
    towards what it was in `encoder.weights` (L2-SP, 1802.01483). 0 leaves it to decay."""
    clip_norm: float | None = None
    """Longest gradient over all weights; longer ones are shortened to it. No bound if not given;
    `inf` bounds nothing and shows the length."""
    lars: LarsConfig = field(default_factory=LarsConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        check = Checks("optimizer", self)
        check.finite(but=("clip_norm",))
        check.positive("learning_rate")
        check.not_negative("weight_decay", "weight_decay_end", "pull_to_start")
        wanted = "be above 0 and at most 1"
        check.must("layer_decay", lambda share: 0 < share <= 1, wanted)
        check.must("momentum", lambda share: 0 <= share < 1, "be at least 0 and below 1")
        check.must("clip_norm", lambda norm: norm > 0, "be positive, or left out for no bound")


@dataclass(frozen=True)
class StepConfig:
    """Of the schedule `step`."""

    drops: tuple[float, ...] = (0.6, 0.8)
    """Shares of the run at which the rate drops (MoCo: epochs 120 and 160 of 200)."""
    factor: float = 0.1
    """What is left of the rate after each drop."""

    def __post_init__(self) -> None:
        check = Checks("schedule.step", self)
        check.must(
            "drops", lambda drops: all(0 < drop < 1 for drop in drops), "lie between 0 and 1"
        )
        check.must("factor", lambda factor: 0 < factor <= 1, "be above 0 and at most 1")


@dataclass(frozen=True)
class ScheduleConfig:
    """How the learning rate changes: a linear warm-up, then down in one way or another."""

    kind: Literal["cosine", "step", "constant"] = "cosine"
    """`cosine`: half a cosine down to zero. `step`: a drop at each of `step.drops`. `constant`."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises from zero to its peak; never more than half the run."""
    step: StepConfig = field(default_factory=StepConfig)

    def __post_init__(self) -> None:
        check = Checks("schedule", self)
        check.finite()
        check.not_negative("warmup_epochs")


@dataclass(frozen=True)
class KeepConfig:
    """Which encoder a run leaves in `encoder.safetensors`."""

    kind: Literal["auto", "last", "best"] = "auto"
    """`last`: that of the last step. `best`: of that and, where `encoder.weights` are given, the
    start and the average of both, each as it is, with whitened features, and with those of an
    intermediate layer, the one that does best on training images. `auto`: `best` where
    `encoder.weights` are given. A run without a scale has `best`."""
    images: int = 1000
    """Of `best`: training images that the encoders are compared on, at most; recipes compare 2,000
    where `encoder.weights` are given."""

    def __post_init__(self) -> None:
        Checks("training.keep", self).at_least(32, "images")


_READ_ONLY: Final = ("http:", "https:", "file:", "local:")  # of URLs that checkpoints may have


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how many at a time, and on what."""

    epochs: int = 10
    """Passes over the images."""
    minutes: float | None = None
    """In the place of `epochs`: how long the whole command may take, from opening the images to the
    report. Network, side and batch that are not given are chosen by the measured speed."""
    batch_size: int = 256
    """Images in a batch, over all processes; each gives two views."""
    chunk_size: int | None = None
    """Images encoded at once (cached gradients), if fewer than a process's part of the batch: the
    loss and gradients of the whole in the memory of a chunk, for about a third more time.
    Norms `batch` and `sync` see one chunk at a time. The whole batch when not given."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where the networks run. `auto` takes an accelerator when there is one."""
    threads: int | None = None
    """CPU threads; all cores when not given. The same bits need the same number. The processes of
    one machine divide them."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Numbers that the networks compute in: `bf16` and `fp16` by autocast; the loss stays in fp32.
    With `fp16` it is scaled, and steps whose gradients overflow are skipped."""
    recompute: Literal["none", "stages"] = "none"
    """What to compute again in the backward pass instead of keeping it: the inside of each of the
    encoder's `stages` (blocks, of a transformer). Less memory, for up to a third more time."""
    offload_activations: bool = False
    """Keep what the encoder's backward pass needs in the CPU's memory. Of accelerators only."""
    channels_last: bool = True
    """Lay tensors out with channels innermost, which is faster on most processors."""
    compile: bool = False
    """Run the networks through torch.compile: faster steps after up to a minute. On a CPU it needs
    a C++ compiler."""
    process_timeout_seconds: float = 600.0
    """Of several processes: how long one may keep the others waiting before they stop."""
    check_every_steps: int = 200
    """Of several processes: steps between two checks that all hold the same weights and keys."""
    keep: KeepConfig = field(default_factory=KeepConfig)
    begin_from: str | None = None
    """RUN or RUN@STEP: begin a new run with the settings of that run and the state of its newest
    checkpoint, or of the one after that step. What moves the weights may be set otherwise, as
    `optimizer.learning_rate`, `optimizer.clip_norm` and `schedule`."""

    def __post_init__(self) -> None:
        check = Checks("training", self)
        check.finite()
        check.positive("epochs", "minutes", "threads", "check_every_steps")
        check.at_least(2, "batch_size")
        wanted = "be 2 or more, or left out for the whole batch"
        check.must("chunk_size", lambda size: size > 1, wanted)
        wanted = "be positive, and at most 10 million"
        check.must("process_timeout_seconds", lambda seconds: 0 < seconds <= 1e7, wanted)


@dataclass(frozen=True)
class CheckpointConfig:
    """When and where a run is saved."""

    every_seconds: float = 120.0
    """Save at the first step that ends this long after the last save, once that is written; `inf`
    saves at the end and at a signal only."""
    keep: int = 2
    """Checkpoints kept; the oldest is deleted after a newer one is complete."""
    asynchronous: bool = True
    """Train on while a checkpoint is written. Holds a second copy of the state in memory."""
    folder: str | None = None
    """Where checkpoints lie, of this run alone: a path, or a URL as s3://bucket/run. By default the
    run folder's own checkpoints."""

    def __post_init__(self) -> None:
        check = Checks("checkpoint", self)
        check.finite(but=("every_seconds",))
        check.not_negative("every_seconds")
        check.positive("keep")
        wanted = "be a path, or a URL that can be written to, as s3://bucket/run"
        check.must("folder", _can_be_written, wanted)


@dataclass(frozen=True)
class ProbeConfig:
    """What is measured while training goes on."""

    log_every_steps: int = 10
    """Steps between two lines of metrics."""
    health_every_epochs: int = 1
    """Epochs between two measurements of health, and of kNN accuracy where labels exist."""
    images: int = 1024
    """Images used for each of these measurements, at most."""
    profile_steps: int | None = None
    """Trace so many steps with torch's profiler, after the first few, and write
    `traces/rank-K.json` into the run folder. No trace when not given."""
    tracker: Literal["none", "wandb", "mlflow", "trackio"] = "none"
    """Also send the metrics to this experiment tracker, as its own environment variables say where;
    each needs the extra of its name. TensorBoard's events are written in any case."""
    tracker_project: str = "diptych"
    """The tracker's project, or experiment, that the run appears in."""

    def __post_init__(self) -> None:
        check = Checks("probe", self)
        check.positive("log_every_steps", "health_every_epochs")
        check.at_least(16, "images")
        wanted = "be positive, or left out for no trace"
        check.must("profile_steps", lambda steps: steps > 0, wanted)


def _can_be_written(folder: str) -> bool:
    return folder != "" and "::" not in folder and not folder.startswith(_READ_ONLY)


OWN: Final = "own"
"""Stands for what was given in Python: as encoder.name, method.kind or method.loss.kind."""


@dataclass(frozen=True)
class RunConfig:
    """A whole run. Written to `config.toml`, from which alone the run can be repeated."""

    recipe: str = "simclr"
    """The recipe that the settings started from."""
    scale: str = "tiny"
    """The scale that the settings started from."""
    seed: int = 0
    """Decides the initial weights, the order of the images and every view."""
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

    def __post_init__(self) -> None:
        # TOML's whole numbers have a sign and 64 bits.
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2^63 - 1", self.seed)

    @property
    def method_name(self) -> str:
        """Which of ``methods.build.METHODS`` trains the network."""
        return self.method.kind if self.distillation.teacher is None else "distillation"

    @property
    def loss_weight(self) -> float:
        """What gradients of the loss are multiplied by; a student's loss has no such weight."""
        return 1.0 if self.method_name == "distillation" else self.method.loss.weight

    @property
    def keeps_best(self) -> bool:
        """Whether the encoder that is kept is chosen among several, by ``training.keep``."""
        kind = self.training.keep.kind
        return kind == "best" or (kind == "auto" and self.encoder.weights is not None)

    @property
    def compares_views(self) -> bool:
        """Whether it learns by comparing views: no student's method, and none given in Python."""
        return self.method_name in ("contrastive", "dense", *SIAMESE)

    @property
    def fewest_epochs(self) -> int:
        """In which something is learned: the first one of a bank only fills it."""
        return 2 if self.compares_views and self.method.dictionary.kind == "bank" else 1

    @property
    def schedule_of_steps(self) -> ScheduleConfig:
        """The schedule, with a warm-up that does not end before something is learned."""
        warmup, idle = self.schedule.warmup_epochs, self.fewest_epochs - 1
        return replace(self.schedule, warmup_epochs=warmup + idle if warmup else 0.0)

    @property
    def has_projection_head(self) -> bool:
        """Whether ``head`` builds the head; other methods have heads of their own."""
        return self.method_name in ("contrastive", "dense", *SIAMESE)
