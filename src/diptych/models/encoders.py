"""Backbones by name, without their classifier: an image to a feature vector h."""

import copy
import difflib
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from diptych.config.model import EncoderConfig
from diptych.config.run import OWN
from diptych.errors import ConfigError
from diptych.models.parts import in_evaluation, without_memory
from diptych.models.resnets import BOTTLENECKS, STAGE_BLOCKS, ResNet, SmallResNet, small_stem

SMALL_RESNET: Final = "small_resnet"
TIMM: Final = "timm:"
_TORCHVISION_RESNETS = ("resnet", "resnext", "wide_resnet")
WHITENING: Final = "whitening."
"""Begins the names of a whitening's tensors in the file of an encoder."""
_COMPUTED_AT_MOST: Final = 64 * 64 * 4
"""Numbers of an image so small that its maps take little memory, whatever file names its side."""
_CLASSIFIERS = ("fc", "classifier", "head", "heads")


def build_encoder(
    config: EncoderConfig,
    *,
    channels: int,
    side_pixels: int,
    seed: int,
    several_sides: bool = False,
    checked: bool = True,
) -> nn.Module:
    """Builds a backbone with random weights that follow from the seed; downloads nothing.

    A name is looked up in diptych, torchvision and timm, in this order; ``timm:NAME`` in timm only.
    Features are what the network gives to its classifier, which is left out. State-dict names are
    the library's, so weights go back and forth. Vision transformers learn their position embedding;
    MoCo v3's fixed one has no switch in either library.

    Args:
        config: which one.
        channels: of the images, 1 or more.
        side_pixels: height and width of the images, which vision transformers are built for.
        seed: of the initial weights; the global generator is left as it was.
        several_sides: whether there are smaller views too; timm's vision transformers interpolate
            their position embeddings for them.
        checked: whether a blank image is encoded to see that the network takes images of this size.
            Of one that is loaded, names and shapes are compared instead.

    Returns:
        A module from (batch, channels, side, side) to (batch, features).

    Raises:
        ConfigError: the name is unknown, a setting does not apply to this network, or it cannot
            take images of this size.
    """
    _require_known(config.name)
    _require_settings_that_apply(config)
    # Weights are drawn on the CPU: no generator of a device needs to be kept.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        with _blamed_on(config.name, channels, side_pixels):
            network = _network(config, channels, side_pixels, several_sides=several_sides)
        _require_whole_patches(config.name, network, side_pixels)
        if config.freeze_patches:
            _freeze_patches(config.name, network)
    if checked:
        with _blamed_on(config.name, channels, side_pixels):
            count_features(network, channels=channels, side_pixels=side_pixels)
    return network


def own_encoder(encoder: nn.Module, *, channels: int, side_pixels: int) -> nn.Module:
    """A copy of a module that was given in Python, if it can be the encoder of a run.

    Args:
        encoder: from (batch, channels, side, side) to (batch, features).
        channels: of the images.
        side_pixels: height and width of the images.

    Raises:
        ConfigError: it is no such module, or its state does not consist of tensors.
    """
    if not isinstance(encoder, nn.Module):
        raise ConfigError(f"encoder= must be a torch.nn.Module; got a {type(encoder).__name__}.")
    encoder = copy.deepcopy(encoder)
    with _blamed_on(OWN, channels, side_pixels):
        count_features(encoder, channels=channels, side_pixels=side_pixels)  # fills lazy modules
    if any(name.startswith(WHITENING) for name in encoder.state_dict()):
        raise ConfigError(
            f"encoder= must have no part called {WHITENING.rstrip('.')!r}: under that name a file "
            "of an encoder has the whitening of its features. Give it another name."
        )
    odd = [name for name, one in encoder.state_dict().items() if not isinstance(one, Tensor)]
    if odd:
        raise ConfigError(
            f"encoder= must have a state of tensors, as others are not saved; {odd[0]} is none."
        )
    return encoder


def count_features(
    encoder: nn.Module, *, channels: int, side_pixels: int, computed: bool = True
) -> int:
    """Length of the feature vector, found by encoding one blank image.

    Args:
        encoder: any module from (batch, channels, side, side) to (batch, features); it is left in
            the mode that it was in, part by part.
        channels: of the image.
        side_pixels: height and width of the image.
        computed: False for a side that a file says, which may be any: beyond 64 pixels no memory
            is taken for it. That imports ``torch._dynamo``, which takes two seconds.

    Raises:
        ConfigError: the module gives something else.
    """
    # In training, batch norms may refuse a batch of one, and would move their statistics.
    with in_evaluation(encoder), torch.no_grad():
        features = _of_blank_image(encoder, channels, side_pixels, computed=computed)
    shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != 1:
        raise ConfigError(
            f"An encoder must map images (batch, {channels}, {side_pixels}, {side_pixels}) to "
            f"features (batch, features); a batch of one gave {shape}. Pool or flatten its output, "
            "or choose another network."
        )
    return int(shape[1])


