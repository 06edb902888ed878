"""Health of an encoder while it trains: geometry, kNN where labels exist, and symptoms in words.

Symptoms are plain sentences on what the metrics of a run show: what is wrong, and what is normal
although it looks wrong.
"""

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.data import ViewsConfig
from diptych.diagnostics.candidates import NEIGHBOURS_KEPT
from diptych.diagnostics.collapsed_prototypes import collapsed_prototypes
from diptych.diagnostics.label_free import neighbour_agreement
from diptych.diagnostics.neighbourhoods import Pixels, stability
from diptych.errors import ImagesError
from diptych.evaluation.features import encode, require_finite
from diptych.evaluation.geometry import alignment, effective_rank, uniformity
from diptych.evaluation.knn import accuracy, knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.images.collection import Collection, ImageSet, spread_indices
from diptych.logging.metrics import (
    PRETEXT_ACCURACY,
    RETRIEVAL_ACCURACY,
    chance_of,
    task_accuracy,
)
from diptych.logging.progress import Symptom
from diptych.logging.times import NOT_WORK, Milliseconds, Times, named, times_of
from diptych.methods.method import Method
from diptych.models.weights import load_encoder, trained_on
from diptych.runtime.stopwatch import PARTS
from diptych.views.batches import ViewBatches

_BANK_SHARE = 2  # kNN looks among this many times as many images as it classifies
_VIEW_PAIRS = 512
_STABILITY_IMAGES = 256


@dataclass(frozen=True)
class Health:
    """Measures the same images in the same way at every call; changes no state of the run.

    Attributes:
        sample: images for the effective rank.
        sample_indices: a few images to learn from, for alignment and uniformity.
        labelled: images for kNN, or None.
        words: on which images, or why kNN is not measured; empty without labels.
        views: how images are evaluated.
        executor: its threads make views.
        start: file of the encoder that the run began from, where it had weights; it may be missing.
    """

    sample: ImageSet
    sample_indices: NDArray[np.int64]
    labelled: Labelled | None
    words: str
    views: ViewsConfig
    executor: Executor
    start: Path | None = None

    def measure(self, method: Method, batches: ViewBatches) -> dict[str, float]:
        """Alignment, uniformity, effective rank, stability; with labels kNN and of what images.

        Where the run began from weights, also the share of neighbours that it kept.

        Raises:
            FeaturesError: vectors are not finite numbers.
        """
        pairs = _projections(method, batches, self.sample_indices)
        for view in pairs:
            require_finite(view, of="the head")
        found = {"alignment": alignment(*pairs), "uniformity": uniformity(pairs[0])}
        found |= {"stability": self._stability(method.encoder), "pixel_stability": self._of_pixels}
        method.network.train()
        if self.labelled is None:
            features = encode(method.encoder, self.sample, self.views, self.executor)
            return found | _rank(features, self.sample) | self._kept(features)
        train = encode(method.encoder, self.labelled.train, self.views, self.executor)
        test = encode(method.encoder, self.labelled.test, self.views, self.executor)
        predicted = knn_predict(train, self.labelled.train_labels, test)
        seen = self.labelled.test_seen
        known = {} if seen is None else {"knn_images_seen": float(seen.sum())}
        return found | {
            **_rank(train, self.labelled.train),
            **self._kept(train),
            "knn": accuracy(predicted, self.labelled.test_labels),
            "knn_images": float(len(test)),
            **known,
        }

    def _stability(self, encoder: nn.Module) -> float:
        few = self.sample.spread(_STABILITY_IMAGES)
        return stability(encoder, few, self.views, self.executor)

    @cached_property
    def _of_pixels(self) -> float:
        return self._stability(Pixels())

    def _kept(self, features: Tensor) -> dict[str, float]:
        """Share of the nearest neighbours by the start encoder that are still the nearest."""
        if self._of_start is None:
            return {}
        return {"start_neighbours": neighbour_agreement(self._of_start, features)}

    @cached_property
    def _of_start(self) -> Tensor | None:
        """Features of the start encoder, of the images whose rank is measured."""
        if self.start is None or not self.start.is_file():
            return None
        images = self.sample if self.labelled is None else self.labelled.train
        return encode(load_encoder(self.start), images, self.views, self.executor)

    def symptoms(
        self, metrics: Sequence[Mapping[str, Any]], *, dictionary_size: int | None
    ) -> list[Symptom]:
        """What the metrics so far show, oldest line first; see ``find_symptoms``."""
        found = find_symptoms(metrics, dictionary_size=dictionary_size)
        return [*found, *time_symptoms(metrics)]


