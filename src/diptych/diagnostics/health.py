"""Health of an encoder while it trains: geometry, and kNN where labels exist."""

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.data import ViewsConfig
from diptych.diagnostics.label_free import neighbour_agreement
from diptych.diagnostics.neighbourhoods import Pixels, stability
from diptych.diagnostics.symptoms import find_symptoms
from diptych.diagnostics.time_symptoms import time_symptoms
from diptych.errors import ImagesError
from diptych.evaluation.features import encode, require_finite
from diptych.evaluation.geometry import alignment, effective_rank, uniformity
from diptych.evaluation.knn import accuracy, knn_predict
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.images.collection import Collection, ImageSet, spread_indices
from diptych.logging.progress import Symptom
from diptych.methods.method import Method
from diptych.models.weights import load_encoder, trained_on
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
    windows: int = 1,
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
        windows: ``images.windows``, whose views the run makes; of a photograph the middle one is
            measured.
    """
    labelled, words = _labelled(collection, group_by, labels_used, image_count)
    chosen = spread_indices(len(collection.train), image_count)
    return Health(
        sample=collection.train.select(chosen),
        sample_indices=chosen[:: max(1, len(chosen) // _VIEW_PAIRS)] * windows**2 + windows**2 // 2,
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
