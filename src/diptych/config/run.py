"""All settings of a run."""

from dataclasses import dataclass, field
from typing import Final

from diptych.config.checks import require
from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.method import DistillationConfig, MethodConfig
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.optimization import OptimizerConfig, ScheduleConfig
from diptych.config.training import CheckpointConfig, ProbeConfig, TrainingConfig

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
        require(0 <= self.seed < 2**63, "seed must lie between 0 and 2^63 - 1", self.seed)

    @property
    def method_name(self) -> str:
        """Which of ``methods.build.METHODS`` trains the network."""
        return self.method.kind if self.distillation.teacher is None else "distillation"

    @property
    def has_projection_head(self) -> bool:
        """Whether the head projects what is contrasted; other methods have heads of their own."""
        return self.method_name == "contrastive"
