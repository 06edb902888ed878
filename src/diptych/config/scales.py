"""What the recipes have in common at each scale: encoder, side, views, length, optimizer."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal

from diptych.config.data import ViewsConfig
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.policies import PRESETS, Crop, as_text, parse_policy
from diptych.config.run import OptimizerConfig, TrainingConfig

Scale = Literal["tiny", "small", "cifar10", "paper"]
SCALES: Final[tuple[Scale, ...]] = ("tiny", "small", "cifar10", "paper")

ENCODER_AT: Final[Mapping[Scale, EncoderConfig]] = {
    "tiny": EncoderConfig(name="small_resnet", stem="small"),
    "small": EncoderConfig(name="resnet18", stem="imagenet"),
    "cifar10": EncoderConfig(name="resnet50", stem="small"),
    "paper": EncoderConfig(name="resnet50", stem="imagenet"),
}
SIDE_AT: Final[Mapping[Scale, int]] = {"tiny": 32, "small": 96, "cifar10": 32, "paper": 224}

_TINY_POLICIES: Final = {
    # Crops of a twelfth of 32 pixels leave too little to learn from in a short run; and so does, of
    # a few thousand tiny images, a colour that always changes by as much as MoCo v1's.
    "moco_v1": "crop + gray + color + flip",
    "moco_v2": "crop + color + gray + flip",
    "moco_v3": "crop + color(saturation=0.2) + gray + flip",
    "byol": "crop + color(saturation=0.2) + gray + flip",
    "simclr": "crop + flip + color(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2) + gray",
}
PLAIN_SGD: Final = OptimizerConfig(kind="sgd", learning_rate=0.24, weight_decay=1e-4)


def mlp_head(*, batch_norm: bool = False) -> HeadConfig:
    """As wide as the features of whatever encoder is asked for, as in the published code."""
    return HeadConfig(hidden_features=None, output_features=128, batch_norm=batch_norm)


def views_at(scale: Scale, preset: str) -> ViewsConfig:
    """The paper's views, without blur at 32 pixels (SimCLR, appendix B.9)."""
    side = SIDE_AT[scale]
    if scale == "tiny":
        return ViewsConfig(side_pixels=side, policy=_TINY_POLICIES[preset])
    if scale == "cifar10":
        return ViewsConfig(side_pixels=side, policy=_text("simclr_cifar"))
    first, second = PRESETS[preset]
    return ViewsConfig(
        side_pixels=side, policy=_text(first), second=None if second is None else _text(second)
    )


def following(views: ViewsConfig, policy: str) -> ViewsConfig:
    """The same views, all by one policy; small ones keep the area that their recipe gives them."""
    followed = replace(views, policy=policy, second=None, small_policy=None)
    if views.small_policy is None:
        return followed
    first, *others = followed.small_branch
    own = views.small_branch[0]
    assert isinstance(first, Crop)
    assert isinstance(own, Crop)  # of a recipe
    small = (replace(first, area=own.area), *others)
    return replace(followed, small_policy=as_text(small))


def _text(policy: str) -> str:
    """Written out, so that a run's config says what was done whatever a preset comes to mean."""
    return as_text(parse_policy(policy))


def training_at(scale: Scale, *, batch_size: int) -> TrainingConfig:
    """Length and batch; the batch that is given is that of the paper."""
    batches = {"tiny": 128, "small": 256}
    epochs = {"tiny": 30, "small": 100, "cifar10": 1000, "paper": 200}
    return TrainingConfig(epochs=epochs[scale], batch_size=batches.get(scale, batch_size))
