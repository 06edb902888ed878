"""The subject of an evaluation: encoders, images and options, which every protocol is given."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final, Literal

from torch import Tensor, nn

from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.evaluation.feature_store import FeatureStore
from diptych.evaluation.features import (
    LayeredNetwork,
    pixel_features,
    trained_layers,
    untrained_layers,
)
from diptych.evaluation.knn import NEIGHBOURS, TEMPERATURE
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.supervised_encoder import supervised_encoder
from diptych.images.collection import Collection, ImageSet
from diptych.models.start import load_compared
from diptych.models.weights import (
    PretrainedEncoder,
    TrainedOn,
    load_encoder,
    load_untrained,
)
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import Runtime
from diptych.views.cpu import EvaluationCrops

TRAINED: Final = "trained"
START: Final = "start"
UNTRAINED: Final = "untrained"
PIXELS: Final = "pixels"
SUPERVISED: Final = "supervised"
_OURS: Final = (TRAINED, START, UNTRAINED, PIXELS, SUPERVISED)
_FEWEST: Final = 10  # images of a part, below which a figure says nothing


@dataclass(frozen=True)
class EvaluationOptions:
    """How the protocols measure.

    Attributes:
        head_layers: hidden layers of the projection head to keep behind the trained encoder.
        crops: what is seen of an image.
        neighbours: of kNN, k.
        knn_temperature: of kNN's weights, exp(cosine / temperature).
        l2_sweep: strengths that the linear classifier chooses from: ``seven`` or ``simclr``.
        sgd: settings of the linear classifier by SGD, ``moco`` or ``simclr``.
        sgd_epochs: instead of the paper's 100 or 90.
        finetune_shares: of the labels to fine-tune on.
        finetune_epochs: instead of 30, and of 60 for 1% of the labels.
        seeds: of fine-tuning.
        fit_images, test_images: labelled images to fit and to measure on, at most.
        transfer: paths of labelled images; see ``knn_and_linear.py``.
        supervised: compare with the same network trained on the labels.
        against: encoders to compare with, each a run folder, an ``encoder.safetensors``, or
            weights as ``encoder.weights`` names them.
    """

    head_layers: int = 0
    crops: EvaluationCrops = "center"
    neighbours: int = NEIGHBOURS
    knn_temperature: float = TEMPERATURE
    l2_sweep: Literal["seven", "simclr"] = "seven"
    sgd: Literal["moco", "simclr"] = "moco"
    sgd_epochs: int | None = None
    finetune_shares: tuple[float, ...] = (1.0, 0.1, 0.01)
    finetune_epochs: int | None = None
    seeds: int = 3
    fit_images: int | None = None
    test_images: int | None = None
    transfer: tuple[str, ...] = ()
    supervised: bool = False
    against: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.neighbours > 0, "--neighbours must be positive", self.neighbours)
        _require(
            self.knn_temperature >= 0.001,
            "--knn-temperature must be 0.001 or more",
            self.knn_temperature,
        )
        _require(self.seeds > 0, "--seeds must be positive", self.seeds)
        for name in ("sgd_epochs", "finetune_epochs"):
            epochs = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            _require(epochs is None or epochs > 0, f"{flag} must be positive", epochs)
        for name in ("fit_images", "test_images"):
            most = getattr(self, name)
            flag = "--" + name.replace("_", "-")
            _require(most is None or most >= _FEWEST, f"{flag} must be {_FEWEST} or more", most)
        _require(
            len(self.finetune_shares) > 0 and all(0 < s <= 1 for s in self.finetune_shares),
            "--finetune-shares must lie above 0 and be at most 1",
            self.finetune_shares,
        )


@dataclass(frozen=True)
class Subject:
    """A run to evaluate. Costly parts are computed when a protocol first needs them, then kept.

    Attributes:
        folder: of the run.
        encoder: the trained one, frozen, on its device.
        config: of the run.
        runtime: what all of it runs on.
        options: how to measure.
        own_encoder: the module that was given in Python, of a run that was trained with such.
        open_images: opens the images of the run, labelled or not.
        open_labelled: opens the labelled images; see ``labelled``.
        seen: what pretraining learned from, if known.
    """

    folder: RunFolder
    encoder: PretrainedEncoder
    config: RunConfig
    runtime: Runtime
    open_images: Callable[[], Collection]
    open_labelled: Callable[[], Labelled]
    seen: TrainedOn | None = None
    options: EvaluationOptions = field(default_factory=EvaluationOptions)
    own_encoder: nn.Module | None = None

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
        return self.open_labelled().limited(self.options.fit_images, self.options.test_images)

    @cached_property
    def untrained(self) -> PretrainedEncoder:
        """The encoder as the run began with it."""
        untrained = load_untrained(self.folder, self.config, self.own_encoder)
        return untrained.to(self.runtime.torch_device)

    @cached_property
    def encoders(self) -> Mapping[str, PretrainedEncoder]:
        """All that are compared, by name; the trained one first."""
        found = {TRAINED: self.encoder}
        if self.folder.start.exists():
            found[START] = load_encoder(self.folder.start).to(self.runtime.torch_device)
        found[UNTRAINED] = self.untrained
        if self.options.supervised:
            found[SUPERVISED] = supervised_encoder(
                self.folder, self.config, self.labelled, self.runtime, self.own_encoder
            ).to(self.runtime.torch_device)
        for path in map(str, self.options.against):
            other = load_compared(path, self.config.encoder.name).to(self.runtime.torch_device)
            require_same_channels(self.config, other.config, f"--against {path}")
            # A folder may have the name of one of ours.
            found[os.path.join(".", path) if path in _OURS else path] = other
        return found

    @cached_property
    def layers(self) -> Mapping[str, LayeredNetwork]:
        """The network of the run with all its layers, trained and untrained."""
        found = {
            TRAINED: trained_layers(self.folder, self.own_encoder),
            UNTRAINED: untrained_layers(self.folder, self.own_encoder),
        }
        return {name: one.to(self.runtime.torch_device) for name, one in found.items()}

    @cached_property
    def features(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        """Of every encoder and of raw pixels: (images, dim) of the training and the test part."""
        train = self.features_of(self.labelled.train)
        test = self.features_of(self.labelled.test)
        return {name: (train[name], test[name]) for name in train}

    def seen_by(self, encoder: PretrainedEncoder, images: ImageSet) -> ImageSet:
        """Images at the size at which an encoder has them decoded: another run's may be larger."""
        side = encoder.config.images.decoded_side
        if side == self.config.images.decoded_side:
            return images
        return images.decoded_for(replace(self.config.images, decoded_side=side))

    def labelled_for(self, encoder: PretrainedEncoder) -> Labelled:
        """The labelled images as an encoder has them decoded."""
        found = self.labelled
        train, test = self.seen_by(encoder, found.train), self.seen_by(encoder, found.test)
        return replace(found, train=train, test=test)

    def features_of(self, images: ImageSet) -> dict[str, Tensor]:
        """Of every encoder and of raw pixels, (images, dim)."""
        found = {
            name: self._store.features(
                one,
                self.seen_by(one, images),
                # Only the side is the other run's: colour and depth are as these images were
                # opened, and the store's key must say so.
                replace(self.config.images, decoded_side=one.config.images.decoded_side),
                one.config.views,
                crops=self.options.crops,
                of=_in_words(name),
            )
            for name, one in self.encoders.items()
        }
        return found | {PIXELS: pixel_features(images, self.config.views, self.runtime.executor)}

    @cached_property
    def _store(self) -> FeatureStore:
        return FeatureStore(self.folder.features, self.runtime)


def _in_words(name: str) -> str:
    """An encoder that is compared, in an error."""
    known = (TRAINED, START, UNTRAINED, SUPERVISED)
    return f"the {name} encoder" if name in known else f"the encoder of {name}"


def _require(holds: bool, wanted: str, came: object) -> None:
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")


def require_same_channels(ours: RunConfig, theirs: RunConfig, given: str) -> None:
    """Refuses an encoder, given by such a flag, for images of other channels than ours.

    Raises:
        ConfigError: says both.
    """
    _require(
        ours.images.channels == theirs.images.channels,
        f"{given} must see images as this run does, with {ours.images.channels} channels",
        theirs.images.channels,
    )
