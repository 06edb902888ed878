"""What goes together across the sections of a run, and over how many processes."""

from dataclasses import replace

from diptych.config.checks import require
from diptych.config.method import (
    SIAMESE,
    WITH_MOMENTUM_TARGETS,
    WITH_PREDICTOR,
    MethodConfig,
)
from diptych.config.model import EncoderConfig, NormConfig
from diptych.config.run import OWN, RunConfig, TrainingConfig


def require_consistent(config: RunConfig) -> None:
    """Refuses settings that are right by themselves and do not go together.

    Not part of the configs themselves: while a file and flags are laid over a recipe one by one,
    some of them do not fit yet. What the loss needs, ``methods.losses`` knows.

    Raises:
        ConfigError: names the settings, and says which would go together.
    """
    require(
        config.encoder.name != "small_resnet" or config.encoder.stem == "small",
        "small_resnet has the small stem only; set encoder.stem = 'small'",
        config.encoder.stem,
    )
    _require_own_structure(config.encoder)
    if config.method_name in SIAMESE:
        _require_consistent_siamese(config)
    else:
        _require_consistent_method(config)
    if config.method_name == "dense":
        _require_consistent_dense(config)
    _require_consistent_batch(config)
    _require_consistent_memory(config.training)
    _require_consistent_start(config)
    require(
        config.images.group_by is not None or config.images.group_within is None,
        "images.group_within says how near partners of a group are: give images.group_by, as "
        "--group-by folder or 'name:(.*)#'",
        config.images.group_within,
    )
    require(
        config.training.minutes is None or config.training.begin_from is None,
        "training.minutes is the time of a run from its beginning, and does not go with "
        "training.begin_from; give --epochs",
        config.training.minutes,
    )
    if config.method_name == "distillation":
        _require_consistent_distillation(config)


def _require_consistent_distillation(config: RunConfig) -> None:
    require(
        config.images.windows == 1,
        "distillation fits its teacher's classifier on whole images: leave out images.windows",
        config.images.windows,
    )
    require(
        config.method.kind in ("contrastive", "distillation"),
        "distillation.teacher makes the method 'distillation': leave out method.kind",
        config.method.kind,
    )
    require(
        config.distillation.teacher is not None,
        "method.kind = 'distillation' needs distillation.teacher, a run folder",
        config.distillation.teacher,
    )
    require(
        config.training.chunk_size is None,
        "distillation has no cached gradients, as it compares no images: leave out "
        "training.chunk_size and take a smaller training.batch_size",
        config.training.chunk_size,
    )
    require(
        config.views.small_views == 0,
        "distillation takes views of one size: leave out views.small_views",
        config.views.small_views,
    )
    require(
        config.views.early_side == 1.0,
        "distillation takes views of one size: set views.early_side = 1, or take the recipe simclr",
        config.views.early_side,
    )


def _require_own_structure(encoder: EncoderConfig) -> None:
    """Refuses what is of small_resnet only, of which another network would take no notice."""
    if encoder.name in ("small_resnet", OWN):
        return
    usual = EncoderConfig()
    for name in ("width", "stem_stride", "stage_blocks"):
        value = getattr(encoder, name)
        require(
            value == getattr(usual, name),
            f"encoder.{name} is of small_resnet, and encoder.name is {encoder.name!r}: leave it out"
            + (", or set encoder.width_multiplier" if name == "width" else ""),
            value,
        )


def require_equal_parts(batch: int, processes: int) -> None:
    """Refuses a batch that several processes cannot share equally, two images each at least.

    Raises:
        ConfigError: says which sizes would do.
    """
    lower, upper = batch // processes * processes, -(-batch // processes) * processes
    sizes = sorted({size for size in (lower, upper) if size >= 2 * processes})
    fitting = " or ".join(map(str, sizes or [2 * processes]))
    require(
        batch % processes == 0 and batch >= 2 * processes,
        f"training.batch_size is the batch of all {processes} processes, which share it equally, "
        f"two images each at least; use {fitting}, or another number of processes",
        batch,
    )