def build_health(
    collection: Collection,
    views: ViewsConfig,
    executor: Executor,
    *,
    image_count: int,
    group_by: str | None = None,
    labels_used: bool = False,
    start: Path | None = None,
) -> Health:
    """Chooses the images to measure, at most ``image_count`` for each purpose.

    Always the same ones, evenly spread over the set.

    Args:
        collection: the images of the run; it learns from the training part.
        views: how images are evaluated.
        executor: its threads make views.
        image_count: at most, for each purpose.
        group_by: ``images.group_by``.
        labels_used: whether the run learns from their labels.
        start: file of the encoder that the run began from, where it had weights.
    """
    labelled, words = _labelled(collection, group_by, labels_used, image_count)
    chosen = spread_indices(len(collection.train), image_count)
    return Health(
        sample=collection.train.select(chosen),
        sample_indices=chosen[:: max(1, len(chosen) // _VIEW_PAIRS)],
        labelled=labelled,
        words=words,
        views=views,
        executor=executor,
        start=start,
    )


def _labelled(
    collection: Collection, group_by: str | None, labels_used: bool, image_count: int
) -> tuple[Labelled | None, str]:
    """Images for kNN, and a sentence on which they are or why there are none."""
    seen = trained_on([collection.train], labels_used=labels_used)
    try:
        found = labelled_parts(collection, group_by=group_by, seen=seen)
    except ImagesError as error:  # a run needs no labels, so these must not end it
        return None, f"kNN is not measured while the run trains: {error}"
    if found is None:
        return None, ""
    bank = spread_indices(len(found.train), _BANK_SHARE * image_count)
    queries = spread_indices(len(found.test), image_count)
    labelled = found.select(bank, queries)
    return labelled, f"kNN while the run trains: {labelled.words}"


def _rank(features: Tensor, images: ImageSet) -> dict[str, float]:
    """The effective rank, and of how many images and contents: their number bounds it."""
    found = {"effective_rank": effective_rank(features), "rank_images": float(len(features))}
    if images.checksums is None:
        return found
    return found | {"rank_contents": float(len(np.unique(images.checksums, axis=0)))}


@torch.no_grad()
def _projections(
    method: Method, batches: ViewBatches, indices: NDArray[np.int64]
) -> tuple[Tensor, Tensor]:
    """The heads' unit vectors for two views of each image, (images, dim), in evaluation mode."""
    device = next(method.parameters()).device
    method.network.eval()  # in training mode this would move the run's batch-norm statistics
    # Always those of the first epoch, so that the curve shows the network and not other views.
    views = batches.of(indices, epoch=0)[:2]
    first, second = (
        functional.normalize(method.network(view.to(device)).float(), dim=1).cpu() for view in views
    )
    method.network.train()
    return first, second


LEAST_STEPS: Final = 500
"""Before, a loss at chance proves nothing: warm-up and the filling of a queue take their time."""
COLLAPSED_RANK: Final = 2.0
COLLAPSED_STD: Final = 0.5
"""Of the spread of projections at the start of a run, below which they have collapsed."""
COLLAPSED_DIRECTIONS: Final = 2.0
"""Of projections, below which they have where their spread is below ``FALLEN_STD`` of the start."""
FALLEN_STD: Final = 0.7
_FEW_CONTENTS: Final = 0.5  # of the images; below, most of them are copies
AT_CHANCE: Final = 0.02  # of the chance level
SHORTCUT_ACCURACY: Final = 0.98
NO_ROOM: Final = 0.98
"""kNN accuracy before training above which hardly anything is left to gain."""
_CLEARLY_BETTER: Final = 0.02  # of kNN accuracy, on the few hundred images of a measurement

MUCH_WAITING: Final = 0.3  # of a step
MOSTLY_VIEWS: Final = 0.5
LATE: Final = 0.2  # of the usual work of a step, by which a process is behind the others
_LATEST_LINES: Final = 5  # of the metrics, whose times are judged


def find_symptoms(
    metrics: Sequence[Mapping[str, Any]], *, dictionary_size: int | None
) -> list[Symptom]:
    """Reads the metrics so far, oldest first.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        dictionary_size: keys that a query meets once queue or bank is full; None for a batch.
    """
    if not metrics:
        return []
    last = metrics[-1]
    health = [line for line in metrics if "effective_rank" in line]
    found = []
    if health and _are_copies(health[-1]):
        found.append(
            Symptom(
                "copies",
                True,
                f"Of {health[-1]['rank_images']:,.0f} images that were looked at, only "
                f"{health[-1]['rank_contents']:,.0f} differ: the others are copies, which the "
                "training task asks to tell from each other. Remove them, or give other images.",
            )
        )
    keys = last.get("candidates", 1) - 1
    if dictionary_size is not None and keys < dictionary_size:
        found.append(
            Symptom(
                "dictionary_filling",
                False,
                f"The dictionary is filling ({keys:,.0f} of {dictionary_size:,} "
                "keys): loss and chance level rise together until it is full. This is normal.",
            )
        )
    found += _collapsed_projections(metrics)
    found += collapsed_prototypes(metrics)
    if health and not _are_copies(health[-1]) and _is_collapsed(health[-1]):
        found.append(
            Symptom(
                "collapse",
                True,
                f"The features have collapsed: their effective rank is "
                f"{health[-1]['effective_rank']:.1f}, so all images look alike to the encoder. Try "
                "a lower --optimizer.learning-rate or a longer --schedule.warmup-epochs.",
            )
        )
    elif last["epoch"] >= 1 and last["step"] >= LEAST_STEPS and _is_at_chance(last):
        found.append(
            Symptom(
                "at_chance",
                True,
                f"The loss ({last['loss']:.2f}) is still at chance ({last['chance_loss']:.2f}): "
                "the encoder cannot tell one image from another. Try another "
                "--optimizer.learning-rate, or weaker views (--views.strength 0.5).",
            )
        )
    found += _lost_start(health)
    task = task_accuracy(last)
    if task is not None and _is_shortcut(last, health):
        found.append(
            Symptom(
                "shortcut",
                True,
                f"The {task.name.replace('_', ' ')} is {last[task.name]:.0%}, yet kNN accuracy has "
                "not risen: the encoder may match views by a shortcut, such as colour or batch "
                "statistics. Try stronger views (--views.strength 2, or smaller crops).",
            )
        )
    return found


def _collapsed_projections(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Of a method without negatives: whether the projections of a batch have become alike.

    They do so within some ten steps, long before the features. The spread is compared with that of
    the start: without batch norm a network begins with projections that are hardly spread. A
    network that learns keeps 0.8 of it and more; what is on a line keeps some, with norms.
    """
    lines = [line for line in metrics if "projection_std" in line]
    if len(lines) < 2:
        return []
    start, last = lines[0]["projection_std"], lines[-1]
    std, rank = last["projection_std"], last["projection_rank"]
    on_a_line = rank < COLLAPSED_DIRECTIONS and std < FALLEN_STD * start
    if std >= COLLAPSED_STD * start and not on_a_line:
        return []
    return [
        Symptom(
            "projections_collapsed",
            True,
            f"The projections have collapsed: their spread is {std:.2f} (1 where directions are "
            f"even, {start:.2f} at the start) in about {rank:.1f} directions. "
            "What keeps images apart is missing or too weak: a predictor "
            "(--head.predictor-layers 2), the stop-gradient, a variance term; or the learning rate "
            "is too high.",
        )
    ]


def _is_collapsed(line: Mapping[str, Any]) -> bool:
    """Of few images the rank is low anyway: without their mean they span one direction less."""
    most = line.get("rank_images", math.inf) - 1
    return bool(line["effective_rank"] < min(COLLAPSED_RANK, most / 2))


def _are_copies(line: Mapping[str, Any]) -> bool:
    """Whether so many images are copies that the rest says little about the encoder."""
    contents = line.get("rank_contents", line.get("rank_images", 1.0))
    return bool(contents <= _FEW_CONTENTS * line.get("rank_images", 1.0))


def _is_at_chance(last: Mapping[str, Any]) -> bool:
    """Whether the loss is near that of equal scores; where that is 0, nothing can be concluded."""
    chance = last.get("chance_loss", 0.0)
    return bool(chance > 0 and last["loss"] > (1 - AT_CHANCE) * chance)


def _lost_start(health: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Of a run from weights: whether few nearest neighbours are as by these."""
    kept = next((x["start_neighbours"] for x in reversed(health) if "start_neighbours" in x), 1.0)
    scores = [line["knn"] for line in health if "knn" in line]
    better = bool(scores) and scores[-1] >= scores[0] + _CLEARLY_BETTER  # as labels tell
    if kept >= NEIGHBOURS_KEPT or better:
        return []
    return [
        Symptom(
            "start_lost",
            True,
            f"Of the nearest neighbours of an image by the start weights only {kept:.0%} are "
            "left: what they knew may be lost. Try a tenth of --optimizer.learning-rate, or "
            "weaker views, and compare with the start weights by `diptych evaluate`.",
        )
    ]


def _is_shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> bool:
    """Whether views are matched while kNN accuracy, which could have risen, has not."""
    scores = [line["knn"] for line in health if "knn" in line]
    task = task_accuracy(last)
    # Where guessing is right so often, a high accuracy needs no shortcut.
    if task not in (PRETEXT_ACCURACY, RETRIEVAL_ACCURACY) or chance_of(last, task.name) >= 1 / 64:
        return False
    if last[task.name] < SHORTCUT_ACCURACY or len(scores) < 2:
        return False
    return bool(scores[-1] <= scores[0] < NO_ROOM)


def time_symptoms(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Symptoms in the times of the last steps: a slow process, or much waiting.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
    """
    times = times_of(metrics, last_lines=_LATEST_LINES)
    if times is None or len(metrics) < 2:  # the first line is of a step that compiles
        return []
    found = [_late(times), _waits_for_data(times.own), _makes_views(times.own)]
    # Waiting for a late process counts as communication too.
    if found[0] is None:
        found.append(_talks(times.own))
    return [symptom for symptom in found if symptom is not None]


def _late(times: Times) -> Symptom | None:
    if times.slowest is None or times.usual is None:
        return None
    own, usual = _work(times.slowest), _work(times.usual)
    if own - usual <= LATE * usual:
        return None
    behind = {part: times.slowest.get(part, 0.0) - times.usual.get(part, 0.0) for part in PARTS}
    worst = max((part for part in PARTS if part not in NOT_WORK), key=lambda part: behind[part])
    return Symptom(
        "late_process",
        True,
        f"The other processes wait for process {times.slowest_process}: its own work takes "
        f"{own:,.3g} ms a step, theirs {usual:,.3g} ms, and most of the difference is in "
        f"{named(worst)}. See what else runs on its machine, and that all have the same device and "
        "as many threads.",
    )


def _waits_for_data(own: Milliseconds) -> Symptom | None:
    share = own.get("data_wait", 0.0) / _step_time(own)
    if share <= MUCH_WAITING:
        return None
    return Symptom(
        "data_wait",
        True,
        f"{share:.0%} of a step is spent waiting for images to be read and decoded. Try more "
        "--training.threads, files of about the size that views need, or --images.cache file.",
    )


def _makes_views(own: Milliseconds) -> Symptom | None:
    share = own.get("views", 0.0) / _step_time(own)
    if share <= MOSTLY_VIEWS:
        return None
    return Symptom(
        "mostly_views",
        False,
        f"{share:.0%} of a step is spent making views, more than in the network. A larger network "
        "costs little more time here; more --training.threads or fewer operations in "
        "--views.policy save some.",
    )


def _talks(own: Milliseconds) -> Symptom | None:
    share = own.get("communication", 0.0) / _step_time(own)
    if share <= MUCH_WAITING:
        return None
    return Symptom(
        "communication",
        False,
        f"{share:.0%} of a step is spent in communication, and no process is late. A larger "
        "--training.batch-size or fewer processes make it less.",
    )


def _work(milliseconds: Milliseconds) -> float:
    return sum(value for part, value in milliseconds.items() if part not in NOT_WORK)


def _step_time(milliseconds: Milliseconds) -> float:
    """All but what is done between steps."""
    return max(_work(milliseconds) + milliseconds.get("communication", 0.0), 1e-9)
