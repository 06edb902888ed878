"""How weights move: optimizer and learning rate."""

from dataclasses import dataclass, field
from typing import Literal

from diptych.config.checks import Checks


@dataclass(frozen=True)
class LarsConfig:
    """Of the optimizer `lars` (1708.03888)."""

    trust: float = 0.001
    """Length of a layer's step as a share of the length of its weights."""

    def __post_init__(self) -> None:
        check = Checks("optimizer.lars", self)
        check.finite()
        check.positive("trust")


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
    clip_norm: float | None = None
    """Longest gradient over all weights; longer ones are shortened to it. No bound if not given;
    `inf` bounds nothing and shows the length."""
    lars: LarsConfig = field(default_factory=LarsConfig)
    adamw: AdamWConfig = field(default_factory=AdamWConfig)

    def __post_init__(self) -> None:
        check = Checks("optimizer", self)
        check.finite(but=("clip_norm",))
        check.positive("learning_rate")
        check.not_negative("weight_decay")
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
