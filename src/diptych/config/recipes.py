"""The papers' settings at a scale, as functions to a config.

``paper`` carries what the papers give for ImageNet, ``cifar10`` what SimCLR and SimSiam give for
CIFAR-10. ``small`` and ``tiny`` keep the method and change what depends on size: encoder, side of a
view, batch, dictionary, length; docs/recipes.md says what was tried. A recipe is only a starting
point: a config file and flags override it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from diptych.config.method import (
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
    Scale,
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
