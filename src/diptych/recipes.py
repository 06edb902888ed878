"""The papers' settings at a scale, as functions to a config.

``paper`` carries what the papers give for ImageNet. ``small`` and ``tiny`` keep the method and
change what depends on size: encoder, side of a view, batch, dictionary, length; docs/recipes.md
says what was tried. A recipe is only a starting point: a config file and flags override it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final, Literal

from diptych.configs import (
    DictionaryConfig,
    EncoderConfig,
    HeadConfig,
    KeyEncoderConfig,
    LossConfig,
    MethodConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TrainingConfig,
    ViewsConfig,
)
from diptych.errors import ConfigError

Scale = Literal["tiny", "small", "paper"]
SCALES: Final[tuple[Scale, ...]] = ("tiny", "small", "paper")

_ENCODERS: Final[Mapping[Scale, EncoderConfig]] = {
    "tiny": EncoderConfig(name="small_resnet", stem="small"),
    "small": EncoderConfig(name="resnet18", stem="imagenet"),
    "paper": EncoderConfig(name="resnet50", stem="imagenet"),
}
_SIDES: Final[Mapping[Scale, int]] = {"tiny": 32, "small": 96, "paper": 224}


def simclr(scale: Scale) -> RunConfig:
    """SimCLR (2002.05709): NT-Xent over the batch, strong colour, LARS."""
    # 0.5 on CIFAR-10, appendix B.9, in 1,000 epochs; in ten or twenty, half of it learns faster.
    strength = {"tiny": 0.25, "small": 1.0, "paper": 1.0}[scale]
    views = ViewsConfig(
        side_pixels=_SIDES[scale],
        # Crops of a twelfth of 32 pixels leave too little to learn from in a short run.
        crop_area=(0.2 if scale == "tiny" else 0.08, 1.0),
        jitter_probability=0.8,
        brightness=0.8 * strength,
        contrast=0.8 * strength,
        saturation=0.8 * strength,
        hue=0.2 * strength,
        gray_probability=0.2,
        # No blur at 32 pixels, appendix B.9.
        blur_probability=0.0 if scale == "tiny" else 0.5,
    )
    lars = OptimizerConfig(kind="lars", learning_rate=0.3, weight_decay=1e-6)
    sgd = OptimizerConfig(kind="sgd", learning_rate=0.24, weight_decay=1e-4)
    return RunConfig(
        recipe="simclr",
        scale=scale,
        views=views,
        encoder=_ENCODERS[scale],
        head=_head(scale, batch_norm=True),
        method=MethodConfig(
            dictionary=DictionaryConfig(kind="batch"),
            key_encoder=KeyEncoderConfig(kind="shared"),
            loss=LossConfig(temperature={"tiny": 0.2, "small": 0.2, "paper": 0.1}[scale]),
        ),
        # LARS is for batches of thousands; below, plain SGD learns as much and has one knob less.
        optimizer=lars if scale == "paper" else sgd,
        schedule=ScheduleConfig(warmup_epochs=10.0 if scale == "paper" else 1.0),
        training=_training(scale, batch_size=4096),
    )


def moco_v2(scale: Scale) -> RunConfig:
    """MoCo v2 (2003.04297): InfoNCE against a queue of keys from a momentum twin."""
    return RunConfig(
        recipe="moco_v2",
        scale=scale,
        views=ViewsConfig(
            side_pixels=_SIDES[scale],
            crop_area=(0.2, 1.0),
            blur_probability=0.0 if scale == "tiny" else 0.5,
        ),
        encoder=_ENCODERS[scale],
        head=_head(scale, batch_norm=False),
        method=MethodConfig(
            dictionary=DictionaryConfig(
                kind="queue", queue_size={"tiny": 2048, "small": 16384, "paper": 65536}[scale]
            ),
            # A twin that keeps 0.999 of itself needs thousands of steps to get anywhere.
            key_encoder=KeyEncoderConfig(
                kind="twin", momentum={"tiny": 0.99, "small": 0.996, "paper": 0.999}[scale]
            ),
            loss=LossConfig(temperature=0.2),
        ),
        optimizer=OptimizerConfig(
            kind="sgd",
            learning_rate={"tiny": 0.12, "small": 0.06, "paper": 0.03}[scale],
            weight_decay=1e-4,
        ),
        schedule=ScheduleConfig(warmup_epochs=0.0),
        training=_training(scale, batch_size=256),
    )


RECIPES: Final[Mapping[str, Callable[[Scale], RunConfig]]] = {
    "simclr": simclr,
    "moco_v2": moco_v2,
}


def recipe_config(recipe: str, scale: str) -> RunConfig:
    """The config of a recipe at a scale.

    Raises:
        ConfigError: there is no such recipe or scale.
    """
    if recipe not in RECIPES:
        raise ConfigError(f"there is no recipe {recipe!r}; wanted one of {', '.join(RECIPES)}.")
    if scale not in SCALES:
        raise ConfigError(f"there is no scale {scale!r}; wanted one of {', '.join(SCALES)}.")
    return RECIPES[recipe](scale)


def fitted_batch(config: RunConfig, image_count: int) -> RunConfig:
    """The same config with a batch that the images fill, if its own is too large for them."""
    if config.training.batch_size <= image_count:
        return config
    fitting = 2 ** max(1, image_count.bit_length() - 1)
    return replace(config, training=replace(config.training, batch_size=fitting))


def choose_scale(*, median_side_pixels: int, accelerator: bool) -> tuple[Scale, str]:
    """The scale for a set of images on a machine, and a sentence that says why."""
    if not accelerator:
        reason = "this machine has no accelerator"
        if median_side_pixels > 2 * _SIDES["tiny"]:
            reason += (
                f"; the images' median side of {median_side_pixels} pixels has more detail than "
                "its 32, and --scale small sees some of it at many times the cost"
            )
        return "tiny", reason
    if median_side_pixels >= 160:
        return "paper", f"the images' median side is {median_side_pixels} pixels"
    if median_side_pixels >= 64:
        return "small", f"the images' median side is {median_side_pixels} pixels"
    return "tiny", f"the images' median side is {median_side_pixels} pixels"


def _head(scale: Scale, *, batch_norm: bool) -> HeadConfig:
    hidden = {"tiny": 128, "small": 512, "paper": 2048}[scale]
    return HeadConfig(hidden_features=hidden, output_features=128, batch_norm=batch_norm)


def _training(scale: Scale, *, batch_size: int) -> TrainingConfig:
    batches = {"tiny": 128, "small": 256, "paper": batch_size}
    epochs = {"tiny": 30, "small": 100, "paper": 200}
    return TrainingConfig(epochs=epochs[scale], batch_size=batches[scale])