def require_divisible(config: RunConfig, processes: int) -> None:
    """Refuses a batch of which several processes cannot have equal parts, or parts of another kind.

    Raises:
        ConfigError: says which sizes would do.
    """
    batch = config.training.batch_size
    require_equal_parts(batch, processes)
    share, group = batch // processes, min(config.norm.images_per_group, batch)
    require(
        not config.norm.is_grouped or share % group == 0,
        f"norm.kind = {config.norm.kind!r} needs the {share} images of each of {processes} "
        "processes to be whole groups of norm.images_per_group; use a divisor of that, or fewer "
        "processes",
        group,
    )
    chunk = config.training.chunk_size
    require(
        chunk is None or chunk >= share or share % chunk == 0,
        f"training.chunk_size must divide the {share} images of each of {processes} processes",
        chunk,
    )


def norm_of_batch(config: RunConfig) -> NormConfig:
    """The norm of a run; a batch that is smaller than a group of images is one group."""
    group = min(config.norm.images_per_group, config.training.batch_size)
    return replace(config.norm, images_per_group=group)


def _require_consistent_method(config: RunConfig) -> None:
    method, dictionary = config.method, config.method.dictionary
    end_to_end = dictionary.kind == "batch" and method.key_encoder.kind == "shared"
    queries_are_keys = end_to_end and dictionary.batch.both_views
    grouped = config.images.group_by is not None
    require(
        method.views == 2 or queries_are_keys,
        "method.views above 2 go with the dictionary 'batch', both_views and a shared encoder",
        method.views,
    )
    require(
        dictionary.kind != "bank" or config.norm.kind != "shuffle",
        "norm.kind = 'shuffle' puts keys into other groups than queries, and the keys of a bank "
        "come from earlier batches: choose 'batch' or 'split'",
        config.norm.kind,
    )
    require(
        dictionary.kind != "bank" or method.key_encoder.kind == "shared",
        "a bank stores keys and encodes none: set method.key_encoder.kind = 'shared'",
        method.key_encoder.kind,
    )
    require(
        config.training.epochs >= config.fewest_epochs,
        "the first epoch of a bank only fills it with keys: set training.epochs to 2 or more",
        config.training.epochs,
    )
    require(
        dictionary.kind != "batch" or not dictionary.batch.both_views or end_to_end,
        "method.dictionary.batch.both_views lets every view be a key, which needs the key encoder "
        "'shared'; with a momentum encoder, set method.dictionary.batch.both_views = false",
        method.key_encoder.kind,
    )
    require(
        not queries_are_keys or config.head.predictor_layers == 0,
        "head.predictor_layers stands on the queries' side only, and here every query is a key; "
        "set it to 0, or method.dictionary.batch.both_views = false",
        config.head.predictor_layers,
    )
    require(
        config.images.group_within is None or method.views == 2,
        "with more than two views all images of a group in a batch are positives of each other, "
        "near or not: leave out images.group_within, or set method.views = 2",
        method.views,
    )
    require(
        not grouped or dictionary.kind != "bank" or method.symmetric,
        "images.group_by pairs a query with another image, and a bank with the image's own: set "
        "method.symmetric = true, so that both images are queries, or choose another dictionary",
        config.images.group_by,
    )


def _require_consistent_siamese(config: RunConfig) -> None:
    """Refuses what only a comparison with negatives has, and parts that a method does not have."""
    kind, usual = config.method.kind, MethodConfig()
    loss = replace(config.method.loss, weight=usual.loss.weight)
    for name, found, unset in (
        ("dictionary", config.method.dictionary, usual.dictionary),
        ("symmetric", config.method.symmetric, usual.symmetric),
        ("loss", loss, usual.loss),
    ):
        require(
            found == unset,
            f"the settings of method.{name} are of the method 'contrastive', and {kind!r} has no "
            f"negatives: begin with --recipe {kind}, and leave them out",
            found,
        )
    wanted = "momentum" if kind in WITH_MOMENTUM_TARGETS else "shared"
    require(
        config.method.key_encoder.kind == wanted,
        f"method.key_encoder.kind must be {wanted!r} for the method {kind!r}; --recipe {kind} "
        "sets it",
        config.method.key_encoder.kind,
    )
    require(
        config.head.predictor_layers == 0 or kind in WITH_PREDICTOR,
        f"the method {kind!r} has no predictor; set head.predictor_layers = 0",
        config.head.predictor_layers,
    )
    require(
        config.norm.kind != "shuffle",
        f"norm.kind = 'shuffle' puts keys into other groups than queries; {kind!r} has no keys: "
        "choose 'sync' or 'split'",
        config.norm.kind,
    )


