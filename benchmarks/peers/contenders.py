"""The same run as a command of each library."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from diptych.config.files import SHORT_NAMES
from peers.environments import python_of, runner_environment

OURS: Final = "diptych"
Method = Literal["simclr", "moco_v2"]


@dataclass(frozen=True)
class Run:
    """A run, the same for every library.

    Attributes:
        images: a folder with a folder for each class, all learned from.
        out: what it writes.
        method: `simclr` or `moco_v2`.
        network: `small_resnet`, or `resnet18` with its own stem.
        side: of a view, in pixels.
        batch: images in a batch.
        epochs: passes over the images.
        seed: of weights, order and views.
        workers: processes that load images, of a library that has them.
        strength: of colour, as a share of the paper's.
        blur: whether views are blurred.
        temperature: of the loss.
        rate: peak learning rate of SGD with momentum 0.9 at this batch.
        weight_decay: its pull to zero.
        queue: keys of MoCo's queue.
        key_momentum: share of itself that MoCo's key network keeps.
        hidden_features: width of a peer's projection head inside; None for that of the features.
        snapshot_seconds: seconds between two snapshots of the encoder.
    """

    images: str
    out: str
    method: Method = "simclr"
    network: str = "small_resnet"
    side: int = 32
    batch: int = 128
    epochs: int = 1
    seed: int = 0
    workers: int = 2
    strength: float = 0.5
    blur: bool = False
    temperature: float = 0.2
    rate: float = 0.12
    weight_decay: float = 1e-4
    queue: int = 2048
    key_momentum: float = 0.99
    hidden_features: int | None = None
    snapshot_seconds: float = 1e9

    @property
    def stem(self) -> Literal["small", "imagenet"]:
        """The first layers of the network."""
        return "small" if self.network == "small_resnet" else "imagenet"


FIXED: Final = frozenset(
    {
        *("scale", "out", "seed", "training.epochs", "training.minutes"),
        *("encoder.name", "encoder.stem", "encoder.pool", "views.side_pixels"),
        *("checkpoint.every_seconds", "checkpoint.keep"),
    }
)
"""Settings of `diptych pretrain` that are the same for all."""
LEARNED_BEFORE: Final = frozenset(
    {"encoder.weights", "distillation.teacher", "training.begin_from", "resume", "config"}
)
"""Those that bring what was learned before, or may."""


@dataclass(frozen=True)
class Contender:
    """A library that can do a run.

    Attributes:
        command: what does it.
        methods: of which methods.
        snapshots: the snapshots that a run left, in order, each a file of tensors.
        prefix: of the encoder's tensors in such a file.
        environment: that it runs in; None for the project's own.
    """

    command: Callable[[Run, Path], list[str]]
    methods: tuple[str, ...]
    snapshots: str
    prefix: str = ""
    environment: str | None = None

    def python(self, environments: Path) -> Path:
        """Its interpreter."""
        if self.environment is None:
            return Path(sys.executable)
        return python_of(environments, self.environment)

    def variables(self) -> dict[str, str]:
        """The environment variables of its process."""
        return runner_environment()


def diptych_command(run: Run, environments: Path) -> list[str]:
    """`diptych pretrain`, with what the run says and the recipe's defaults for the rest."""
    flags = {"recipe": run.method, **_size(run), **_settings(run)}
    if run.method == "moco_v2":
        flags["method.dictionary.queue.size"] = run.queue
        flags["method.key-encoder.momentum"] = run.key_momentum
    return _pretrain(run, flags)


def diptych_with(flags: Sequence[str], run: Run) -> list[str]:
    """`diptych pretrain` with flags of one's own: of the run only network, views and length."""
    given = {setting_of(word) for word in flags}
    shared = {name: value for name, value in _size(run).items() if setting_of(name) not in given}
    return [*_pretrain(run, shared), *flags]


