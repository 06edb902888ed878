"""The papers' settings at a scale, as functions to a config.

``paper`` carries what the papers give for ImageNet, ``cifar10`` what SimCLR and SimSiam give for
CIFAR-10. ``small`` and ``tiny`` keep the method and change what depends on size: encoder, side of a
view, batch, dictionary, length; docs/recipes.md says what was tried. A recipe is only a starting
point: a config file and flags override it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Literal

from diptych.config.method import (
    SIAMESE,
    AnchorConfig,
    BankConfig,
    DenseConfig,
    DictionaryConfig,
    InBatchConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    QueueConfig,
)
from diptych.config.model import HeadConfig, NormConfig
from diptych.config.run import OptimizerConfig, RunConfig, ScheduleConfig, StepConfig
from diptych.config.scales import (
    ENCODER_AT,
    PLAIN_SGD,
    SCALES,
    SIDE_AT,
    Scale,
    following,
    mlp_head,
    training_at,
    views_at,
)
from diptych.config.siamese_recipes import (
    barlow_twins,
    byol,
    dino,
    lejepa,
    nnclr,
    simsiam,
    swav,
    vicreg,
)
from diptych.errors import ConfigError

HAVE_CIFAR10: Final = frozenset({"simclr", "simsiam"})
"""The recipes whose papers give settings for CIFAR-10."""

PHOTOGRAPH_SIDE_PIXELS: Final = 64
"""Median side of a set from which on its images have more detail than 32 pixels show; below are
those of CIFAR's kind."""
_PHOTOGRAPH_VIEW: Final = 64  # pixels of a view of them at `tiny`
_CELLS: Final = (4, 2)  # along each side, in which maps of the smallest network are pooled,
_MOST_FEATURES: Final = 2048  # with no more features than ResNet-50 has
_HIDDEN: Final = 512  # of the head then: as wide as the features it costs a third of a step
_VIEW_FOR_WEIGHTS: Final = 128  # the same for an encoder that begins with weights
_FROZEN_SHARE: Final = 0.6  # of the parts of such an encoder
_COMPARED_IMAGES: Final = 2000  # at the end; fitted on half of them, richer features did not pay
_LEARNING_ON_POLICY: Final = (
    "crop(area=0.4..1) + flip + color(brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05)"
)
_LEARNING_ON_SHARE: Final = 0.25  # of the rate of methods without negatives
SMALL_BATCH: Final = 64
"""To which a batch may go down for few images."""
_BATCHES_IN_PASS: Final = 4  # fewer, and what is left over of a pass is a large part of it
_LEAST_STEPS: Final = 2_000  # less hardly moves a network from where it began
_LEAST_STEPS_ON: Final = 500  # of an encoder that begins with weights; of fewer nothing is said
_MOST_SEEN: Final = 1_500_000  # images, each as often as it comes: an hour or less, of the smallest
_HEALTH: Final = 30  # measurements of health in a run, at most about
_IMAGES_BETWEEN: Final = 8  # images learned from between two of them, for each that is measured
FEW_PHOTOGRAPHS: Final = 1_000
_WINDOW_OVER_VIEW: Final = 8 / 3  # least side of a window, in sides of a view

_RESNETS: Final = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)


def memory_bank(scale: Scale) -> RunConfig:
    """Instance discrimination (1805.01978) with InfoNCE: one stored key for each image.

    MoCo (1911.05722, section 3.2) compares it with its queue; settings are MoCo v1's.
    """
    config = _moco(scale, "memory_bank")
    return replace(
        config,
        norm=NormConfig(kind="batch"),  # a key from an earlier epoch leaks no statistics
        method=MethodConfig(
            dictionary=DictionaryConfig(
                kind="bank",
                bank=BankConfig(
                    negatives={"tiny": 2048, "small": 16384, "paper": 65536}[scale], momentum=0.5
                ),
            ),
            key_encoder=KeyEncoderConfig(kind="shared"),
            loss=config.method.loss,
        ),
    )


