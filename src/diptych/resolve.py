"""From what the user gave to a whole config: recipe at a scale, then a file, then flags."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from diptych.config.consistency import require_consistent
from diptych.config.files import flatten, nest, overlay, read_config_file
from diptych.config.method import SIAMESE
from diptych.config.model import EncoderConfig
from diptych.config.recipes import recipe_config
from diptych.config.run import OWN, RunConfig
from diptych.config.scales import following
from diptych.config.suited import (
    choose_scale,
    fitted_batch,
    fitted_queue,
    fitting_stem,
    health_interval,
    learning_on,
    suited_batch,
    suited_epochs,
    suited_pool,
    suited_side,
    suited_windows,
)
from diptych.errors import ConfigError
from diptych.images.open import from_any_folder
from diptych.images.sources.known_sets import PHOTOGRAPHS_NAME
from diptych.methods.build import NOTHING_OWN, OwnParts, uses_labels
from diptych.methods.losses import require_fitting_loss
from diptych.models.encoders import patch_side
from diptych.models.parts import encoder_parts
from diptych.models.start import StartWeights, read_start
from diptych.models.weight_files import absolute_source
from diptych.models.weights import encoder_structure
from diptych.runtime.devices import available_threads, choose_device

DEFAULT_RECIPE = "simclr"
_ENOUGH_PHOTOGRAPHS = 20_000  # from which random weights may do as well
_USUAL_SIDE = 224  # pixels
_PATHS = (
    ("images", "path"),
    ("images", "cache_folder"),
    ("distillation", "teacher"),
    ("distillation", "labelled"),
    ("checkpoint", "folder"),
    ("training", "begin_from"),
)

_FOUND_OUT: dict[str, Any] = {
    "images.decoded_side": None,
    "images.raw_channels": None,
    "training.device": "auto",
    "training.threads": None,
}
"""What leaves a setting to the images or the machine; a run keeps what it came to be."""

Overrides = list[tuple[Mapping[str, Any], str]]
"""Settings that override a recipe's: nested tables, the weakest first, with origins for errors."""


def overrides_of(settings: Mapping[str, Any], config_file: Path | None) -> Overrides:
    """What overrides the recipe: the file's settings if there is one, then those of the command.

    Raises:
        ConfigError: the file cannot be read, or there is no such recipe or scale.
    """
    given: Overrides = [(settings, "the command")]
    if config_file is not None:
        given.insert(0, (read_config_file(config_file), str(config_file)))
    recipe_config(asked_recipe(given), asked_setting(given, "scale") or "tiny")  # both are known
    given = _with_one_length(given)
    return [(_with_absolute_paths(table), origin) for table, origin in given]


def overlay_all(config: RunConfig, overrides: Overrides) -> RunConfig:
    """A config with all that overrides it on top."""
    for settings, origin in overrides:
        config = overlay(config, settings, origin)
    if not config.images.path:
        raise ConfigError(
            "no images: give a path (a folder, a .txt list, .tar shards, a .npz, .npy or IDX file) "
            f"or the name {PHOTOGRAPHS_NAME!r}."
        )
    return config


def overlay_on_run(config: RunConfig, overrides: Overrides) -> RunConfig:
    """The config of a run that goes on, with all that overrides it on top.

    What a command leaves open, as ``auto``, is what it came to be when the run began: the same
    command may be given again.
    """
    asked, known = overlay_all(config, overrides), flatten(config)
    given = flatten(asked)
    kept = {name: known[name] for name, unset in _FOUND_OUT.items() if given[name] == unset}
    return overlay(asked, nest(kept), "the run")


def asked_setting(overrides: Overrides, name: str) -> str | None:
    """What is asked for as the setting of a dotted name, if anything."""
    section, _, last = name.rpartition(".")
    tables = [settings.get(section, {}) if section else settings for settings, _ in overrides]
    named = [table[last] for table in tables if isinstance(table, Mapping) and last in table]
    return str(named[-1]) if named and named[-1] is not None else None


def is_asked(overrides: Overrides, name: str) -> bool:
    """Whether anything is asked for as a setting, or in a section, of a dotted name."""
    section, _, last = name.rpartition(".")
    tables = [settings.get(section, {}) if section else settings for settings, _ in overrides]
    given = [table.get(last) for table in tables if isinstance(table, Mapping)]
    return any(one is not None and one != {} for one in given)


