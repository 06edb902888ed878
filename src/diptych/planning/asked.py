"""From what the user asked for to a case, its machine, and the plan."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError
from diptych.images.collection import ImageSet
from diptych.images.open import open_images
from diptych.planning.case import Case
from diptych.planning.machine import Machine
from diptych.planning.plan import Plan, make_plan
from diptych.resolve import Overrides, overlay_all, overrides_of, resolve
from diptych.runtime.device import available_threads

_SAMPLED: Final = 256  # images that tell of the sizes of all
_SIDE: Final = 430  # ImageNet's images have some 500 x 375 pixels
_BYTES_PER_PIXEL: Final = 0.6  # 110 kB of 500 x 375 pixels
_STANDS_FOR_NONE: Final = "images"


@dataclass(frozen=True)
class Asked:
    """What is asked for beside the settings of the run.

    Attributes:
        machine: what each process runs on.
        processes: that share each batch.
        images_count: None for those at the path.
        image_side: of an image as it is stored, in pixels; None for what is found or usual.
        image_kilobytes: of an encoded image; None for what is usual.
        measure: parts of a step on this machine.
        processes_here: that will share this machine.
    """

    machine: Machine
    processes: int = 1
    images_count: int | None = None
    image_side: int | None = None
    image_kilobytes: float | None = None
    measure: bool = False
    processes_here: int = 1


@dataclass(frozen=True)
class _Found:
    """What is known of the images: how many, and their means and median."""

    count: int
    pixels: float
    bytes: float
    side: int
    channels: int
    images: ImageSet | None = None


def plan_of(asked: Asked, settings: Mapping[str, Any], config_file: Path | None = None) -> Plan:
    """Plans what is asked for.

    Args:
        asked: the machine, the images, and whether to measure.
        settings: of the run, as nested tables.
        config_file: TOML whose settings the former override.

    Raises:
        ConfigError: neither a path nor a number of images is given, or settings do not fit.
    """
    if asked.processes < 1:
        raise ConfigError(f"--processes must be 1 or more; got {asked.processes}.")
    machine = asked.machine
    layers = overrides_of(settings, config_file)
    found = _images(asked, layers)
    config, _ = resolve(
        _on_device(layers, machine.is_one_memory),
        image_count=found.count,
        median_side_pixels=found.side,
        channels=found.channels,
    )
    training = replace(config.training, device="cpu" if machine.is_one_memory else "cuda")
    case = Case(
        replace(config, training=training),
        found.count,
        asked.processes,
        image_pixels=found.pixels,
        image_bytes=found.bytes,
    )
    if not asked.measure:
        return make_plan(case, machine)
    from diptych.planning.measure import measure, measure_opening

    better, seconds = measure(case, machine, found.images, local=asked.processes_here)
    opening = measure_opening(case, found.images)
    return make_plan(case, better, measured=seconds, opening=opening)


def _on_device(layers: Overrides, is_cpu: bool) -> Overrides:
    """The layers without a device that this machine may lack; a scale where one is chosen by it."""
    path = {"images": {"path": _STANDS_FOR_NONE}}
    plain: Overrides = [(path, "the plan")]
    for given, origin in layers:
        training = {k: v for k, v in given.get("training", {}).items() if k != "device"}
        plain.append(({**given, "training": training}, origin))
    scaled = any("scale" in given for given, _ in layers)
    return plain if scaled or is_cpu else [*plain, ({"scale": "paper"}, "the plan")]


def _images(asked: Asked, layers: Overrides) -> _Found:
    """Counts and sizes: as given, or those of the images at the path."""
    config = overlay_all(_base(), layers).images
    count, path = asked.images_count, config.path
    if path == _STANDS_FOR_NONE:
        if count is None:
            raise ConfigError(
                "no images: give a path, or their number by --images-count, and their size by "
                "--image-side and --image-kilobytes."
            )
        side = asked.image_side or _SIDE
        channels = config.raw_channels or (1 if config.color == "gray" else 3)
        found = _Found(count, float(side * side), 0.0, side, channels)
    else:
        found = _opened(config, count)
    given = asked.image_kilobytes
    size = found.pixels * _BYTES_PER_PIXEL if given is None else 1000 * given
    limit = config.limit or found.count
    return replace(found, bytes=size, count=min(found.count, limit))


def _base() -> Any:
    from diptych.config.run import RunConfig

    return RunConfig(images=ImagesConfig(path=_STANDS_FOR_NONE))


def _opened(config: ImagesConfig, count: int | None) -> _Found:
    """Opens all images, or some where their number is known."""
    if count is not None:
        config = replace(config, limit=min(count, config.limit or count, _SAMPLED))
    with ThreadPoolExecutor(available_threads()) as executor:
        images = open_images(config, executor).train
    pixels = float((images.heights * images.widths).mean())
    number = len(images) if count is None else count
    return _Found(number, pixels, 0.0, images.median_side_pixels, images.channels, images)