def end_to_end(scale: Scale) -> RunConfig:
    """MoCo's end-to-end mechanism (1911.05722, section 3.2): keys of the batch, with gradients.

    The learning rate grows with the batch, without which it loses about two points (section 4.1).
    """
    config = _moco(scale, "end_to_end")
    return replace(
        config,
        method=MethodConfig(
            dictionary=DictionaryConfig(kind="batch", batch=InBatchConfig(both_views=False)),
            key_encoder=KeyEncoderConfig(kind="shared"),
            loss=config.method.loss,
        ),
        training=training_at(scale, batch_size=1024),
    )


def moco_v1(scale: Scale) -> RunConfig:
    """MoCo (1911.05722): InfoNCE against a queue of keys from a momentum encoder, a linear head."""
    return _moco(scale, "moco_v1")


def moco_v2(scale: Scale) -> RunConfig:
    """MoCo v2 (2003.04297): MoCo with an MLP head, stronger views and a cosine schedule."""
    config = _moco(scale, "moco_v2")
    return replace(
        config,
        views=views_at(scale, "moco_v2"),
        head=mlp_head(),
        method=replace(config.method, loss=LossConfig(temperature=0.2)),
        schedule=ScheduleConfig(kind="cosine"),
    )


def densecl(scale: Scale) -> RunConfig:
    """DenseCL (2011.09157): MoCo v2 that compares places of the last map too, for detection."""
    config = moco_v2(scale)
    warmup = {"tiny": 100, "small": 300, "paper": 1000}[scale]
    dense = DenseConfig(warmup_steps=warmup)
    method = replace(config.method, kind="dense", dense=dense)
    return replace(config, recipe="densecl", method=method)


def moco_v3(scale: Scale) -> RunConfig:
    """MoCo v3 (2104.02057): keys of the batch from a momentum encoder, predictor, both directions.

    Its settings for ResNet-50 (section 4). The paper's loss is the sum over both directions times
    2T; ours is their mean times 4T. The prediction is normalised as the projection is: so it is in
    the paper and the first published code; later code leaves that norm out for ResNets.
    """
    temperature = {"tiny": 0.2, "small": 0.2, "paper": 1.0}[scale]
    hidden = {"tiny": 256, "small": 1024, "paper": 4096}[scale]
    return RunConfig(
        recipe="moco_v3",
        scale=scale,
        views=views_at(scale, "moco_v3"),
        encoder=ENCODER_AT[scale],
        norm=NormConfig(kind="sync"),
        head=HeadConfig(
            layers=2,
            hidden_features=hidden,
            output_features=256 if scale == "paper" else 128,
            batch_norm=True,
            output_norm=True,
            predictor_layers=2,
        ),
        method=MethodConfig(
            symmetric=True,
            dictionary=DictionaryConfig(kind="batch", batch=InBatchConfig(both_views=False)),
            key_encoder=KeyEncoderConfig(
                kind="momentum", momentum=0.99, momentum_schedule="cosine"
            ),
            loss=LossConfig(temperature=temperature, weight=4 * temperature),
        ),
        optimizer=OptimizerConfig(kind="lars", learning_rate=0.3, weight_decay=1e-6)
        if scale == "paper"
        else PLAIN_SGD,
        schedule=ScheduleConfig(warmup_epochs=10.0 if scale == "paper" else 1.0),
        training=training_at(scale, batch_size=4096),
    )


def simclr(scale: Scale) -> RunConfig:
    """SimCLR (2002.05709): NT-Xent over the batch, strong colour, LARS.

    ``cifar10`` is appendix B.9: a 3x3 stem, no blur, half the strength of colour, T = 0.5.
    """
    # 0.5 on CIFAR-10, appendix B.9, in 1,000 epochs; in ten or twenty, half of it learns faster.
    strength = {"tiny": 0.25, "cifar10": 0.5}.get(scale, 1.0)
    views = replace(views_at(scale, "simclr"), strength=strength)
    temperatures = {"tiny": 0.2, "small": 0.2, "cifar10": 0.5, "paper": 0.1}
    return RunConfig(
        recipe="simclr",
        scale=scale,
        views=views,
        encoder=ENCODER_AT[scale],
        norm=NormConfig(kind="sync"),  # section 2.2: over all devices
        head=mlp_head(batch_norm=True),
        method=MethodConfig(
            dictionary=DictionaryConfig(kind="batch"),
            key_encoder=KeyEncoderConfig(kind="shared"),
            loss=LossConfig(temperature=temperatures[scale]),
        ),
        # LARS is for batches of thousands; below, plain SGD learns as much and has one knob less.
        optimizer={
            "paper": OptimizerConfig(kind="lars", learning_rate=0.3, weight_decay=1e-6),
            "cifar10": OptimizerConfig(kind="lars", learning_rate=0.25, weight_decay=1e-6),
        }.get(scale, PLAIN_SGD),
        schedule=ScheduleConfig(warmup_epochs=10.0 if scale in ("paper", "cifar10") else 1.0),
        training=training_at(scale, batch_size=1024 if scale == "cifar10" else 4096),
    )