def asked_recipe(overrides: Overrides) -> str:
    """The recipe that is asked for, or the default."""
    named = asked_setting(overrides, "recipe")
    return DEFAULT_RECIPE if named is None else named


def resolve(
    overrides: Overrides,
    *,
    image_count: int,
    median_side_pixels: int,
    channels: int,
    own: OwnParts = NOTHING_OWN,
    start: StartWeights | None = None,
    accelerator: bool | None = None,
) -> tuple[RunConfig, str]:
    """The whole config of a new run, and a sentence that says what was chosen and why.

    Args:
        overrides: see ``overrides_of``.
        image_count: images to learn from; a recipe's batch is made to fit them.
        median_side_pixels: of the images; with the device it decides the scale where none is
            asked for.
        channels: of the images as they were opened; kept where the config takes the files' own.
        own: parts given in Python in the place of those that the layers name.
        start: weights to begin from, see ``asked_start``.
        accelerator: whether the machine of the run has one, where that is not this machine.
    """
    device = choose_device(overlay_all(RunConfig(), overrides).training.device).type
    scale, reason = asked_setting(overrides, "scale"), "as asked"
    if scale is None:
        has_one = device != "cpu" if accelerator is None else accelerator
        scale, reason = choose_scale(median_side_pixels=median_side_pixels, accelerator=has_one)
        base = _learning_on(recipe_config(asked_recipe(overrides), scale), overrides, start)
        patch = patch_of_start(overrides, start)
        base = _suited_to(base, overrides, image_count, median_side_pixels, patch)
    else:
        base = _learning_on(recipe_config(asked_recipe(overrides), scale), overrides, start)
        windows = overlay_all(base, overrides).images.windows
        base = fitted_batch(base, image_count * windows**2)
        base = _with_fitting_queue(base, overrides, image_count * windows**2)
    base = base if start else _with_asked_encoder(base, overrides)
    config = overlay_all(_with_asked_policy(base, overrides), overrides)
    image_count *= config.images.windows**2
    if config.images.color == "raw":
        config = replace(config, images=replace(config.images, raw_channels=channels))
    if config.images.decoded_side is None:
        # Of a photograph whose windows, 2 / (n + 1) of its side, are as large as a view needs.
        side = math.ceil(config.views.image_side * (config.images.windows + 1) / 2)
        config = replace(config, images=replace(config.images, decoded_side=side))
    require_consistent(config)
    require_fitting_loss(config, own.loss)
    labels_used = uses_labels(config, own)
    threads = config.training.threads or available_threads()
    # What auto meant here is kept: config.toml alone must repeat the run.
    training = replace(config.training, device=device, threads=threads)  # type: ignore[arg-type]
    sentence = (
        f"Recipe {config.recipe} at scale {scale} ({reason}): {config.encoder.name} on views of "
        f"{config.views.side_pixels} pixels, batch {training.batch_size}, {training.epochs} "
        f"epoch{'s' * (training.epochs > 1)}, on {device} with {threads} threads. "
        f"{_on_windows(config, image_count)}"
        f"{in_effect(config, image_count, uses_labels=labels_used)}"
    )
    return replace(config, training=training), sentence


def asked_start(overrides: Overrides) -> StartWeights | None:
    """The weights to begin from that are asked for, if any; read, and not yet made to fit.

    Raises:
        ConfigError: they cannot be read, or it is not known which encoder they are of.
    """
    text = asked_setting(overrides, "encoder.weights")
    return None if text is None else read_start(text, asked_setting(overrides, "encoder.name"))


def advice_on_weights(config: RunConfig, *, image_count: int) -> str | None:
    """A sentence for a run that would do better with weights to begin from; None for others."""
    begins_anew = config.encoder.weights is None and config.training.begin_from is None
    if not begins_anew or image_count >= _ENOUGH_PHOTOGRAPHS or config.images.color == "raw":
        return None
    if config.encoder.name == OWN or config.images.path == PHOTOGRAPHS_NAME:
        return None
    return (
        f"The network begins from random weights; with {image_count:,} images those of ImageNet "
        "mostly serve better, also for small or gray images: --weights pretrained --encoder "
        "resnet18 fetches some, --weights FILE takes yours (docs/weights.md)."
    )


