"""What is planned: a run's settings, how many images of what size, on how many processes."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from diptych.config.data import ImagesConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.images.codecs.reduction import reduction
from diptych.images.collection import ImageSet
from diptych.images.open import open_images
from diptych.methods.losses import find_loss
from diptych.planning.machine import Machine
from diptych.resolve import Overrides, is_asked, overlay_all, overrides_of, resolve
from diptych.runtime.devices import available_threads
from diptych.views.batches import Order

_SAMPLED: Final = 256  # images whose mean size stands for that of all
_DECODED: Final = 16  # images that are decoded, to see how far they are reduced
_SIDE: Final = 430  # ImageNet's images have some 500 x 375 pixels
_BYTES_PER_PIXEL: Final = 0.6  # 110 kB of 500 x 375 pixels
_NO_PATH: Final = "images"  # stands for a path where none is given


@dataclass(frozen=True)
class PlannedRun:
    """A run before it starts.

    Attributes:
        config: of the run, resolved.
        image_count: images to learn from.
        processes: that share each batch, one device each.
        image_pixels: height times width of an image as it is stored.
        image_bytes: of an encoded image.
        decoded_share: of these pixels, as images may be reduced when they are decoded.
    """

    config: RunConfig
    image_count: int
    processes: int = 1
    image_pixels: float = 500.0 * 375.0
    image_bytes: float = 110e3
    decoded_share: float = 1.0

    @property
    def images(self) -> int:
        """Of one process in a step."""
        return self.config.training.batch_size // self.processes

    @property
    def learned_images(self) -> int:
        """Of an epoch: windows of photographs are images each."""
        return self.image_count * self.config.images.windows**2

    @property
    def steps(self) -> int:
        """Of the whole run."""
        return self.config.training.epochs * (
            self.learned_images // self.config.training.batch_size
        )

    @property
    def chunks(self) -> int:
        """Parts that a process encodes one after the other."""
        chunk = self.config.training.chunk_size
        return 1 if chunk is None or chunk >= self.images else self.images // chunk

    @property
    def dictionary(self) -> str:
        """Its kind: batch, queue or bank."""
        return self.config.method.dictionary.kind

    @property
    def queries_are_keys(self) -> bool:
        """Whether every view of a batch is once the query and otherwise a key."""
        method = self.config.method
        shared = method.key_encoder.kind == "shared"
        return self.dictionary == "batch" and method.dictionary.batch.both_views and shared

    @property
    def many_positives(self) -> bool:
        """Whether a query may have several positive keys in the batch."""
        many = self.config.method.views + self.config.views.small_views > 2
        many = many or find_loss(self.config.method.loss.kind).needs_labels
        return self.queries_are_keys and many

    @property
    def full_logits(self) -> bool:
        """Whether the loss holds all logits at once; other losses sum them up in tiles."""
        return find_loss(self.config.method.loss.kind).needs_all_logits

    @property
    def query_views(self) -> int:
        """Views of an image that are queries."""
        method, small = self.config.method, self.config.views.small_views
        return (method.views if self.queries_are_keys else 1 + method.symmetric) + small

    @property
    def key_views(self) -> int:
        """Views of an image that are encoded as keys apart from the queries."""
        if self.queries_are_keys or self.dictionary == "bank":
            return 0
        return 1 + self.config.method.symmetric

    @property
    def keys_learn(self) -> bool:
        """Whether gradients flow to keys."""
        return self.dictionary == "batch" and self.config.method.key_encoder.kind == "shared"

    @property
    def shuffled_views(self) -> int:
        """Views of an image that are encoded in another order than they come in."""
        if self.config.norm.kind != "shuffle":
            return 0
        return self.query_views - 1 if self.queries_are_keys else self.key_views

    @property
    def drawn_images(self) -> int:
        """Images whose keys are drawn from a full bank: one more than the negatives, if it can."""
        return min(self.config.method.dictionary.bank.negatives + 1, self.learned_images)

    @property
    def bank_is_sharded(self) -> bool:
        """Whether each process holds a share of a bank only."""
        dictionary = self.config.method.dictionary
        return dictionary.kind == "bank" and dictionary.bank.placement == "sharded"

    @property
    def view_values(self) -> int:
        """Numbers in all views of one image."""
        views = self.config.views
        full = self.config.method.views * views.side_pixels**2
        return self.config.images.channels * (full + views.small_views * views.small_side**2)

    @property
    def kept_bytes(self) -> float:
        """Of decoded images that stay in memory; 0 where they need more than is allowed."""
        images, pixels = self.config.images, self.image_pixels * self.decoded_share
        needed = self.image_count * pixels * images.channels * (images.bits // 8)
        fits = needed <= images.cache_megabytes * 2**20 and images.cache in ("auto", "memory")
        return needed if fits else 0.0

    def of_one_process(self) -> "PlannedRun":
        """A run of a single process whose batch is the share of one of this run's."""
        training = replace(self.config.training, batch_size=self.images)
        return replace(self, processes=1, config=replace(self.config, training=training))