def _of_blank_image(
    encoder: nn.Module, channels: int, side_pixels: int, *, computed: bool
) -> object:
    """What an encoder gives for a blank image; where it is not to be computed, a copy of it.

    The copy has no memory. Of a module that was given in Python some part may need numbers, and a
    lazy one takes its shapes from them.
    """
    state = (*encoder.parameters(), *encoder.buffers())
    reference = next((one for one in encoder.parameters() if not is_lazy(one)), torch.zeros(()))
    shape = (1, channels, side_pixels, side_pixels)
    is_large = math.prod(shape) > _COMPUTED_AT_MOST
    if not computed and is_large and not any(map(is_lazy, state)):
        with suppress(RuntimeError, TypeError, ValueError, AssertionError, IndexError):
            without_memory = {id(one): one.to("meta") for one in state}
            return copy.deepcopy(encoder, without_memory)(reference.new_empty(shape, device="meta"))
    return encoder(reference.new_zeros(shape))


_WITHOUT: Final = {
    "views.small_side_pixels": ("a side that is", "views.small_views = 0"),
    "views.early_side": ("a share that gives", "views.early_side = 1"),
}
"""Of each setting that asks for smaller views: what to choose, and how to have none."""


def require_side(encoder: nn.Module, *, channels: int, side_pixels: int, setting: str) -> None:
    """Refuses a network that takes images of one size only, where there are smaller views.

    Args:
        encoder: that was built for larger ones.
        channels: of the images.
        side_pixels: height and width of the smaller views.
        setting: that asks for them, of ``ViewsConfig.smaller_sides``.

    Raises:
        ConfigError: says which networks take both.
    """
    try:
        count_features(encoder, channels=channels, side_pixels=side_pixels)
    except (RuntimeError, ValueError, AssertionError) as error:
        choice, without = _WITHOUT[setting]
        raise ConfigError(
            f"the encoder cannot take views of {side_pixels} pixels ({error}), for which {setting} "
            f"asks. Choose {choice} a multiple of its patches, or a network that takes any size, "
            f"as ResNets and timm's vision transformers (timm:NAME) do, or set {without}."
        ) from error


def _network(
    config: EncoderConfig, channels: int, side_pixels: int, *, several_sides: bool
) -> nn.Module:
    if config.name in ENCODERS:
        return ENCODERS[config.name](config, channels, side_pixels)
    if config.name in STAGE_BLOCKS:
        network = ResNet(
            config.name,
            width_multiplier=config.width_multiplier,
            selective_kernels=config.selective_kernels,
        )
        return _fitted(network, config, channels)
    if config.name in torchvision_names():
        return _fitted(_from_torchvision(config, side_pixels), config, channels)
    return _from_timm(config, channels, side_pixels, several_sides=several_sides)


def _small_resnet(config: EncoderConfig, channels: int, side_pixels: int) -> nn.Module:
    del side_pixels  # of any
    return SmallResNet(
        channels, config.width, config.stage_blocks, config.stem_stride, pool=config.pool
    )


ENCODERS: Final[dict[str, Callable[[EncoderConfig, int, int], nn.Module]]] = {
    SMALL_RESNET: _small_resnet,
}
"""Networks of diptych's own: name -> function of the config, the channels and the side of an image.

Further names are looked up in torchvision and timm.
"""


# --- torchvision and timm -------------------------------------------------------------------


def torchvision_names() -> list[str]:
    """Its networks for classification; those for detection and video are in other modules."""
    # Here and not above: importing it takes longer than a small network its first step.
    import torchvision.models

    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def _from_torchvision(config: EncoderConfig, side_pixels: int) -> nn.Module:
    import torchvision.models

    options: dict[str, Any] = {}
    if config.name.startswith("vit_"):
        options = {"image_size": side_pixels}
    elif config.name.startswith("maxvit_"):
        options = {"input_size": (side_pixels, side_pixels)}
    # Their auxiliary classifiers return tuples in training. init_weights is named, as
    # torchvision warns of its default.
    elif config.name in ("googlenet", "inception_v3"):
        options = {"aux_logits": False, "init_weights": True}
    network: nn.Module = torchvision.models.get_model(config.name, weights=None, **options)
    _remove_classifier(config.name, network)
    return network


