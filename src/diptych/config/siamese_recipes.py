"""The recipes of methods that need no dictionary of negatives; see ``recipes``."""

from dataclasses import replace

from diptych.config.method import KeyEncoderConfig, LossConfig, MethodConfig
from diptych.config.model import HeadConfig, NormConfig
from diptych.config.run import OptimizerConfig, RunConfig, ScheduleConfig
from diptych.config.scales import ENCODER_AT, PLAIN_SGD, Scale, training_at, views_at


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


def _siamese(
    scale: Scale,
    name: str,
    *,
    head: HeadConfig,
    method: MethodConfig,
    optimizer: OptimizerConfig,
    batch_size: int,
    epochs: int,
    views: str = "moco_v3",
) -> RunConfig:
    """What these recipes have in common; optimizer, batch and epochs are those of ``paper``.

    BYOL's views, from which MoCo v3 has its own, are those of most.
    """
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
        optimizer=optimizer if paper else PLAIN_SGD,
        schedule=ScheduleConfig(warmup_epochs=10.0 if paper else 1.0),
        training=replace(training, epochs=epochs) if paper else training,
    )