def _with_asked_policy(base: RunConfig, overrides: Overrides) -> RunConfig:
    """The base whose views all follow the policy that is asked for, if one is.

    A second or small policy of the recipe beside it would still make the changes that the asked one
    leaves out, in every other view.
    """
    if not is_asked(overrides, "views.policy"):
        return base
    asked = overlay_all(base, overrides).views.policy
    return replace(base, views=following(base.views, asked))


def _with_fitting_queue(base: RunConfig, overrides: Overrides, image_count: int) -> RunConfig:
    """The base with a queue that fits the images, where that is the dictionary asked for."""
    asked = overlay_all(base, overrides)
    has_queue = asked.compares_views and asked.method.dictionary.kind == "queue"
    return fitted_queue(base, image_count) if has_queue else base


def _suited_to(
    base: RunConfig, overrides: Overrides, image_count: int, median_side_pixels: int, patch: int
) -> RunConfig:
    """A recipe at a scale that nobody asked for, with what suits the set of images.

    What is asked for lies on top of it later; what of it decides on the rest is looked up here.
    """
    weights = is_asked(overrides, "encoder.weights")
    base = suited_side(base, median_side_pixels, weights=weights, patch=patch)
    if not weights and not is_asked(overrides, "encoder.pool"):
        base = suited_pool(base, overlay_all(base, overrides))
    asked = overlay_all(base, overrides)
    # Partners of a group are other images already, and a teacher's classifier sees whole ones.
    if asked.compares_views and asked.images.group_by is None:
        windows = suited_windows(
            image_count=image_count,
            median_side_pixels=median_side_pixels,
            side_pixels=asked.views.side_pixels,
        )
        base = replace(base, images=replace(base.images, windows=windows))
    count = image_count * overlay_all(base, overrides).images.windows ** 2
    base = fitted_batch(suited_batch(base, count), count)
    base = _with_fitting_queue(base, overrides, count)
    batch = overlay_all(base, overrides).training.batch_size
    epochs = max(asked.fewest_epochs, suited_epochs(base, count, batch, weights=weights))
    probe = base.probe
    if not is_asked(overrides, "training.epochs"):
        probe = replace(probe, health_every_epochs=health_interval(epochs, count, probe.images))
    training = replace(base.training, epochs=epochs)
    if asked.compares_views and asked.encoder.name != OWN:
        training = replace(training, keep=replace(training.keep, kind="best"))
    return replace(base, training=training, probe=probe)


def _on_windows(config: RunConfig, image_count: int) -> str:
    """A sentence on windows, where photographs are cut; empty elsewhere."""
    windows = config.images.windows
    if windows == 1:
        return ""
    return (
        f"Each of the {image_count // windows**2:,} photographs is cut into {windows} x {windows} "
        f"windows, {image_count:,} images in all (images.windows; 1 takes them whole). "
    )


def in_effect(config: RunConfig, image_count: int, *, uses_labels: bool) -> str:
    """What each query is compared with, and what that costs, in one or two sentences."""
    if config.method_name == "distillation":
        return f"The student learns the predictions of {config.distillation.teacher}."
    if not config.compares_views:
        return f"The method is {config.method_name!r}."
    batch, dictionary = config.training.batch_size, config.method.dictionary
    chunk = config.training.chunk_size
    parts = "" if chunk is None or chunk >= batch else f", encoded {chunk} images at a time"
    if parts and config.norm.kind in ("batch", "sync"):
        parts += (
            f"; norm.kind = {config.norm.kind!r} then normalises each {chunk} by themselves, which "
            "marks them for each other (shuffle, layer and group do not)"
        )
    if config.method_name in SIAMESE:
        return f"Views of an image are to be alike, by the method {config.method_name!r}{parts}."
    if uses_labels:
        others = config.method.views * batch - 1
        return (
            f"Each query meets the {others:,} other views of its batch{parts}: those of its class "
            "are its positives, the others negatives."
        )
    if dictionary.kind == "batch":
        views = config.method.views + config.views.small_views
        keys = views * (batch - 1) if dictionary.batch.both_views else batch - 1
        return f"Each query meets {keys:,} negatives, all of its own batch{parts}."
    if dictionary.kind == "queue":
        return f"Each query meets up to {dictionary.queue.size:,} negatives from the queue{parts}."
    negatives = min(dictionary.bank.negatives, image_count - 1)
    size = f"{image_count:,} keys"
    if config.head.layers:
        bytes_each = config.head.output_features * (2 if dictionary.bank.precision == "fp16" else 4)
        size += f" in {image_count * bytes_each / 1e6:,.1f} MB ({dictionary.bank.precision})"
        if dictionary.bank.placement == "sharded":
            size += " over all processes"
    return (
        f"Each query meets {negatives:,} negatives drawn from a bank of {size}{parts}. The first "
        "epoch only fills the bank."
    )


