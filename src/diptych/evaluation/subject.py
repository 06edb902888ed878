"""What is evaluated, on what, and how: all that a protocol is given."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

from torch import Tensor

from diptych.configs import RunConfig
from diptych.errors import ConfigError
from diptych.evaluation.features import encode, pixel_features
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE
from diptych.evaluation.labelled import Labelled
from diptych.hardware import choose_device
from diptych.images.collection import Collection
from diptych.model.saved import PretrainedEncoder, load_encoder, untrained_encoder
from diptych.run_folder import RunFolder
from diptych.views.load import EvaluationCrops

TRAINED: Final = "trained"
UNTRAINED: Final = "untrained"
PIXELS: Final = "pixels"
SUPERVISED: Final = "supervised"


@dataclass(frozen=True)
class Options:
    """How the protocols measure.

    Attributes:
        head_layers: hidden layers of the projection head to keep behind the trained encoder.
        crops: what is seen of an image.
        neighbours: of kNN, k.
        knn_temperature: of kNN's weights, exp(cosine / temperature).
        supervised: compare with the same network trained on the labels.
        against: encoders to compare with, each a run folder or an ``encoder.safetensors``.
    """

    head_layers: int = 0
    crops: EvaluationCrops = "center"
    neighbours: int = NEIGHBOURS
    knn_temperature: float = TEMPERATURE
    supervised: bool = False
    against: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        _require(self.neighbours > 0, "--neighbours must be positive", self.neighbours)
        _require(
            self.knn_temperature >= 0.001,
            "--knn-temperature must be 0.001 or more",
            self.knn_temperature,
        )


@dataclass(frozen=True)
class Subject:
    """A run to evaluate. What is costly is made when a protocol first asks for it, and kept.

    Attributes:
        folder: of the run.
        encoder: the trained one, frozen, on its device.
        config: of the run.
        executor: its threads decode and make views.
        options: how to measure.
        open_images: opens the images of the run, labelled or not.
        open_labelled: opens the labelled images; see ``labelled``.
    """

    folder: RunFolder
    encoder: PretrainedEncoder
    config: RunConfig
    executor: Executor
    open_images: Callable[[], Collection]
    open_labelled: Callable[[], Labelled]
    options: Options = field(default_factory=Options)

    @cached_property
    def collection(self) -> Collection:
        """The images of the run, which need no labels."""
        return self.open_images()

    @cached_property
    def labelled(self) -> Labelled:
        """The labelled images, in two parts.

        Raises:
            ImagesError: there are no labels.
        """
        return self.open_labelled()

    @cached_property
    def untrained(self) -> PretrainedEncoder:
        """The encoder as the run began with it."""
        network = untrained_encoder(self.config).to(choose_device("auto"))
        return PretrainedEncoder(network, self.config)

    @cached_property
    def encoders(self) -> Mapping[str, PretrainedEncoder]:
        """All that are compared, by name; the trained one first."""
        found = {TRAINED: self.encoder, UNTRAINED: self.untrained}
        for path in self.options.against:
            other = load_encoder(path).to(choose_device("auto"))
            _require_same_channels(self.config, other.config, path)
            found[str(path)] = other
        return found

    @cached_property
    def features(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of every encoder and of raw pixels: (images, dim) of the training and the test part."""
        parts = (self.labelled.train, self.labelled.test)
        found = {
            name: tuple(
                encode(one, part, one.config.views, self.executor, crops=self.options.crops)
                for part in parts
            )
            for name, one in self.encoders.items()
        }
        views = self.config.views
        found[PIXELS] = tuple(pixel_features(part, views, self.executor) for part in parts)
        return {name: (train, test) for name, (train, test) in found.items()}


def _require(holds: bool, wanted: str, came: object) -> None:
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")


def _require_same_channels(ours: RunConfig, theirs: RunConfig, path: Path) -> None:
    _require(
        ours.images.channels == theirs.images.channels,
        f"--against {path} must see images as this run does, with {ours.images.channels} channels",
        theirs.images.channels,
    )
