"""What suits a set of images, a machine and given weights, in the place of a recipe's own settings.

Each function takes the config of a recipe and gives one that fits better; what a user asks for is
laid over it afterwards.
"""

import math
from dataclasses import replace
from typing import Final, Literal

from diptych.config.method import SIAMESE, AnchorConfig
from diptych.config.run import OptimizerConfig, RunConfig, ScheduleConfig
from diptych.config.scales import SIDE_AT, Scale, following

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
