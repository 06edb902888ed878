"""The methods by name, and what is known of each from a config alone, before it is built."""

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Final

from torch import nn

from diptych.config.sections import RunConfig
from diptych.images.collection import Collection
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.methods.distillation import build_distillation
from diptych.methods.losses import find_loss
from diptych.methods.method import Method
from diptych.methods.objective import Loss

MethodBuilder = Callable[[RunConfig, Collection, Executor], Method]


@dataclass(frozen=True)
class OwnParts:
    """What is given in Python in the place of what a config names.

    Attributes:
        encoder: from (batch, channels, side, side) to (batch, features).
        loss: of a contrastive method.
        method: builds the whole of it; then the other two are not looked at.
    """

    encoder: nn.Module | None = None
    loss: Loss | None = None
    method: MethodBuilder | None = None


@dataclass(frozen=True)
class MethodKind:
    """One entry of ``METHODS``.

    Attributes:
        build: from (config, collection, executor, encoder=, loss=).
        uses_labels: whether a run of a config is told labels of its images.
        has_keys: whether it compares queries with keys; else there is no pretext accuracy.
    """

    build: Callable[..., Method]
    uses_labels: Callable[[RunConfig], bool]
    has_keys: bool


def _contrastive(
    config: RunConfig, collection: Collection, executor: Executor, **own: Any
) -> Contrastive:
    return build_contrastive(config, image_count=len(collection.train), **own)


METHODS: Final[Mapping[str, MethodKind]] = {
    "contrastive": MethodKind(
        _contrastive,
        uses_labels=lambda config: find_loss(config.method.loss.kind).needs_labels,
        has_keys=True,
    ),
    # By the classifier of the teacher.
    "distillation": MethodKind(build_distillation, uses_labels=lambda _: True, has_keys=False),
}
"""By ``RunConfig.method_name``."""

NOTHING_OWN: Final = OwnParts()


def build_method(
    config: RunConfig, collection: Collection, executor: Executor, own: OwnParts = NOTHING_OWN
) -> Method:
    """Builds what a config asks for, with random weights that follow from its seed.

    Args:
        config: of the run.
        collection: its images.
        executor: its threads make views.
        own: parts given in the place of those that the config names.

    Raises:
        ConfigError: settings do not go together.
    """
    if own.method is not None:
        return own.method(config, collection, executor)
    build = METHODS[config.method_name].build
    return build(config, collection, executor, encoder=own.encoder, loss=own.loss)


def uses_labels(config: RunConfig, own: OwnParts = NOTHING_OWN) -> bool:
    """Whether a run is told labels of its images: by its loss, or by its teacher's classifier."""
    if own.loss is not None:
        return own.loss.needs_labels
    return METHODS[config.method_name].uses_labels(config)
