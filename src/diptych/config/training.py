"""How a run goes: training, checkpoints, and what is measured meanwhile."""

from dataclasses import dataclass
from typing import Final, Literal

from diptych.config.checks import Checks

_READ_ONLY: Final = ("http:", "https:", "file:", "local:")  # of URLs that checkpoints may have


@dataclass(frozen=True)
class TrainingConfig:
    """How long, how many at a time, and on what."""

    epochs: int = 10
    """Passes over the images."""
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
    """Run the networks through torch.compile."""
    process_timeout_seconds: float = 600.0
    """Of several processes: how long one may keep the others waiting before they stop."""
    check_every_steps: int = 200
    """Of several processes: steps between two checks that all hold the same weights and keys."""
    begin_from: str | None = None
    """RUN or RUN@STEP: begin a new run with the settings of that run and the state of its newest
    checkpoint, or of the one after that step. What moves the weights may be set otherwise, as
    `optimizer.learning_rate`, `optimizer.clip_norm` and `schedule`."""

    def __post_init__(self) -> None:
        check = Checks("training", self)
        check.finite()
        check.positive("epochs", "threads", "check_every_steps")
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

    def __post_init__(self) -> None:
        check = Checks("probe", self)
        check.positive("log_every_steps", "health_every_epochs")
        check.at_least(16, "images")
        wanted = "be positive, or left out for no trace"
        check.must("profile_steps", lambda steps: steps > 0, wanted)


def _can_be_written(folder: str) -> bool:
    return folder != "" and "::" not in folder and not folder.startswith(_READ_ONLY)
