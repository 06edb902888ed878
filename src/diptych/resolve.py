"""From what the user gave to a whole config: recipe at a scale, then a file, then flags."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config.files import overlay, read_config_file
from diptych.config.recipes import choose_scale, fitted_batch, fitting_stem, recipe_config
from diptych.config.sections import EncoderConfig, RunConfig, require_consistent
from diptych.errors import ConfigError
from diptych.images.open import from_any_folder
from diptych.images.sources.photographs import PHOTOGRAPHS_NAME
from diptych.methods.build import NOTHING_OWN, OwnParts, uses_labels
from diptych.methods.losses import require_fitting_loss
from diptych.runtime.device import available_threads, choose_device

DEFAULT_RECIPE = "simclr"
_PATHS = (
    ("images", "path"),
    ("images", "cache_folder"),
    ("distillation", "teacher"),
    ("distillation", "labelled"),
    ("checkpoint", "folder"),
    ("training", "begin_from"),
)

Layers = list[tuple[Mapping[str, Any], str]]
"""Settings as nested tables, in rising order of rank, each with its origin for errors."""


def layers_of(settings: Mapping[str, Any], config_file: Path | None) -> Layers:
    """The user's layers: the file's settings if there is one, then those of the command.

    Raises:
        ConfigError: the file cannot be read, or there is no such recipe or scale.
    """
    layers: Layers = (
        [] if config_file is None else [(read_config_file(config_file), str(config_file))]
    )
    layers.append((settings, "the command"))
    recipe_config(asked_recipe(layers), asked_scale(layers) or "tiny")  # both are known
    return [(_with_absolute_paths(given), origin) for given, origin in layers]


def overlay_all(config: RunConfig, layers: Layers) -> RunConfig:
    """A config with every layer on top of it."""
    for settings, origin in layers:
        config = overlay(config, settings, origin)
    if not config.images.path:
        raise ConfigError(
            "no images: give a path (a folder, a .txt list, .tar shards, a .npz, .npy or IDX file) "
            "or the name "
            f"{PHOTOGRAPHS_NAME!r}."
        )
    return config


def asked_recipe(layers: Layers) -> str:
    """The recipe that the layers name, or the default."""
    named = [str(settings["recipe"]) for settings, _ in layers if "recipe" in settings]
    return named[-1] if named else DEFAULT_RECIPE


def asked_scale(layers: Layers) -> str | None:
    """The scale that the layers name."""
    named = [str(settings["scale"]) for settings, _ in layers if "scale" in settings]
    return named[-1] if named else None


def asked_beginning(layers: Layers) -> str | None:
    """What the layers say of ``training.begin_from``."""
    sections = [settings.get("training", {}) for settings, _ in layers]
    named = [section["begin_from"] for section in sections if "begin_from" in section]
    return str(named[-1]) if named else None


def resolve(
    layers: Layers,
    *,
    image_count: int,
    median_side_pixels: int,
    channels: int,
    own: OwnParts = NOTHING_OWN,
) -> tuple[RunConfig, str]:
    """The whole config of a new run, and a sentence that says what was chosen and why.

    Args:
        layers: see ``layers_of``.
        image_count: images to learn from; a recipe's batch is made to fit them.
        median_side_pixels: of the images; with the device it decides the scale where none is
            asked for.
        channels: of the images as they were opened; kept where the config takes the files' own.
        own: parts given in Python in the place of those that the layers name.
    """
    device = choose_device(overlay_all(RunConfig(), layers).training.device).type
    scale, reason = asked_scale(layers), "as asked"
    if scale is None:
        scale, reason = choose_scale(
            median_side_pixels=median_side_pixels, accelerator=device != "cpu"
        )
    base = fitted_batch(recipe_config(asked_recipe(layers), scale), image_count)
    config = overlay_all(_with_asked_encoder(base, layers), layers)
    if config.images.color == "raw":
        config = replace(config, images=replace(config.images, raw_channels=channels))
    if config.images.jpeg_side is None:
        side = config.views.image_side
        config = replace(config, images=replace(config.images, jpeg_side=side))
    require_consistent(config)
    require_fitting_loss(config, own.loss)
    labels_used = uses_labels(config, own)
    threads = config.training.threads or available_threads()
    training = replace(config.training, device=device, threads=threads)  # type: ignore[arg-type]
    sentence = (
        f"Recipe {config.recipe} at scale {scale} ({reason}): {config.encoder.name} on views of "
        f"{config.views.side_pixels} pixels, batch {training.batch_size}, {training.epochs} "
        f"epoch{'s' * (training.epochs > 1)}, on {device} with {threads} threads. "
        f"{in_effect(config, image_count, uses_labels=labels_used)}"
    )
    return replace(config, training=training), sentence


def in_effect(config: RunConfig, image_count: int, *, uses_labels: bool) -> str:
    """What each query is compared with, and what that costs, in one or two sentences."""
    if config.method_name == "distillation":
        return f"The student learns the predictions of {config.distillation.teacher}."
    if config.method_name != "contrastive":
        return f"The method is {config.method_name!r}."
    batch, dictionary = config.training.batch_size, config.method.dictionary
    chunk = config.training.chunk_size
    parts = "" if chunk is None or chunk >= batch else f", encoded {chunk} images at a time"
    if parts and config.norm.kind in ("batch", "sync"):
        parts += (
            f"; norm.kind = {config.norm.kind!r} then normalises each {chunk} by themselves, which "
            "marks them for each other (shuffle, layer and group do not)"
        )
    if uses_labels:
        others = config.method.views * batch - 1
        return (
            f"Each query meets the {others:,} other views of its batch{parts}: those of its class "
            "are its positives, the others negatives."
        )
    if dictionary.kind == "batch":
        views = config.method.views + config.views.small_views
        keys = views * (batch - 1) if dictionary.both_views else batch - 1
        return f"Each query meets {keys:,} negatives, all of its own batch{parts}."
    if dictionary.kind == "queue":
        return f"Each query meets up to {dictionary.queue_size:,} negatives from the queue{parts}."
    negatives = min(dictionary.bank_negatives, image_count - 1)
    size = f"{image_count:,} keys"
    if config.head.layers:
        bytes_each = config.head.output_features * (2 if dictionary.bank_precision == "fp16" else 4)
        size += f" in {image_count * bytes_each / 1e6:,.1f} MB ({dictionary.bank_precision})"
        if dictionary.bank_placement == "sharded":
            size += " over all processes"
    return f"Each query meets {negatives:,} negatives drawn from a bank of {size}{parts}."


def _with_asked_encoder(base: RunConfig, layers: Layers) -> RunConfig:
    """The base with the encoder that the layers name, and the first layers that go with it.

    What else the base says of its encoder was meant for that one.
    """
    names = [
        settings["encoder"]["name"]
        for settings, _ in layers
        if "name" in settings.get("encoder", {})
    ]
    if not names:
        return base
    side = overlay_all(base, layers).views.side_pixels
    stem = fitting_stem(names[-1], side)
    return replace(base, encoder=EncoderConfig(name=names[-1], stem=stem))


def _with_absolute_paths(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings; a path means the same from any folder."""
    found = dict(settings)
    for section, name in _PATHS:
        table = found.get(section)
        path = table.get(name) if isinstance(table, Mapping) else None
        if isinstance(path, str) and path not in ("", PHOTOGRAPHS_NAME):
            found[section] = {**table, name: _absolute(path)}  # type: ignore[dict-item]
    images = found.get("images")
    group_by = images.get("group_by") if isinstance(images, Mapping) else None
    if isinstance(group_by, str) and ".csv:" in group_by:
        table_path, _, column = group_by.rpartition(":")
        found["images"] = {**images, "group_by": f"{_absolute(table_path)}:{column}"}  # type: ignore[dict-item]
    return found


def _absolute(path: str) -> str:
    return from_any_folder(path) or str(Path(path).expanduser().absolute())