def _fitted(network: nn.Module, config: EncoderConfig, channels: int) -> nn.Module:
    """A network with the stem, the channels and the pooling of the config, in its own tensors."""
    if config.stem != "imagenet":  # of ResNets only: SimCLR, appendix B.9
        width = int(network.get_submodule("bn1").num_features)  # type: ignore[arg-type]
        border = 2 if config.stem == "small_padded" else 1
        network.conv1 = small_stem(channels, width, border=border)
        network.maxpool = nn.Identity()
    elif channels != 3:
        _replace_first_convolution(network, channels)
    if config.pool > 1:
        network.avgpool = nn.AdaptiveAvgPool2d(config.pool)
    return network


def _remove_classifier(name: str, network: nn.Module) -> None:
    """Puts the identity in the place of the last layer, and of a dropout in front of it.

    The classifier is the last linear layer (of SqueezeNet: the last convolution) of the part that
    is named so. Layers of that part before it are kept: VGG's features are its 4096 hidden units.
    """
    last = [
        position
        for position, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and position.split(".")[0] in _CLASSIFIERS
    ][-1:]
    if not last:
        raise ConfigError(
            f"encoder.name = {name!r}: no classifier was found to leave out. Wanted a part named "
            f"{', '.join(_CLASSIFIERS)}; use timm:{name}, or give Contrastive the network yourself."
        )
    parent, _, child = last[0].rpartition(".")
    holder = network.get_submodule(parent)
    for (before, module), (after, _) in pairwise(list(holder.named_children())):
        if after == child and isinstance(module, nn.Dropout):
            setattr(holder, before, nn.Identity())
    setattr(holder, child, nn.Identity())