def simclr_fast(scale: Scale) -> RunConfig:
    """SimCLR for short runs: smaller views for three quarters of the steps, and a linear head.

    Steps on three quarters of the side take about two thirds of the time, and the last quarter
    learns at the side that the encoder is used at (progressive resizing). In the paper's long runs
    an MLP is better (section 4.2). docs/decisions/0036-short-runs.md has the trials.
    """
    config = simclr(scale)
    views = replace(config.views, early_side=0.75, early_share=0.75)
    head = replace(config.head, layers=1, batch_norm=False)
    return replace(config, recipe="simclr_fast", views=views, head=head)


def simclr_v2(scale: Scale) -> RunConfig:
    """SimCLR v2 (2006.10029): SimCLR with a larger encoder and a head of three layers.

    Fine-tuning begins at the head's first layer (section 2), and distillation comes after. At
    ``paper`` the encoder is the paper's largest: ResNet-152, three times as wide, with selective
    kernels.
    """
    config = simclr(scale)
    large = replace(config.encoder, name="resnet152", width_multiplier=3, selective_kernels=True)
    return replace(
        config,
        recipe="simclr_v2",
        encoder=large if scale == "paper" else config.encoder,
        head=replace(config.head, layers=3),
        optimizer=OptimizerConfig(
            kind="lars", learning_rate=0.1, scaling="square_root", weight_decay=1e-4
        )
        if scale == "paper"
        else config.optimizer,
        schedule=ScheduleConfig(warmup_epochs=40.0 if scale == "paper" else 1.0),
        training=replace(config.training, epochs=800) if scale == "paper" else config.training,
    )


def _moco(scale: Scale, name: str) -> RunConfig:
    """MoCo v1 (1911.05722, sections 3.3 and 4), of which its comparisons keep what they can."""
    return RunConfig(
        recipe=name,
        scale=scale,
        views=views_at(scale, "moco_v1"),
        encoder=ENCODER_AT[scale],
        norm=NormConfig(kind="shuffle", images_per_group=32),  # 256 images on 8 devices
        head=HeadConfig(layers=1, output_features=128),
        method=MethodConfig(
            dictionary=DictionaryConfig(
                kind="queue",
                queue=QueueConfig(size={"tiny": 2048, "small": 16384, "paper": 65536}[scale]),
            ),
            # To keep 0.999 of itself at each step takes thousands of steps to move.
            key_encoder=KeyEncoderConfig(
                kind="momentum", momentum={"tiny": 0.99, "small": 0.996, "paper": 0.999}[scale]
            ),
            loss=LossConfig(temperature=0.2 if scale == "tiny" else 0.07),
        ),
        optimizer=OptimizerConfig(
            kind="sgd",
            learning_rate={"tiny": 0.12, "small": 0.06, "paper": 0.03}[scale],
            weight_decay=1e-4,
        ),
        schedule=ScheduleConfig(kind="step", step=StepConfig(drops=(0.6, 0.8))),
        training=training_at(scale, batch_size=256),
    )


RECIPES: Final[Mapping[str, Callable[[Scale], RunConfig]]] = {
    "memory_bank": memory_bank,
    "end_to_end": end_to_end,
    "moco_v1": moco_v1,
    "moco_v2": moco_v2,
    "densecl": densecl,
    "moco_v3": moco_v3,
    "simclr": simclr,
    "simclr_fast": simclr_fast,
    "simclr_v2": simclr_v2,
    "byol": byol,
    "simsiam": simsiam,
    "barlow_twins": barlow_twins,
    "vicreg": vicreg,
    "lejepa": lejepa,
    "nnclr": nnclr,
    "swav": swav,
    "dino": dino,
}
"""Each recipe by its name: a function from a scale to its settings."""


