"""The recipes of methods that need no dictionary of negatives; see ``recipes``."""

import re
from dataclasses import replace
from typing import Final

from diptych.config.method import (
    DINOConfig,
    KeyEncoderConfig,
    LeJEPAConfig,
    LossConfig,
    MethodConfig,
    NNCLRConfig,
    SwAVConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig, NormConfig
from diptych.config.run import LarsConfig, OptimizerConfig, RunConfig, ScheduleConfig
from diptych.config.scales import ENCODER_AT, Scale, training_at, views_at

_ADAMW: Final = OptimizerConfig(kind="adamw", learning_rate=2e-3, scaling="none", weight_decay=0.04)
"""Of `tiny` and `small`: in short runs most of these methods learn more by it than by plain SGD."""


def byol(scale: Scale) -> RunConfig:
    """BYOL (2006.07733, section 3.3): two MLPs of 4,096-256, momentum 0.996 to 1, LARS.

    The paper's loss is the sum over both directions; ours is their mean times 2.
    """
    hidden = {"tiny": 256, "small": 1024, "paper": 4096}[scale]
    return _siamese(
        scale,
        "byol",
        head=HeadConfig(
            layers=2,
            hidden_features=hidden,
            output_features=256 if scale == "paper" else 128,
            batch_norm=True,
            predictor_layers=2,
        ),
        method=MethodConfig(
            kind="byol",
            key_encoder=KeyEncoderConfig(
                kind="momentum",
                momentum=0.996 if scale == "paper" else 0.99,
                momentum_schedule="cosine",
            ),
            loss=LossConfig(weight=2.0),
        ),
        optimizer=OptimizerConfig(kind="lars", learning_rate=0.2, weight_decay=1.5e-6),
        batch_size=4096,
        epochs=1000,
    )


def simsiam(scale: Scale) -> RunConfig:
    """SimSiam (2011.10566, section 3): an MLP of three layers, a narrow predictor, SGD 0.05.

    The paper's predictor learns at a constant rate, here at that of the rest. ``cifar10`` is
    appendix D: ResNet-18, no blur, two layers, rate 0.03, decay 5e-4, 800 epochs.
    """
    wide = {"tiny": 256, "small": 1024}.get(scale, 2048)
    config = _siamese(
        scale,
        "simsiam",
        head=HeadConfig(
            layers=3,
            hidden_features=wide,
            output_features=wide,
            batch_norm=True,
            output_norm=True,
            predictor_layers=2,
            predictor_hidden_features=wide // 4,
            predictor_output_norm=False,
        ),
        method=MethodConfig(kind="simsiam"),
        optimizer=OptimizerConfig(kind="sgd", learning_rate=0.05, weight_decay=1e-4),
        batch_size=512,
        epochs=100,
        warmup_epochs=0.0,
        views="moco_v2",
    )
    if scale != "cifar10":
        return config
    return replace(
        config,
        views=replace(config.views, policy="crop + color + gray + flip"),
        encoder=EncoderConfig(name="resnet18", stem="small"),
        head=replace(config.head, layers=2),
        optimizer=OptimizerConfig(kind="sgd", learning_rate=0.03, weight_decay=5e-4),
        schedule=ScheduleConfig(warmup_epochs=0.0),
        training=replace(config.training, epochs=800),
    )


def barlow_twins(scale: Scale) -> RunConfig:
    """Barlow Twins (2103.03230, section 2.2): three layers of 8,192, LARS 0.2.

    Biases and norms learn at 0.0048, as in its code.
    """
    return _siamese(
        scale,
        "barlow_twins",
        head=_expander(scale),
        method=MethodConfig(kind="barlow_twins"),
        optimizer=OptimizerConfig(
            kind="lars",
            learning_rate=0.2,
            weight_decay=1.5e-6,
            lars=LarsConfig(spared_share=0.024),
        ),
        batch_size=2048,
        epochs=1000,
    )


def vicreg(scale: Scale) -> RunConfig:
    """VICReg (2105.04906, section 4.2): three layers of 8,192, weights 25, 25 and 1, LARS 0.2."""
    return _siamese(
        scale,
        "vicreg",
        head=_expander(scale),
        method=MethodConfig(kind="vicreg"),
        optimizer=OptimizerConfig(kind="lars", learning_rate=0.2, weight_decay=1e-6),
        batch_size=2048,
        epochs=1000,
    )


def lejepa(scale: Scale) -> RunConfig:
    """LeJEPA (2511.08544): SIGReg's share 0.05, AdamW 5e-4, two views and six small ones.

    Views, rate and decay are those that its authors name for a ResNet. The length of the projection
    is small beside the other methods': SIGReg looks at it through a number of directions.
    """
    config = _siamese(
        scale,
        "lejepa",
        head=HeadConfig(
            layers=3,
            hidden_features={"tiny": 256, "small": 1024, "paper": 2048}[scale],
            output_features={"tiny": 64, "small": 128, "paper": 128}[scale],
            batch_norm=True,
        ),
        method=MethodConfig(
            kind="lejepa",
            lejepa=LeJEPAConfig(directions={"tiny": 256, "small": 1024, "paper": 1024}[scale]),
        ),
        optimizer=OptimizerConfig(
            kind="adamw", learning_rate=5e-4, scaling="none", weight_decay=5e-4
        ),
        batch_size=512,
        epochs=100,
    )
    if scale == "tiny":  # of whose images small parts show too little
        return config
    policy = "crop(area={}) + flip + color(saturation=0.2) + gray + blur + solarize"
    views = replace(
        config.views,
        policy=policy.format("0.3..1"),
        second=None,
        small_views=6,
        small_side_pixels=98 if scale == "paper" else None,
        small_policy=policy.format("0.05..0.3"),
    )
    return replace(config, views=views)


def _expander(scale: Scale) -> HeadConfig:
    """Three equally wide layers, wider than the features (VICReg's word)."""
    wide = {"tiny": 512, "small": 2048, "paper": 8192}[scale]
    return HeadConfig(layers=3, hidden_features=wide, output_features=wide, batch_norm=True)


def nnclr(scale: Scale) -> RunConfig:
    """NNCLR (2104.14548, section 4.1): a queue of 98,304 projections, T = 0.1, LARS.

    Three layers in the head and two in the predictor; the projection is normalised too.
    """
    paper = scale == "paper"
    hidden = {"tiny": 256, "small": 1024, "paper": 2048}[scale]
    return _siamese(
        scale,
        "nnclr",
        head=HeadConfig(
            layers=3,
            hidden_features=hidden,
            output_features=256 if paper else 128,
            batch_norm=True,
            output_norm=True,
            predictor_layers=2,
            predictor_hidden_features=4096 if paper else hidden,
            predictor_output_norm=False,
        ),
        method=MethodConfig(
            kind="nnclr",
            nnclr=NNCLRConfig(
                queue_size={"tiny": 2048, "small": 16384, "paper": 98304}[scale],
                temperature=0.1 if paper else 0.2,
            ),
        ),
        optimizer=OptimizerConfig(kind="lars", learning_rate=0.3, weight_decay=1e-6),
        batch_size=4096,
        epochs=1000,
    )


def swav(scale: Scale) -> RunConfig:
    """SwAV (2006.09882, appendix A): 3,000 prototypes, two full-sized and six small views, LARS.

    Of smaller batches than the paper's a queue takes part in the assignments.
    """
    config = _siamese(
        scale,
        "swav",
        head=HeadConfig(
            layers=2,
            hidden_features={"tiny": 256, "small": 1024, "paper": 2048}[scale],
            output_features=128,
            batch_norm=True,
        ),
        method=MethodConfig(
            kind="swav",
            swav=SwAVConfig(
                prototypes={"tiny": 100, "small": 1000, "paper": 3000}[scale],
                # At 0.05 assignments of few images stay flat, and nothing is learned.
                epsilon=0.05 if scale == "paper" else 0.03,
                queue_size=3840 if scale == "small" else None,
            ),
        ),
        optimizer=OptimizerConfig(kind="lars", learning_rate=0.3, weight_decay=1e-6),
        batch_size=4096,
        epochs=800,
        views="simclr",
    )
    return _multi_crop(config, small_views=6, area="0.14..1", small_area="0.05..0.14")


def dino(scale: Scale) -> RunConfig:
    """DINO (2104.14294, section 3.2): a ViT-S/16 at `paper`, two full-sized and ten small views.

    AdamW with a weight decay of 0.04 to 0.4, the teacher's temperature from 0.04 to 0.07. ResNets,
    which have batch norms, have them in the head too (section 3.2). A run keeps the student's
    encoder, where the paper evaluates the teacher's.
    """
    paper = scale == "paper"
    config = _siamese(
        scale,
        "dino",
        head=HeadConfig(
            layers=3,
            hidden_features={"tiny": 256, "small": 1024, "paper": 2048}[scale],
            output_features=256 if paper else 128,
            batch_norm=not paper,
        ),
        method=MethodConfig(
            kind="dino",
            key_encoder=KeyEncoderConfig(
                kind="momentum",
                momentum=0.996 if paper else 0.99,
                momentum_schedule="cosine",
            ),
            dino=DINOConfig(
                prototypes={"tiny": 512, "small": 4096, "paper": 65536}[scale],
                teacher_temperature=0.07 if paper else 0.04,
                warmup_epochs=30.0 if paper else 0.0,
            ),
        ),
        optimizer=OptimizerConfig(),
        batch_size=1024,
        epochs=800,
    )
    optimizer = replace(_ADAMW, weight_decay_end=0.4, clip_norm=3.0)
    if paper:
        optimizer = replace(optimizer, learning_rate=5e-4, scaling="linear")
        encoder = EncoderConfig(name="timm:vit_small_patch16_224", stem="imagenet")
        config = replace(config, encoder=encoder)
    config = replace(config, optimizer=optimizer)
    small_views = 10 if paper else 6
    return _multi_crop(config, small_views=small_views, area="0.25..1", small_area="0.05..0.25")


def _multi_crop(config: RunConfig, *, small_views: int, area: str, small_area: str) -> RunConfig:
    """The same config with small views, but for tiny images, of which these show too little."""
    if config.scale == "tiny":
        return config

    def cropped(policy: str, area: str) -> str:
        return re.sub(r"area=[^,)]*", f"area={area}", policy)

    views = config.views
    views = replace(
        views,
        policy=cropped(views.policy, area),
        second=None if views.second is None else cropped(views.second, area),
        small_views=small_views,
        small_policy=cropped(views.policy, small_area).replace("blur(1)", "blur"),
    )
    return replace(config, views=views)


def _siamese(
    scale: Scale,
    name: str,
    *,
    head: HeadConfig,
    method: MethodConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    epochs: int,
    warmup_epochs: float = 10.0,
    views: str = "byol",
) -> RunConfig:
    """What these recipes have in common; optimizer, batch and epochs are those of ``paper``."""
    paper = scale == "paper"
    training = training_at(scale, batch_size=batch_size)
    return RunConfig(
        recipe=name,
        scale=scale,
        views=views_at(scale, views),
        encoder=ENCODER_AT[scale],
        norm=NormConfig(kind="sync"),
        head=head,
        method=method,
        optimizer=optimizer if paper else _ADAMW,
        schedule=ScheduleConfig(warmup_epochs=warmup_epochs if paper else 1.0),
        training=replace(training, epochs=epochs) if paper else training,
    )
