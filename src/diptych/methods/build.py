"""The methods by name, how they are built, and what a config alone says of each.

In the place of an entry of a table, parts may be given in Python; the config then says ``own``.
"""

import inspect
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any, Final

from torch import Tensor, nn

from diptych.config.files import flatten
from diptych.config.model import EncoderConfig
from diptych.config.run import OWN, RunConfig
from diptych.errors import ConfigError
from diptych.images.collection import Collection
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.methods.dense import build_dense
from diptych.methods.distillation import build_distillation
from diptych.methods.losses import find_loss
from diptych.methods.method import Method
from diptych.methods.objective import Loss
from diptych.methods.siamese.barlow_twins import BarlowTwins
from diptych.methods.siamese.byol import BYOL
from diptych.methods.siamese.dino import DINO
from diptych.methods.siamese.lejepa import LeJEPA
from diptych.methods.siamese.nnclr import NNCLR
from diptych.methods.siamese.simsiam import SimSiam
from diptych.methods.siamese.swav import SwAV
from diptych.methods.siamese.vicreg import VICReg
from diptych.models.encoders import own_encoder
from diptych.models.norms import use_norm
from diptych.models.weights import difference, encoder_structure


@dataclass(frozen=True)
class MethodKind:
    """How a method is built, and what a run must know of it before: an entry of ``METHODS``.

    Attributes:
        build: from (config, collection, executor). Where an encoder or a loss is given in Python,
            it is called with ``encoder=`` or ``loss=`` as well.
        uses_labels: whether a run of a config is told labels of its images.
        has_keys: whether it compares queries with keys; else there is no pretext accuracy.
    """

    build: Callable[..., Method]
    uses_labels: Callable[[RunConfig], bool] = lambda _: False
    has_keys: bool = False


@dataclass(frozen=True)
class OwnParts:
    """What is given in Python in the place of what a config names.

    Attributes:
        encoder: from (batch, channels, side, side) to (batch, features).
        loss: of a contrastive method.
        method: how the whole of it is built.
    """

    encoder: nn.Module | None = None
    loss: Loss | None = None
    method: MethodKind | None = None


def build_with_keys(config: RunConfig, *, image_count: int = 1, **own: Any) -> Contrastive:
    """Builds a method that compares queries with keys; arguments of ``build_contrastive``."""
    build = build_dense if config.method_name == "dense" else build_contrastive
    return build(config, image_count=image_count, **own)


def _of_collection(
    config: RunConfig, collection: Collection, executor: Executor, **own: Any
) -> Contrastive:
    return build_with_keys(config, image_count=len(collection.train), **own)


METHODS: Final[Mapping[str, MethodKind]] = {
    "contrastive": MethodKind(
        _of_collection,
        uses_labels=lambda config: find_loss(config.method.loss.kind).needs_labels,
        has_keys=True,
    ),
    "dense": MethodKind(_of_collection, has_keys=True),
    # By the classifier of the teacher.
    "distillation": MethodKind(build_distillation, uses_labels=lambda _: True),
    "byol": MethodKind(BYOL.build),
    "simsiam": MethodKind(SimSiam.build),
    "barlow_twins": MethodKind(BarlowTwins.build),
    "vicreg": MethodKind(VICReg.build),
    "lejepa": MethodKind(LeJEPA.build),
    "nnclr": MethodKind(NNCLR.build),
    "swav": MethodKind(SwAV.build),
    "dino": MethodKind(DINO.build),
}
"""By ``RunConfig.method_name``."""

NOTHING_OWN: Final = OwnParts()

_ARGUMENTS: Final = {"encoder.name": "encoder", "method.loss.kind": "loss", "method.kind": "method"}
"""What a setting that is ``own`` stands for, by its name among ``OwnParts``."""


def find_method(config: RunConfig, own: OwnParts = NOTHING_OWN) -> MethodKind:
    """The method of a run: given in Python, or of the table.

    Raises:
        ConfigError: there is none of that name; says which there are.
    """
    name = config.method_name
    if name == OWN and own.method is not None:
        return own.method
    if name == OWN:
        raise ConfigError(
            "method.kind = 'own' is a method that was given in Python and is not at hand here; "
            "diptych.pretrain takes it as method=METHOD."
        )
    if name not in METHODS:
        raise ConfigError(f"method.kind must be one of {', '.join(METHODS)}; got {name!r}.")
    return METHODS[name]


def has_keys(config: RunConfig) -> bool:
    """Whether a run compares queries with keys, as far as its config tells."""
    return config.method_name in METHODS and METHODS[config.method_name].has_keys


def own_parts(
    encoder: nn.Module | None,
    loss: Loss | Callable[..., Tensor] | None,
    method: MethodKind | Callable[..., Method] | None,
) -> OwnParts:
    """Parts as a caller gives them; a function alone becomes a loss or a method.

    Raises:
        ConfigError: it is none.
    """
    for name, part, kind in (("loss", loss, Loss), ("method", method, MethodKind)):
        if part is not None and not isinstance(part, kind) and not callable(part):
            raise ConfigError(
                f"{name}= must be a diptych.{kind.__name__} or a function; got {part!r}."
            )
    return OwnParts(
        encoder,
        loss if loss is None or isinstance(loss, Loss) else Loss(loss),
        method if method is None or isinstance(method, MethodKind) else MethodKind(method),
    )


