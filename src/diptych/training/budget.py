"""Which network, views and batch suit so many minutes on this machine: measured, then chosen.

docs/decisions/0027-minutes.md says how the tables were found.
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.config.files import nest
from diptych.config.run import OWN, RunConfig
from diptych.config.suited import (
    PHOTOGRAPH_SIDE_PIXELS,
    SMALL_BATCH,
    health_interval,
    whole_patches,
)
from diptych.errors import ConfigError
from diptych.evaluation.features import encode
from diptych.evaluation.linear import FEW
from diptych.images.collection import Collection, ImageSet
from diptych.images.windows import in_windows
from diptych.methods.build import OwnParts, build_method
from diptych.models.final_features import MOST_WHITENED
from diptych.models.start import StartWeights
from diptych.optimization.optimizers import build_optimizer
from diptych.resolve import (
    Overrides,
    asked_setting,
    asked_start,
    is_asked,
    overlay_all,
    patch_of_start,
    resolve,
)
from diptych.runtime.devices import choose_device, keep_freed_memory, views_device
from diptych.runtime.distributed import largest_over_processes, process_count
from diptych.runtime.rendezvous import run_on_first
from diptych.training.clock import TimeBudget
from diptych.training.setup import frozen_parts, require_labels
from diptych.training.step import train_step
from diptych.views.batches import Order, ViewBatches

_LEAST_STEPS: Final = 500  # with fewer, the smaller batch is taken


class Candidate(NamedTuple):
    """A network and a side of views that a run may have.

    Attributes:
        side_pixels: of a view.
        encoder: settings of the section ``encoder``.
        images: that it should see at least, each as often as it comes: a larger network on larger
            views that sees fewer learns less than the one before it.
    """

    side_pixels: int
    encoder: Mapping[str, Any]
    images: int


def _small(width: int) -> Mapping[str, Any]:
    return {"name": "small_resnet", "width": width}


_RESNET18: Final = {"name": "resnet18"}
_RESNET50: Final = {"name": "resnet50"}

_PHOTOGRAPHS_ON_CPU: Final = (
    Candidate(32, _small(16), 0),
    Candidate(64, _small(16), SMALL_BATCH * _LEAST_STEPS),  # rather than 32 pixels whenever it can
    Candidate(64, _small(32), 100_000),
    Candidate(64, _small(64), 200_000),
    Candidate(96, _RESNET18, 300_000),
    Candidate(128, _RESNET18, 500_000),
)
_SMALL_IMAGES_ON_CPU: Final = (
    Candidate(32, _small(16), 0),
    Candidate(32, _small(32), 200_000),
    Candidate(32, _small(64), 500_000),
    Candidate(32, _RESNET18, 1_500_000),
)
_PHOTOGRAPHS_ON_ACCELERATOR: Final = (
    Candidate(64, _small(32), 0),
    Candidate(96, _RESNET18, 200_000),
    Candidate(128, _RESNET18, 500_000),
    Candidate(128, _RESNET50, 1_500_000),
    Candidate(224, _RESNET50, 5_000_000),
)
_SMALL_IMAGES_ON_ACCELERATOR: Final = (
    Candidate(32, _small(32), 0),
    Candidate(32, _small(64), 500_000),
    Candidate(32, _RESNET18, 1_500_000),
)
_FROM_WEIGHTS: Final = (
    Candidate(64, {}, 0),
    Candidate(96, {}, 4_000),
    *(Candidate(side, {}, 8_000) for side in (128, 160, 192, 224)),
)
"""With weights to begin from: what they know of large images counts more than many steps."""
_ENLARGED_SIDE: Final = 160  # to which smaller images are enlarged for them; more is only slower

_CANDIDATES: Final = {  # by: on a CPU, of photographs
    (True, True): _PHOTOGRAPHS_ON_CPU,
    (True, False): _SMALL_IMAGES_ON_CPU,
    (False, True): _PHOTOGRAPHS_ON_ACCELERATOR,
    (False, False): _SMALL_IMAGES_ON_ACCELERATOR,
}
"""The smallest first: the last one before one that cannot see its images in the time is taken."""

_PASSES: Final = 10  # of a large set that a candidate from scratch should make,
_PASSES_RAISE: Final = 4  # which raises the images it should see by this factor at most
_MEASURED_IMAGES: Final = 32  # in a step that is measured, of each process
_MEASURED_STEPS: Final = 2
_SLOWDOWN_SECONDS: Final = 0.05
_MEASURING_SHARE: Final = 0.05  # of the time: no further candidate is measured after that

# Of evaluation and report, in seconds of one idle core: two encoders see every image once, and the
# rest (kNN, the linear classifiers, the pages) grows with the images and, from scratch, with their
# features, or does not.
_ENCODERS: Final = 2
_FEATURES: Final = 512  # of which the seconds from scratch are
_SECONDS_PER_IMAGE: Final = 1.2e-3
_SECONDS_PER_IMAGE_FROM_WEIGHTS: Final = 5e-3  # of more features, by one encoder more
# The same for each image that a linear classifier is fitted on, where five fifths choose.
_SECONDS_OF_FIFTHS: Final = 1e-3
_SECONDS_OF_FIFTHS_FROM_WEIGHTS: Final = 8e-3
_FITTED: Final = 1_000  # images, up to which the seconds are those of tiles and photographs
_REPORT_SECONDS: Final = 10.0
_SHOWN_IMAGES: Final = 2_500  # by the report, of neighbours and the map, where there are no labels
# Of the choice of an encoder, which stands above training: weights that are compared, views that
# whitening sees, and seconds for each image.
COMPARED_WEIGHTS: Final = 3
COMPARED_VIEWS: Final = 1024
_CHOICE_SECONDS: Final = 5e-3
_WHITENING_SECONDS: Final = 2e-3  # the same from scratch, of one encoder and itself whitened
_EIGEN_SECONDS: Final = 4e-10  # of whitening, times the third power of the features,
_NARROW: Final = 1_280  # beyond so many, whose time is in the seconds above
_EVALUATED: Final = {"fit_images": (1_000, 500), "test_images": (500, 200)}
"""Labelled images: so many at least, and so many for each minute."""
_PARTS: Final = tuple(_EVALUATED)
_ORIGIN: Final = "the choice for the minutes"
_SAVE_SECONDS: Final = 0.5  # of encoder and head, which is all without evaluation and report


@dataclass(frozen=True)
class Speed:
    """How fast this machine is at a config.

    Attributes:
        image_seconds: of one image's share of a step, on all processes together, in the mean of a
            run.
        encode_seconds: of one image by the frozen encoder.
        slowdown: how much longer work of one core takes, as other programs want the cores too.
        features: of an image, which classifiers are fitted on.
        early_cost: seconds of a step on the views of the first part of a run over those of one on
            views of full size.
    """

    image_seconds: float
    encode_seconds: float
    slowdown: float = 1.0
    features: int = _FEATURES
    early_cost: float = 1.0

    def with_views(self, slower: float) -> "Speed":
        """The same with views that take so many times as long."""
        return replace(
            self,
            image_seconds=slower * self.image_seconds,
            encode_seconds=slower * self.encode_seconds,
        )


class _Measured(NamedTuple):
    """How fast a candidate is, and what time is left."""

    config: RunConfig
    speed: Speed
    collection: Collection
    evaluates: bool
    seconds_left: float

    def seen(self, slower: float = 1.0) -> float:
        """Images that it would learn from in the time, with views so many times as slow."""
        speed = self.speed.with_views(slower)
        rest = reserve_seconds(self.config, speed, self.collection, evaluates=self.evaluates)
        return (self.seconds_left - rest) / speed.image_seconds


def reserve_seconds(
    config: RunConfig, speed: Speed, collection: Collection, *, evaluates: bool
) -> float:
    """What comes after the last step, roughly: the choice of an encoder, evaluation and report."""
    weights = config.encoder.weights is not None
    longer = speed.slowdown * (1 if weights else speed.features / _FEATURES)
    seconds = _SAVE_SECONDS
    if config.keeps_best:
        shown = min(config.training.keep.images, len(collection.train)) + COMPARED_VIEWS
        has_start = weights or config.encoder.name == OWN
        seconds += (COMPARED_WEIGHTS if has_start else 1) * shown * speed.encode_seconds
        seconds += longer * (_CHOICE_SECONDS if has_start else _WHITENING_SECONDS) * shown
        wide = max(0, speed.features**3 - _NARROW**3) if speed.features <= MOST_WHITENED else 0
        seconds += speed.slowdown * _EIGEN_SECONDS * wide * ((COMPARED_WEIGHTS + 1) * has_start + 1)
    if evaluates and not _has_labels(collection):
        shown = _ENCODERS * min(_SHOWN_IMAGES, len(collection.train))
        seconds += speed.slowdown * _REPORT_SECONDS + shown * speed.encode_seconds
    elif evaluates:
        limits = evaluation_limits(config.training.minutes)
        parts = len(collection.train), 0 if collection.test is None else len(collection.test)
        counts = [min(n, limits.get(name, n)) for name, n in zip(_PARTS, parts, strict=True)]
        images, fitted = sum(counts), counts[0]
        if fitted < FEW:
            of_fifths = _SECONDS_OF_FIFTHS_FROM_WEIGHTS if weights else _SECONDS_OF_FIFTHS
            # A fit solves for the images, which takes the square of their number.
            seconds += longer * fitted * of_fifths * max(1.0, fitted / _FITTED)
        per_image = _SECONDS_PER_IMAGE_FROM_WEIGHTS if weights else _SECONDS_PER_IMAGE
        seconds += speed.slowdown * _REPORT_SECONDS + longer * images * per_image
        seconds += images * (_ENCODERS + weights) * speed.encode_seconds
    return seconds


def _has_labels(collection: Collection) -> bool:
    parts = [collection.train, *([] if collection.test is None else [collection.test])]
    return any(one.labels is not None and bool((one.labels >= 0).any()) for one in parts)


def evaluation_limits(minutes: float | None) -> dict[str, Any]:
    """How many labelled images a run of so many minutes is evaluated on, as `evaluate` takes them.

    Without a limit, tens of thousands of test images would leave no time to train. `diptych
    evaluate` measures on all afterwards. Nothing for a run without minutes.
    """
    if minutes is None:
        return {}
    return {name: max(least, int(minutes * each)) for name, (least, each) in _EVALUATED.items()}


def choose_for_minutes(
    layers: Overrides,
    collection: Collection,
    executor: Executor,
    own: OwnParts,
    budget: TimeBudget,
    *,
    evaluates: bool,
) -> tuple[Overrides, Speed]:
    """The layers above a weakest one, of what the minutes allow; and the speed of that.

    Every process of a run calls it, and all choose the same: candidates are measured in steps that
    they take together, and the first one's clock counts.

    Args:
        layers: what the user asks for.
        collection: the images.
        executor: its threads make views.
        own: parts given in Python.
        budget: the time of the command.
        evaluates: whether evaluation and report follow.
    """
    begun, chosen, start = budget.now(), None, asked_start(layers)
    candidates = list(_candidates(layers, collection.train, own, start))
    # Those up to `held` are at most as large as the one chosen, those from `end` on too large.
    place, held, end = 0, -1, len(candidates)
    while held < place < end:
        settings, images = candidates[place]
        config = _resolved(settings, layers, collection.train, own, start)
        speed = measure_speed(config, collection, executor, own)
        left, measuring = _of_first(budget.seconds - budget.spent_seconds(), budget.now() - begun)
        measured = _Measured(config, speed, collection, evaluates, left)
        seen = measured.seen()
        fits = seen >= (images if start else _wanted(images, config, collection.train))
        length = _length(config, layers, collection.train, seen)
        learns = length["training.epochs"] >= config.fewest_epochs
        may_go_on = measuring <= _MEASURING_SHARE * budget.seconds
        if chosen is None and not learns:
            raise ConfigError(_too_short(budget.seconds, seen / _count(config, collection.train)))
        if chosen is None or (fits and learns):
            chosen, held = ({**settings, **length}, speed), place
            place = place + 1
            if start:
                place = _next_place(candidates[:end], held, measured)
        else:
            # Of weights some may have been passed over: the largest that should fit is next.
            smaller = _largest_below(candidates, held, place, measured) if start else held
            if smaller > held and not may_go_on:
                chosen = _as_estimated(candidates, smaller, place, measured, layers, own, start)
            place, end = smaller, place
        if not may_go_on:
            break
    assert chosen is not None
    return [(nest(chosen[0]), _ORIGIN), *layers], chosen[1]


def measure_speed(
    config: RunConfig, collection: Collection, executor: Executor, own: OwnParts
) -> Speed:
    """Takes a few real steps, views included, and encodes a few images; changes no state of a run.

    Collective: every process of a run calls it.
    """
    keep_freed_memory()  # as training does, whose steps would otherwise look slower than they are
    config = _measured_config(config)
    device, batch = choose_device(config.training.device), config.training.batch_size
    learned = collection.train
    if config.method_name == "distillation" and learned.labels is not None:
        # A few of them must do for the teacher's classifier, too.
        labelled = np.flatnonzero(learned.labels >= 0)
        learned = learned.select(labelled) if len(labelled) else learned
    sample = learned.spread(max(batch, _MEASURED_IMAGES)).decoded_for(config.images)
    images = in_windows(sample, config.images.windows, side_pixels=config.views.side_pixels)
    method = build_method(config, replace(collection, train=images), executor, own).train()
    if method.needs_labels:
        require_labels(collection.train, config)
    layout = torch.channels_last if config.training.channels_last else torch.contiguous_format
    method.to(device).to(memory_format=layout)
    optimizer = build_optimizer(config.optimizer, method)
    frozen = frozen_parts(method, config.encoder)
    if frozen is not None:
        frozen.set(frozen=True)
    batches = ViewBatches(
        images,
        Order(config.seed, len(images), batch),
        config.views,
        executor,
        view_count=method.views,
        device=views_device(config.views.applier, device),
    )

    def step(batches: ViewBatches) -> None:
        # Always the same batch: its images are decoded once, as in all epochs but the first.
        batch = batches.at(0).to(device)
        output = train_step(method, optimizer, batch, rate=1e-6, momentum=0.99, config=config)
        float(output.loss)  # waits for the device

    def encoded() -> Tensor:
        return encode(method.encoder, sample, config.views, executor)

    features = encoded().shape[1]
    views = config.views
    full = _seconds_of(partial(step, batches))
    early = _seconds_of(partial(step, batches.early)) if views.has_early_part else full
    measured = (full, early, _seconds_of(encoded), _slowdown())
    full, early, encode_seconds, slowdown = (
        one / 1e9 for one in largest_over_processes(*(int(1e9 * one) for one in measured))
    )
    step_seconds = views.early_share * early + (1 - views.early_share) * full
    return Speed(
        *(step_seconds / batch, encode_seconds / len(sample), slowdown, features), early / full
    )


def _seconds_of(work: Callable[[], object]) -> float:
    """The mean of some calls, the first of which does not count."""
    work()
    begun = time.perf_counter()
    for _ in range(_MEASURED_STEPS):
        work()
    return (time.perf_counter() - begun) / _MEASURED_STEPS


def _slowdown() -> float:
    """Seconds that pass while this thread gets a second of a core."""
    begun, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < _SLOWDOWN_SECONDS:
        sum(range(10_000))
    return (time.perf_counter() - begun) / (time.thread_time() - used)


def _measured_config(config: RunConfig) -> RunConfig:
    """The same with a batch that takes little time, and a cache that leaves no file behind."""
    batch, share = config.training.batch_size, _MEASURED_IMAGES
    if config.norm.is_grouped:
        share = config.norm.images_per_group
    batch = min(batch // process_count(), share) * process_count() or batch
    training = replace(config.training, batch_size=batch, chunk_size=None)
    cache = "none" if config.images.cache == "none" else "memory"
    images = replace(config.images, cache=cache)  # type: ignore[arg-type]
    return replace(config, training=training, images=images)


def _candidates(
    layers: Overrides, images: ImageSet, own: OwnParts, start: StartWeights | None
) -> Iterator[tuple[dict[str, Any], int]]:
    """Settings to try, and images that each should see; none of what is asked for itself."""
    if own.encoder is not None or asked_setting(layers, "scale") is not None:
        yield {}, 0
        return
    weights = is_asked(layers, "encoder.weights")
    on_cpu = choose_device(overlay_all(RunConfig(), layers).training.device).type == "cpu"
    photographs = images.median_side_pixels >= PHOTOGRAPH_SIDE_PIXELS
    fixed = tuple(one for one in ("encoder", "views.side_pixels") if is_asked(layers, one))
    tried = list[dict[str, Any]]()
    largest = max(_ENLARGED_SIDE, images.median_side_pixels)
    patch = patch_of_start(layers, start)
    from_weights = [
        one._replace(side_pixels=whole_patches(one.side_pixels, patch))
        for one in _FROM_WEIGHTS
        if one.side_pixels <= largest
    ]
    for candidate in from_weights if weights else _CANDIDATES[on_cpu, photographs]:
        encoder = {f"encoder.{name}": value for name, value in candidate.encoder.items()}
        settings = {**encoder, "views.side_pixels": candidate.side_pixels}
        settings = {k: v for k, v in settings.items() if not k.startswith(fixed)}
        if settings not in tried:
            tried.append(settings)
            yield settings, candidate.images


def _next_place(
    candidates: Sequence[tuple[dict[str, Any], int]], place: int, measured: _Measured
) -> int:
    """Which candidate to measure next, where all have one network: not those surely too small.

    A view costs as its area does, or less. Every candidate that is measured takes of the time.

    Args:
        candidates: settings, and images that each should see.
        place: of the one that was measured.
        measured: what was measured of it.
    """
    side = candidates[place][0].get("views.side_pixels", 1)
    fitting = [
        later
        for later, (_, images) in enumerate(candidates)
        if later > place and measured.seen(_ratio(candidates, later, side)) >= images
    ]
    return max(fitting, default=place + 1)


def _largest_below(
    candidates: Sequence[tuple[dict[str, Any], int]], held: int, place: int, measured: _Measured
) -> int:
    """The largest candidate above ``held`` that fits by what was measured of one too large."""
    side = candidates[place][0].get("views.side_pixels", 1)
    fitting = [
        smaller
        for smaller in range(held + 1, place)
        if measured.seen(_ratio(candidates, smaller, side)) >= candidates[smaller][1]
    ]
    return max(fitting, default=held)


def _as_estimated(
    candidates: Sequence[tuple[dict[str, Any], int]],
    smaller: int,
    place: int,
    measured: _Measured,
    layers: Overrides,
    own: OwnParts,
    start: StartWeights | None,
) -> tuple[dict[str, Any], Speed]:
    """A candidate with its length, and the speed that it should have, where none is measured."""
    settings, train = candidates[smaller][0], measured.collection.train
    ratio = _ratio(candidates, smaller, candidates[place][0].get("views.side_pixels", 1))
    config = _resolved(settings, layers, train, own, start)
    length = _length(config, layers, train, measured.seen(ratio))
    return {**settings, **length}, measured.speed.with_views(ratio)


def _ratio(candidates: Sequence[tuple[dict[str, Any], int]], place: int, side: int) -> float:
    """How many times as slow its views are as those of a side: as their area, or less."""
    return float((candidates[place][0].get("views.side_pixels", side) / side) ** 2)


def _wanted(images: int, config: RunConfig, train: ImageSet) -> int:
    """How many images a candidate should see on this set from scratch: more where it is large."""
    count = _count(config, train)
    return max(images, min(_PASSES * count, _PASSES_RAISE * images))


def _too_short(seconds: float, passes: float) -> str:
    return (
        f"training.minutes = {seconds / 60:g} leaves time for {max(0.0, passes):.1f} passes over "
        "the images on this machine, and the first one only fills the bank: wanted two or more. "
        "Give more minutes, or fewer images by --images.limit; or take "
        "--method.dictionary.kind queue."
    )


def _count(config: RunConfig, train: ImageSet) -> int:
    """Images of an epoch, windows counted each."""
    return len(train) * config.images.windows**2


def _resolved(
    settings: Mapping[str, Any],
    layers: Overrides,
    images: ImageSet,
    own: OwnParts,
    start: StartWeights | None,
) -> RunConfig:
    config, _ = resolve(
        [(nest(settings), _ORIGIN), *layers],
        image_count=len(images),
        median_side_pixels=images.median_side_pixels,
        channels=images.channels,
        own=own,
        start=start,
    )
    return config


def _length(config: RunConfig, layers: Overrides, train: ImageSet, seen: float) -> dict[str, Any]:
    """Batch, epochs and epochs between measurements, of a run that sees so many images."""
    batch = config.training.batch_size
    if seen < _LEAST_STEPS * batch and not is_asked(layers, "training.batch_size"):
        batch = min(batch, SMALL_BATCH)
    count = _count(config, train)
    per_epoch = max(1, count // batch)
    epochs = max(1, round(seen / batch / per_epoch))
    return {
        "training.batch_size": batch,
        "training.epochs": epochs,
        "probe.health_every_epochs": health_interval(epochs, count, config.probe.images),
    }


def _of_first(*seconds: float) -> tuple[float, ...]:
    """The first process's numbers, on all."""
    told: list[float] = json.loads(run_on_first(lambda: json.dumps(seconds)))
    return tuple(told)