def _require_consistent_dense(config: RunConfig) -> None:
    method = config.method
    require(
        method.dictionary.kind == "queue" and method.key_encoder.kind == "momentum",
        "method.kind = 'dense' has queues of keys from a momentum encoder: set "
        "method.dictionary.kind = 'queue' and method.key_encoder.kind = 'momentum'",
        f"{method.dictionary.kind} and {method.key_encoder.kind}",
    )
    require(
        config.head.predictor_layers == 0,
        "method.kind = 'dense' has no predictor, as MoCo v2: set head.predictor_layers = 0",
        config.head.predictor_layers,
    )
    require(
        config.views.small_views == 0,
        "method.kind = 'dense' compares maps of one size: leave out views.small_views",
        config.views.small_views,
    )
    require(
        not config.training.compile,
        "method.kind = 'dense' needs the encoder's last map, which a compiled network does not "
        "give; leave out training.compile",
        config.training.compile,
    )


def _require_consistent_batch(config: RunConfig) -> None:
    batch, chunk = config.training.batch_size, config.training.chunk_size
    group = config.norm.images_per_group
    if config.norm.is_grouped:
        # A batch smaller than a group is one group; a chunk has to hold whole ones.
        wanted = f"norm.kind = {config.norm.kind!r} needs {{}} to be a multiple of "
        wanted += f"norm.images_per_group = {group}"
        require(batch <= group or batch % group == 0, wanted.format("training.batch_size"), batch)
        require(
            chunk is None or chunk >= batch or chunk % min(group, batch) == 0,
            wanted.format("training.chunk_size"),
            chunk,
        )
    if chunk is not None and chunk < batch:
        require(
            batch % chunk == 0,
            f"training.chunk_size must divide training.batch_size = {batch}",
            chunk,
        )
        require(
            not config.training.compile,
            "training.compile and training.chunk_size do not go together, as each chunk would be "
            "compiled anew; leave one of them out",
            chunk,
        )


def _require_consistent_memory(training: TrainingConfig) -> None:
    require(
        not training.compile or training.recompute == "none",
        "training.compile decides by itself what to compute again; leave out training.recompute",
        training.recompute,
    )
    require(
        not training.compile or not training.offload_activations,
        "training.compile and training.offload_activations do not go together; leave one out",
        training.offload_activations,
    )


def _require_consistent_start(config: RunConfig) -> None:
    """What needs a start that is worth staying near: weights, or a module given in Python."""
    encoder, anchored = config.encoder, config.method.anchor.weight > 0
    asked = {
        "method.anchor.weight": config.method.anchor.weight if anchored else None,
        "optimizer.pull_to_start": config.optimizer.pull_to_start or None,
        "encoder.batch_statistics": encoder.batch_statistics
        if encoder.batch_statistics == "start"
        else None,
    }
    for name, value in asked.items():
        require(
            value is None or encoder.weights is not None or encoder.name == OWN,
            f"{name} = {value!r} refers to the weights that the encoder begins with, and these are "
            "random: give encoder.weights, or leave it out",
            encoder.weights,
        )
    require(
        encoder.batch_statistics == "batch" or not config.norm.is_per_image,
        f"norm.kind = {config.norm.kind!r} leaves the encoder no batch norms: leave out "
        "encoder.batch_statistics, or choose another norm",
        encoder.batch_statistics,
    )
    require(
        encoder.batch_statistics == "batch"
        or config.method_name in ("contrastive", "dense", "distillation", *SIAMESE),
        "encoder.batch_statistics = 'start' does not go with a method of your own: leave it out",
        config.method_name,
    )
    require(
        encoder.frozen_epochs is None or encoder.frozen_parts > 0,
        "encoder.frozen_epochs says how long encoder.frozen_parts do not train; give both",
        encoder.frozen_parts,
    )
    require(
        not anchored or config.method_name in ("contrastive", *SIAMESE),
        f"method.anchor.weight does not go with the method {config.method_name!r}; set it to 0",
        config.method_name,
    )
    require(
        not anchored or not config.training.compile,
        "method.anchor needs the features in front of the head, which a compiled network does not "
        "give; leave out training.compile",
        config.training.compile,
    )