@dataclass(frozen=True)
class PlanRequest:
    """What is asked for beside the settings of the run.

    Attributes:
        machine: what each process runs on.
        processes: that share each batch.
        images_count: None for those at the path.
        image_side: of an image as it is stored, in pixels; None for what is found or usual.
        image_kilobytes: of an encoded image; None for what is usual.
        measure: parts of a step on this machine.
        processes_here: that will share this machine.

    Raises:
        ConfigError: a number is not positive.
    """

    machine: Machine
    processes: int = 1
    images_count: int | None = None
    image_side: int | None = None
    image_kilobytes: float | None = None
    measure: bool = False
    processes_here: int = 1

    def __post_init__(self) -> None:
        numbers = ("processes", "images_count", "image_side", "image_kilobytes", "processes_here")
        for name in numbers:
            value = getattr(self, name)
            if value is not None and not value > 0:
                flag = name.replace("_", "-")
                raise ConfigError(f"--{flag} must be positive; got {value!r}.")


def resolve_run(
    request: PlanRequest, settings: Mapping[str, Any], config_file: Path | None = None
) -> tuple[PlannedRun, ImageSet | None]:
    """The run that is asked for, and its images, or some of them, where a path is given.

    Args:
        request: the machine, and the images.
        settings: of the run, as nested tables.
        config_file: TOML whose settings the former override.

    Raises:
        ConfigError: neither a path nor a number of images is given, or settings do not fit.
    """
    layers = overrides_of(settings, config_file)
    if is_asked(layers, "training.minutes"):
        raise ConfigError(
            "a plan says how long a run of so many epochs takes, and training.minutes is how long "
            "it may take: leave that out, and give --epochs."
        )
    if is_asked(layers, "training.begin_from"):
        raise ConfigError(
            "a plan does not look into the run that training.begin_from names: leave that out, and "
            "give its settings by --config RUN/config.toml."
        )
    if is_asked(layers, "encoder.weights"):
        raise ConfigError(
            "a plan does not count what a run from weights leaves frozen, nor the pass that holds "
            "it near its start. Plan the same network from scratch: --encoder NAME, without "
            "--weights."
        )
    given = overlay_all(RunConfig(images=ImagesConfig(path=_NO_PATH)), layers).images
    images, on_cpu = None, request.machine.is_one_memory
    side = request.image_side or _SIDE
    pixels = float(side**2)
    if given.path != _NO_PATH:
        images = _open(given, request.images_count)
        count = len(images) if request.images_count is None else request.images_count
        channels = images.channels
        if request.image_side is None:
            side = images.median_side_pixels
            pixels = float((images.heights * images.widths).mean())
    elif request.images_count is not None:
        count = request.images_count
        channels = given.raw_channels or (1 if given.color == "gray" else 3)
    else:
        raise ConfigError(
            "no images: give a path, or their number by --images-count, and their size by "
            "--image-side and --image-kilobytes."
        )
    count, kilobytes = min(count, given.limit or count), request.image_kilobytes
    config, _ = resolve(
        _without_device(layers),
        image_count=count,
        median_side_pixels=side,
        channels=channels,
        accelerator=not on_cpu,
    )
    if config.method_name not in ("contrastive", "dense"):
        raise ConfigError(
            f"the method {config.method_name!r} cannot be planned: encoders, logits and messages "
            "are counted of dictionaries of negatives only. With the same encoder and batch, plan "
            "the recipe simclr, or moco_v3 where there is a momentum encoder: they cost about as "
            "much, but for small views (swav, dino, lejepa), which come on top."
        )
    # Refuses a batch that the images do not fill, as a run would.
    learned = count * config.images.windows**2
    Order(config.seed, learned, config.training.batch_size)
    run = PlannedRun(
        replace(config, training=replace(config.training, device="cpu" if on_cpu else "cuda")),
        count,
        request.processes,
        image_pixels=pixels,
        image_bytes=pixels * _BYTES_PER_PIXEL if kilobytes is None else 1000 * kilobytes,
        decoded_share=_decoded_share(
            config.images, images if request.image_side is None else None, side
        ),
    )
    return run, images


def _without_device(layers: Overrides) -> Overrides:
    """The layers without a device that this machine may lack."""
    plain: Overrides = [({"images": {"path": _NO_PATH}}, "the plan")]
    for given, origin in layers:
        training = {k: v for k, v in given.get("training", {}).items() if k != "device"}
        plain.append(({**given, "training": training}, origin))
    return plain


def _decoded_share(config: ImagesConfig, images: ImageSet | None, side: int) -> float:
    """Of the pixels of some images, decoded as a run does, or of squares of a side."""
    if images is None:
        return float(1 / reduction((side, side), config.decoded_side) ** 2)
    some = images.spread(_DECODED)
    found = some.decoded_for(replace(config, cache="none")).pixels.gather(np.arange(len(some)))
    whole = (some.heights * some.widths).sum()
    return float((found.heights * found.widths).sum() / whole)


def _open(config: ImagesConfig, count: int | None) -> ImageSet:
    """Opens all images, or some where their number is known."""
    if count is not None:
        config = replace(config, limit=min(count, config.limit or count, _SAMPLED))
    with ThreadPoolExecutor(available_threads()) as executor:
        return open_images(config, executor).train