def recipe_config(recipe: str, scale: str) -> RunConfig:
    """The config of a recipe at a scale.

    Raises:
        ConfigError: there is no such recipe or scale.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}; wanted one of {', '.join(RECIPES)}.")
    if scale not in SCALES:
        raise ConfigError(f"there is no scale {scale!r}; wanted one of {', '.join(SCALES)}.")
    if scale == "cifar10" and recipe not in HAVE_CIFAR10:
        raise ConfigError(
            f"{recipe} has no scale cifar10, as no paper gives settings for it; wanted "
            f"{', '.join(one for one in SCALES if one != scale)}."
        )
    return RECIPES[recipe](scale)


def fitted_batch(config: RunConfig, image_count: int) -> RunConfig:
    """The same config with a batch that the images fill, if its own is too large for them."""
    if config.training.batch_size <= image_count:
        return config
    fitting = 2 ** max(1, image_count.bit_length() - 1)  # a norm's groups divide it, or it is one
    return replace(config, training=replace(config.training, batch_size=fitting))


def fitted_queue(config: RunConfig, image_count: int) -> RunConfig:
    """The same config with a queue of no more keys than there are images.

    In a longer one a query meets old keys of its own image as negatives.
    """
    dictionary = config.method.dictionary
    size = max(1, min(dictionary.queue.size, image_count))
    queue = replace(dictionary.queue, size=size)
    method = replace(config.method, dictionary=replace(dictionary, queue=queue))
    return replace(config, method=method)


def learning_on(config: RunConfig, *, parts: int) -> RunConfig:
    """The same recipe for an encoder that begins with weights from elsewhere.

    The first parts stay as they are, an anchor holds the features near the start, views are milder
    and the run is short; docs/decisions/0028-learning-on.md has the trials. Those of ``SIAMESE``
    keep their optimizer, at a quarter of its rate.

    Args:
        config: of the recipe.
        parts: of the encoder, see ``encoder_parts``.
    """
    optimizer = OptimizerConfig(kind="sgd", learning_rate=0.12, weight_decay=1e-4)
    keep = replace(config.training.keep, images=_COMPARED_IMAGES)
    if config.method.kind in SIAMESE:
        own = config.optimizer
        optimizer = replace(own, learning_rate=_LEARNING_ON_SHARE * own.learning_rate)
    return replace(
        config,
        # What the weights know was learned from large images.
        views=replace(following(config.views, _LEARNING_ON_POLICY), early_side=1.0),
        encoder=replace(config.encoder, frozen_parts=min(round(_FROZEN_SHARE * parts), parts - 1)),
        method=replace(config.method, anchor=AnchorConfig(weight=1.0)),
        optimizer=optimizer,
        schedule=ScheduleConfig(kind="cosine", warmup_epochs=1.0),
        training=replace(config.training, epochs=10, keep=keep),
    )


def whole_patches(side_pixels: int, patch: int) -> int:
    """The side nearest to one that a vision transformer cuts into whole patches, two or more.

    >>> whole_patches(64, 14), whole_patches(128, 16), whole_patches(96, 1)
    (70, 128, 96)
    """
    return patch * max(2, round(side_pixels / patch))


def suited_side(
    config: RunConfig, median_side_pixels: int, *, weights: bool, patch: int = 1
) -> RunConfig:
    """The same config with larger views: at `tiny` of photographs, at any scale of given weights.

    Weights were learned on large images, and even small ones serve them better enlarged.

    Args:
        config: at any scale.
        median_side_pixels: of the images.
        weights: whether the encoder begins with some.
        patch: see ``whole_patches``.
    """
    side, photographs = config.views.side_pixels, median_side_pixels >= PHOTOGRAPH_SIDE_PIXELS
    if weights:
        side = max(side, _VIEW_FOR_WEIGHTS if photographs else _PHOTOGRAPH_VIEW)
    elif photographs and config.scale == "tiny":
        side = _PHOTOGRAPH_VIEW
    side = whole_patches(side, patch)
    return replace(config, views=replace(config.views, side_pixels=side))


def suited_pool(config: RunConfig, asked: RunConfig) -> RunConfig:
    """The same config with features of cells of an image, where its network is the smallest.

    A hundred features of a whole image tell a classifier too little of where something is.

    Args:
        config: at a scale that nobody asked for.
        asked: the same with all that is asked for, which says how large the last maps are.
    """
    encoder = asked.encoder
    if config.encoder.name != "small_resnet" or encoder.name != "small_resnet":
        return config
    halvings = 2 ** (len(encoder.stage_blocks) - 1)
    side = asked.views.side_pixels // (encoder.stem_stride * halvings)
    features = encoder.width * halvings
    fitting = (n for n in _CELLS if n <= side and n * n * features <= _MOST_FEATURES)
    cells, head = next(fitting, 1), config.head
    if head.hidden_features is None and cells * cells * features > _HIDDEN:
        head = replace(head, hidden_features=_HIDDEN)
    return replace(config, encoder=replace(config.encoder, pool=cells), head=head)


def suited_windows(*, image_count: int, median_side_pixels: int, side_pixels: int) -> int:
    """``images.windows`` for a set: more than 1 for few photographs far larger than a view.

    >>> suited_windows(image_count=364, median_side_pixels=480, side_pixels=64)
    3
    """
    if image_count >= FEW_PHOTOGRAPHS:
        return 1
    # A window of n has 2 / (n + 1) of the side.
    fitting = (
        n for n in (3, 2) if 2 * median_side_pixels / (n + 1) >= _WINDOW_OVER_VIEW * side_pixels
    )
    return next(fitting, 1)


def suited_batch(config: RunConfig, image_count: int) -> RunConfig:
    """The same config with a smaller batch, where its own would be taken a few times in a pass."""
    fitting = config.training.batch_size
    while fitting > SMALL_BATCH and image_count < _BATCHES_IN_PASS * fitting:
        fitting //= 2
    return replace(config, training=replace(config.training, batch_size=fitting))


def suited_epochs(
    config: RunConfig, image_count: int, batch_size: int, *, weights: bool = False
) -> int:
    """Epochs for a set: the recipe's, more for few images, and at `tiny` fewer for very many."""
    steps = max(1, image_count // batch_size)
    least = _LEAST_STEPS_ON if weights else _LEAST_STEPS
    epochs = max(config.training.epochs, math.ceil(least / steps))
    return min(epochs, max(1, _MOST_SEEN // image_count)) if config.scale == "tiny" else epochs


def health_interval(epochs: int, image_count: int, measured: int) -> int:
    """Epochs between two measurements of health, so that they cost little beside the steps.

    Args:
        epochs: of the run.
        image_count: images in an epoch.
        measured: ``probe.images``.
    """
    apart = math.ceil(_IMAGES_BETWEEN * min(measured, image_count) / image_count)
    return min(epochs, max(1, epochs // _HEALTH, apart))


def fitting_stem(encoder: str, side_pixels: int) -> Literal["small", "imagenet"]:
    """The first layers that suit an encoder named by the user: small ones for tiny images.

    Only ResNets have a choice (SimCLR, appendix B.9).
    """
    if encoder == "small_resnet":
        return "small"
    return "small" if encoder in _RESNETS and side_pixels <= 2 * SIDE_AT["tiny"] else "imagenet"


def choose_scale(*, median_side_pixels: int, accelerator: bool) -> tuple[Scale, str]:
    """The scale for a set of images on a machine, and a phrase that says why.

    Never ``paper``, whose batches of thousands of large views need many accelerators, and days.

    Args:
        median_side_pixels: of the images.
        accelerator: whether the machine has one.
    """
    if not accelerator:
        reason = "this machine has no accelerator"
        if median_side_pixels > 2 * _PHOTOGRAPH_VIEW:
            reason += (
                f"; the images' median side of {median_side_pixels} pixels has more detail, which "
                "--scale small sees some of at many times the cost"
            )
        return "tiny", reason
    reason = f"the images' median side is {median_side_pixels} pixels"
    if median_side_pixels >= 160:
        reason += "; --scale paper is the papers' network, views and batch"
    return "small" if median_side_pixels >= 64 else "tiny", reason