def refuse(flags: Sequence[str]) -> None:
    """Refuses flags with which a run would not be of the same kind as all others.

    Raises:
        ValueError: one sets what is the same for all, begins from something learned before, or
            learns from labels, which the class folders would give.
    """
    given = {setting_of(word) for word in flags if word.startswith("--")}
    refused = sorted(given & (FIXED | LEARNED_BEFORE))
    if "supervised" in {word.rpartition("=")[2] for word in flags}:
        refused.append("method.loss.kind supervised")
    if refused:
        raise ValueError(
            f"not with {', '.join(refused)}: network, side of the views, length and seed are the "
            "same for all, and nothing is learned from weights or labels."
        )


def setting_of(flag: str) -> str:
    """The setting that a flag is short for: `training.epochs` of `--epochs` and `--epochs=9`."""
    name = flag.removeprefix("--").partition("=")[0].replace("-", "_")
    return {"encoder": "encoder.name", **SHORT_NAMES}.get(name, name)


def _pretrain(run: Run, flags: Mapping[str, object]) -> list[str]:
    given = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    verb = [sys.executable, "-m", "diptych", "pretrain", run.images]
    return [*verb, *given, "--no-report", "--quiet"]


def _size(run: Run) -> dict[str, object]:
    return {
        "scale": "tiny",
        "out": run.out,
        "epochs": run.epochs,
        "batch-size": run.batch,
        "seed": run.seed,
        "encoder.name": run.network,
        "encoder.stem": run.stem,
        "encoder.pool": 1,
        "views.side-pixels": run.side,
        "checkpoint.every-seconds": run.snapshot_seconds,
        "checkpoint.keep": 1_000_000,
    }


def _settings(run: Run) -> dict[str, object]:
    return {
        "views.policy": policy(run),
        "views.strength": run.strength,
        "method.loss.temperature": run.temperature,
        "optimizer.learning-rate": run.rate,
        "optimizer.scaling": "none",
        "optimizer.weight-decay": run.weight_decay,
    }


def policy(run: Run) -> str:
    """The views of SimCLR or MoCo v2 in full strength, in diptych's words."""
    if run.method == "moco_v2":
        color = "crop(area=0.2..1) + flip + color(brightness=0.4, contrast=0.4, saturation=0.4, "
        color += "hue=0.1)"
    else:
        color = "crop(area=0.08..1) + flip + color(brightness=0.8, contrast=0.8, saturation=0.8, "
        color += "hue=0.2)"
    return f"{color} + gray" + " + blur" * run.blur


def _peer(environment: str, module: str, *methods: Method) -> Contender:
    def command(run: Run, environments: Path) -> list[str]:
        python = str(python_of(environments, environment))
        return [python, "-m", f"peers.runners.{module}", json.dumps(asdict(run))]

    return Contender(command, methods, "snapshots/*.safetensors", environment=environment)


BOTH: Final[tuple[Method, ...]] = ("simclr", "moco_v2")
CONTENDERS: Final[Mapping[str, Contender]] = {
    OURS: Contender(
        diptych_command, BOTH, "checkpoints/step-*/tensors.safetensors", "method/network.encoder."
    ),
    "lightly": _peer("lightly-train", "lightly_loop", *BOTH),
    "lightly-train": _peer("lightly-train", "lightly_train_run", "simclr"),
    "stable-pretraining": _peer("stable-pretraining", "stable_pretraining_run", *BOTH),
}


def settings_of_docs(name: str, run: Run) -> Run:
    """What a peer's own documents set for images of CIFAR's kind, in the place of ours.

    lightly: its benchmark of CIFAR-10. lightly-train: the defaults of its `simclr`, blur and a head
    of 2,048 inside included. stable-pretraining: its script for CIFAR-10, but for LARS at a rate of
    5, which a run of minutes does not warm up: SGD takes its place at our rate and decay. Network,
    side, batch, SGD's momentum and precision stay those of the run, and so do stable-pretraining's
    saturation and head, which its script has at half the strength and with three layers of 2,048.
    """
    if name == "lightly":
        rate = 0.06 * run.batch / 128
        return replace(run, rate=rate, weight_decay=5e-4, temperature=0.5, strength=0.5)
    if name == "lightly-train":
        rate = 0.3 * run.batch / 256
        own = replace(run, rate=rate, temperature=0.1, strength=1.0)
        return replace(own, blur=True, hidden_features=2048)
    return replace(run, temperature=0.5, strength=0.5)