def _learning_on(base: RunConfig, overrides: Overrides, start: StartWeights | None) -> RunConfig:
    """The base as it suits weights to begin from, where there are some."""
    if start is None:
        return base
    base = start.applied_to(base)
    asked = overlay_all(base, overrides)
    # Of dense positives no anchor holds the features, so the recipe stays (decision 33).
    if asked.method_name not in ("contrastive", *SIAMESE):
        return base
    return learning_on(base, parts=len(encoder_parts(_structure(asked))))


def patch_of_start(overrides: Overrides, start: StartWeights | None) -> int:
    """The side of the patches of the encoder that weights are of, see ``patch_side``."""
    if start is None:
        return 1
    return patch_side(_structure(overlay_all(start.applied_to(RunConfig()), overrides)))


def _structure(config: RunConfig) -> nn.Module:
    """The encoder without memory, at the side that every network was made for."""
    usual = replace(
        config,
        images=replace(config.images, color="rgb"),
        views=replace(config.views, side_pixels=_USUAL_SIDE),
    )
    return encoder_structure(usual)


def _with_asked_encoder(base: RunConfig, overrides: Overrides) -> RunConfig:
    """The base with the encoder that is asked for, and the stem that goes with it.

    What else the base says of its encoder was meant for that one.
    """
    name = asked_setting(overrides, "encoder.name")
    if name is None:
        return base
    side = overlay_all(base, overrides).views.side_pixels
    stem = fitting_stem(name, side)
    pool = base.encoder.pool if name == base.encoder.name else 1
    return replace(base, encoder=EncoderConfig(name=name, stem=stem, pool=pool))


def _with_one_length(overrides: Overrides) -> Overrides:
    """The layers with epochs or minutes of a run, as the strongest one that names any asks.

    Raises:
        ConfigError: that one names both.
    """
    for number in reversed(range(len(overrides))):
        settings, origin = overrides[number]
        training = settings.get("training")
        if not isinstance(training, Mapping):
            continue
        epochs, minutes = training.get("epochs"), training.get("minutes")
        if epochs is not None and minutes is not None:
            raise ConfigError(
                f"{origin}: training.epochs = {epochs!r} and training.minutes = {minutes!r} "
                "exclude each other: a run ends after so many epochs, or with the time. Leave one "
                "of them out."
            )
        if epochs is not None or minutes is not None:
            weaker = [(_without_length(given), where) for given, where in overrides[:number]]
            return [*weaker, *overrides[number:]]
    return overrides


def _without_length(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    training = settings.get("training")
    if not isinstance(training, Mapping):
        return settings
    kept = {name: one for name, one in training.items() if name not in ("epochs", "minutes")}
    return {**settings, "training": kept}


def _with_absolute_paths(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings; a path means the same from any folder."""
    found = dict(settings)
    for section, name in _PATHS:
        table = found.get(section)
        path = table.get(name) if isinstance(table, Mapping) else None
        if isinstance(path, str) and path:
            found[section] = {**table, name: _absolute(path)}  # type: ignore[dict-item]
    encoder = found.get("encoder")
    weights = encoder.get("weights") if isinstance(encoder, Mapping) else None
    if isinstance(weights, str):
        found["encoder"] = {**encoder, "weights": absolute_source(weights)}  # type: ignore[dict-item]
    images = found.get("images")
    if isinstance(images, Mapping) and images.get("path") == "":
        # `diptych recipes` prints it so; it names no images, and must not hide those of a run.
        images = {name: value for name, value in images.items() if name != "path"}
        found["images"] = images
    for name in ("labels", "group_by"):
        text = images.get(name) if isinstance(images, Mapping) else None
        if isinstance(text, str) and ".csv:" in text.lower():
            table_path, _, column = text.rpartition(":")
            images = {**images, name: f"{_absolute(table_path)}:{column}"}  # type: ignore[dict-item]
            found["images"] = images
    return found


def _absolute(path: str) -> str:
    return from_any_folder(path) or str(Path(path).expanduser().absolute())
