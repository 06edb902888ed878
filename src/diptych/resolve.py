"""From what the user gave to a whole config: recipe at a scale, then a file, then flags."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config_file import overlay, read_config_file
from diptych.configs import RunConfig
from diptych.errors import ConfigError
from diptych.hardware import available_threads, choose_device
from diptych.images.photographs import PHOTOGRAPHS_NAME
from diptych.recipes import choose_scale, fitted_batch, recipe_config

DEFAULT_RECIPE = "simclr"

Layers = list[tuple[Mapping[str, Any], str]]
"""Settings as nested tables, in rising order of rank, each with its origin for errors."""


def layers_of(settings: Mapping[str, Any], config_file: Path | None) -> Layers:
    """The user's layers: the file's settings if there is one, then those of the command."""
    layers: Layers = (
        [] if config_file is None else [(read_config_file(config_file), str(config_file))]
    )
    layers.append((settings, "the command"))
    return [(_with_absolute_path(given), origin) for given, origin in layers]


def overlay_all(config: RunConfig, layers: Layers) -> RunConfig:
    """A config with every layer on top of it."""
    for settings, origin in layers:
        config = overlay(config, settings, origin)
    if not config.images.path:
        raise ConfigError(
            "no images: give a path (a folder, a .npz, .npy or IDX file) or the name "
            f"{PHOTOGRAPHS_NAME!r}."
        )
    return config


def asked_recipe(layers: Layers) -> str:
    """The recipe that the layers name, or the default."""
    named = [str(settings["recipe"]) for settings, _ in layers if "recipe" in settings]
    return named[-1] if named else DEFAULT_RECIPE


def resolve(layers: Layers, *, image_count: int, median_side_pixels: int) -> tuple[RunConfig, str]:
    """The whole config of a new run, and a sentence that says what was chosen and why.

    Args:
        layers: see ``layers_of``.
        image_count: images to learn from; a recipe's batch is made to fit them.
        median_side_pixels: of the images; with the device it decides the scale where none is
            asked for.
    """
    device = choose_device(overlay_all(RunConfig(), layers).training.device).type
    scales = [str(settings["scale"]) for settings, _ in layers if "scale" in settings]
    if scales:
        scale, reason = scales[-1], "as asked"
    else:
        scale, reason = choose_scale(
            median_side_pixels=median_side_pixels, accelerator=device != "cpu"
        )
    base = fitted_batch(recipe_config(asked_recipe(layers), scale), image_count)
    config = overlay_all(base, layers)
    threads = config.training.threads or available_threads()
    training = replace(config.training, device=device, threads=threads)  # type: ignore[arg-type]
    sentence = (
        f"Recipe {config.recipe} at scale {scale} ({reason}): {config.encoder.name} on views of "
        f"{config.views.side_pixels} pixels, batch {training.batch_size}, {training.epochs} "
        f"epochs, on {device} with {threads} threads."
    )
    return replace(config, training=training), sentence


def _with_absolute_path(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The same settings; a path to images means the same from any folder."""
    images = settings.get("images")
    path = images.get("path") if isinstance(images, Mapping) else None
    if not isinstance(path, str) or path in ("", PHOTOGRAPHS_NAME):
        return settings
    absolute = str(Path(path).expanduser().absolute())
    return {**settings, "images": {**images, "path": absolute}}  # type: ignore[dict-item]