def _replace_first_convolution(network: nn.Module, channels: int) -> None:
    """For other channels than 3, with initial weights of the same spread."""
    position, old = next(
        (position, module)
        for position, module in network.named_modules()
        if isinstance(module, nn.Conv2d)
    )
    new = nn.Conv2d(
        channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    with torch.no_grad():
        new.weight.normal_().mul_(old.weight.std())
        if new.bias is not None and old.bias is not None:
            new.bias.copy_(old.bias)
    parent, _, child = position.rpartition(".")
    setattr(network.get_submodule(parent), child, new)


def _from_timm(
    config: EncoderConfig, channels: int, side_pixels: int, *, several_sides: bool
) -> nn.Module:
    import timm

    name = config.name.removeprefix(TIMM)
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    if config.attention_heads is not None:
        _require_fitting_heads(config.attention_heads, name)
        options["num_heads"] = config.attention_heads
    # Most convolutional networks take any size and have neither argument, and some transformers
    # not the second.
    size: dict[str, Any] = {"img_size": side_pixels}
    tried = [{**size, "dynamic_img_size": True}, size] if several_sides else [size]
    for sizes in tried:
        try:
            return timm.create_model(name, **sizes, **options)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
    return timm.create_model(name, **options)


def _require_fitting_heads(heads: int, name: str) -> None:
    import timm

    with without_memory():
        width: int = timm.create_model(name, pretrained=False).num_features  # type: ignore
    if width % heads:
        fitting = ", ".join(str(one) for one in range(1, 17) if width % one == 0)
        raise ConfigError(
            f"encoder.attention_heads = {heads} must divide the width of {name}, {width}; use one "
            f"of {fitting}."
        )


# --- patches of vision transformers -----------------------------------------------------------


def _patch_projection(network: nn.Module) -> nn.Conv2d | None:
    """The convolution that cuts the image into patches: torchvision's, or timm's."""
    projection = getattr(network, "conv_proj", None)
    if projection is None:
        projection = getattr(getattr(network, "patch_embed", None), "proj", None)
    if not isinstance(projection, nn.Conv2d) or projection.kernel_size[0] == 1:
        return None
    return projection if projection.kernel_size == projection.stride else None


def patch_side(network: nn.Module) -> int:
    """Height and width of the patches that a vision transformer cuts images into; 1 of others."""
    projection = _patch_projection(network)
    return 1 if projection is None else int(projection.kernel_size[0])


def _require_whole_patches(name: str, network: nn.Module, side_pixels: int) -> None:
    """Refuses a border that timm would drop silently, and a single patch for an image."""
    projection = _patch_projection(network)
    if projection is None:
        return
    patch = projection.kernel_size[0]
    if side_pixels % patch or side_pixels < 2 * patch:
        raise ConfigError(
            f"encoder.name = {name!r} cuts images into patches of {patch} pixels. Wanted "
            f"views.side_pixels a multiple of {patch} and {2 * patch} or more; got {side_pixels}. "
            "Use another side, or a network with smaller patches."
        )


def _freeze_patches(name: str, network: nn.Module) -> None:
    """Leaves the patch projection as it begins (MoCo v3, section 4): Xavier's linear layer."""
    projection = _patch_projection(network)
    if projection is None:
        raise ConfigError(
            "encoder.freeze_patches goes with vision transformers that project patches by one "
            f"layer, as vit_small_patch16_224; {name!r} does not. Set it to false."
        )
    # Seen as a matrix, it has the fans of a linear layer: a kernel's fan-out counts its pixels.
    nn.init.xavier_uniform_(projection.weight.view(projection.out_channels, -1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    projection.requires_grad_(False)


# --- errors -----------------------------------------------------------------------------------


def _require_known(name: str) -> None:
    if name in ENCODERS or name in STAGE_BLOCKS or name in torchvision_names():
        return
    if name == OWN:
        raise ConfigError(
            "encoder.name = 'own' is a module that was given in Python, and only your code can "
            "build it. Give it as encoder=MODULE to diptych.pretrain, evaluate, write_report or "
            "load_encoder; other functions and the command line need a network by name."
        )
    import timm

    if timm.is_model(name.removeprefix(TIMM)):
        return
    if name.startswith(TIMM):
        known = [TIMM + other for other in timm.list_models()]
    else:
        known = [*ENCODERS, *torchvision_names(), *timm.list_models()]
    nearest = difflib.get_close_matches(name, dict.fromkeys(known), n=5, cutoff=0.4)
    raise ConfigError(
        f"encoder.name = {name!r} is not known. Wanted {', '.join(map(repr, ENCODERS))} or a "
        f"network of torchvision or timm; the nearest are {', '.join(nearest or ['resnet50'])}."
    )


def _is_timms_transformer(name: str) -> bool:
    if name.startswith(TIMM):
        return name.removeprefix(TIMM).startswith("vit_")
    return name.startswith("vit_") and name not in torchvision_names()


def _require_settings_that_apply(config: EncoderConfig) -> None:
    """Refuses settings that another kind of network has, before anything is built."""
    name = config.name
    if config.width_multiplier > 1 and name not in STAGE_BLOCKS:
        raise ConfigError(
            f"encoder.width_multiplier = {config.width_multiplier} goes with "
            f"{', '.join(STAGE_BLOCKS)}; got encoder.name = {name!r}. Set it to 1."
        )
    if config.selective_kernels and name not in BOTTLENECKS:
        raise ConfigError(
            f"encoder.selective_kernels goes with {', '.join(BOTTLENECKS)}, whose blocks are "
            f"bottlenecks; got encoder.name = {name!r}. Set it to false."
        )
    if config.attention_heads and not _is_timms_transformer(name):
        raise ConfigError(
            f"encoder.attention_heads = {config.attention_heads} goes with timm's vision "
            f"transformers, as vit_small_patch16_224; got encoder.name = {name!r}. Leave it out."
        )
    if name == SMALL_RESNET:
        return
    is_resnet = name in STAGE_BLOCKS or (
        name.startswith(_TORCHVISION_RESNETS) and name in torchvision_names()
    )
    if config.stem != "imagenet" and not is_resnet:
        raise ConfigError(
            f"encoder.stem = {config.stem!r} goes with {SMALL_RESNET} and torchvision's ResNets; "
            f"{name!r} has only its own: set encoder.stem = 'imagenet'."
        )
    if config.pool > 1 and not is_resnet:
        raise ConfigError(
            f"encoder.pool = {config.pool} goes with {SMALL_RESNET} and torchvision's ResNets; "
            f"{name!r} has only its own: set encoder.pool = 1."
        )


@contextmanager
def _blamed_on(name: str, channels: int, side_pixels: int) -> Iterator[None]:
    """Turns what a library says of an image that does not fit into an error of the config."""
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, IndexError, ZeroDivisionError) as error:
        reason = str(error) or type(error).__name__
        raise ConfigError(
            f"encoder.name = {name!r} cannot take images of {side_pixels} x {side_pixels} pixels "
            f"and {channels} channels ({reason}). Set views.side_pixels to what it was made for, "
            "or use another network."
        ) from error