def own_settings(own: OwnParts, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a config says of the parts that are given in Python, by dotted names.

    Raises:
        ConfigError: ``settings`` name another in the place of one of them.
    """
    found = {name: OWN for name, part in _ARGUMENTS.items() if getattr(own, part) is not None}
    for name in found:
        if settings.get(name, OWN) != OWN:
            raise ConfigError(
                f"{name} = {settings[name]!r} was given, and one of your own in its place; leave "
                "one of them out."
            )
    return found


def require_own_parts(config: RunConfig, own: OwnParts) -> None:
    """Refuses a config whose ``own`` parts are not at hand.

    Raises:
        ConfigError: names what was own, and says how to give it again.
    """
    named = flatten(config)
    missing = {
        name: argument
        for name, argument in _ARGUMENTS.items()
        if named[name] == OWN and getattr(own, argument) is None
    }
    if missing:
        arguments = ", ".join(f"{one}={one.upper()}" for one in missing.values())
        raise ConfigError(
            f"{' and '.join(f'{name} = {OWN!r}' for name in missing)}: given in Python, so that "
            f"the command line cannot build it. Use diptych.pretrain(..., {arguments}); to go on "
            "with a run, the same as before and resume=True."
        )


def build_method(
    config: RunConfig,
    collection: Collection,
    executor: Executor,
    own: OwnParts = NOTHING_OWN,
    start: nn.Module | None = None,
) -> Method:
    """Builds what a config asks for, with random weights that follow from its seed.

    Args:
        config: of the run.
        collection: its images.
        executor: its threads make views.
        own: parts given in the place of those that the config names; they stay as they are.
        start: the config's encoder with weights to begin from, in the place of random ones. All
            that a method makes of its encoder, as a momentum encoder, begins from them too.

    Raises:
        ConfigError: settings do not go together, or a part that was given does not fit.
    """
    kind = find_method(config, own)
    given: dict[str, Any] = {} if own.loss is None else {"loss": own.loss}
    if own.encoder is not None:
        _require_no_settings_of(config.encoder)
        given["encoder"] = _copy_of(own.encoder, config)
    elif start is not None:
        given["encoder"] = start
    try:
        # Bound, not called: a TypeError from inside of build must not be taken for wrong arguments.
        inspect.signature(kind.build).bind(config, collection, executor, **given)
    except TypeError as error:
        arguments = ", ".join(["config", "images", "executor", *(f"{name}=" for name in given)])
        raise ConfigError(
            f"the method must be built by a function of ({arguments}); {error}."
        ) from error
    method = kind.build(config, collection, executor, **given)
    if not isinstance(method, Method):
        raise ConfigError(f"method= must build a diptych.Method; got a {type(method).__name__}.")
    if method.needs_labels and not uses_labels(config, own):
        raise ConfigError(
            "the method needs labels and its MethodKind does not say so: give "
            "method=MethodKind(build, uses_labels=lambda config: True)."
        )
    if config.method_name != "contrastive":
        _require_known_encoder(method, config, own)
    return method


def uses_labels(config: RunConfig, own: OwnParts = NOTHING_OWN) -> bool:
    """Whether a run is told labels of its images: by its loss, or by its teacher's classifier."""
    if own.loss is not None and config.method_name == "contrastive":
        return own.loss.needs_labels
    return find_method(config, own).uses_labels(config)


def _require_no_settings_of(encoder: EncoderConfig) -> None:
    """Refuses settings that a module which was given in Python does not have."""
    plain = flatten(
        replace(
            EncoderConfig(OWN, stem=encoder.stem),
            frozen_parts=encoder.frozen_parts,
            frozen_epochs=encoder.frozen_epochs,
            batch_statistics=encoder.batch_statistics,
        )
    )
    useless = [f"encoder.{name}" for name, one in flatten(encoder).items() if plain[name] != one]
    if useless:
        raise ConfigError(
            f"{', '.join(useless)}: not of an encoder that is given in Python. Leave that out."
        )


def _copy_of(encoder: nn.Module, config: RunConfig) -> nn.Module:
    channels, side = config.images.channels, config.views.side_pixels
    return own_encoder(encoder, channels=channels, side_pixels=side)


def _require_known_encoder(method: Method, config: RunConfig, own: OwnParts) -> None:
    """Refuses an encoder that could not be loaded again by what the config says of it."""
    if own.encoder is not None:
        wanted = use_norm(_copy_of(own.encoder, config), config.norm)
        what = "the module given as encoder="
    else:
        # Names, shapes and types are all that is compared: this second network takes no memory.
        wanted = encoder_structure(config)
        what = f"the network that encoder.name = {config.encoder.name!r} means"
    found = difference(wanted.state_dict(), method.encoder.state_dict())
    if found is not None:
        raise ConfigError(
            f"the method's encoder is not {what}, so the run could not be loaded again: {found}. "
            "Take that one with diptych.use_norm(encoder, config.norm), or give the method's "
            "encoder as encoder= too."
        )
