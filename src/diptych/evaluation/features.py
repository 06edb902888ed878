"""Features of images from a frozen encoder, and the pixel features they are compared with."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.sections import ViewsConfig
from diptych.errors import FeaturesError, ImagesError
from diptych.images.collection import ImageSet, Skipped
from diptych.images.open import from_array, open_images
from diptych.images.sources.handed_over import path_of
from diptych.models.weights import PretrainedEncoder
from diptych.runtime.device import use_threads
from diptych.views.batches import evaluation_views
from diptych.views.cpu import EvaluationCrops

PIXEL_SIDE = 32
"""Raw pixels are compared at this side at most: more would measure position, not content."""

_BATCH = 256  # images


class NamedFeatures(NamedTuple):
    """Features with the images that they are of.

    Attributes:
        features: (images, dim), float32, on the CPU.
        names: of the images, row by row; of an array their numbers.
        skipped: the images that could not be read, which have no row, and why.
    """

    features: Tensor
    names: Sequence[str]
    skipped: tuple[Skipped, ...]


def extract_features(
    encoder: PretrainedEncoder,
    images: str | Path | NDArray[np.uint8] | Any,
    *,
    crops: EvaluationCrops = "center",
    threads: int | None = None,
) -> Tensor:
    """Features before the head of every image, in the order of the images: of their names.

    Args:
        encoder: from ``load_encoder``.
        images: anything that ``pretrain`` takes, or a uint8 array (images, height, width[,
            channels]). Of a path with held-out images, those to learn from are used.
        crops: ``five`` takes the mean of the features of five views instead of the centre's.
        threads: CPU threads; all cores when not given.

    Returns:
        (images, features), float32, on the CPU.

    Raises:
        ImagesError: one of the images cannot be read, so that the rows would not be those of the
            images; ``extract_named_features`` leaves it out and says so.
        FeaturesError: features are not finite numbers.
    """
    with _opened(encoder, images, threads) as (found, executor):
        if found.skipped:
            first = found.skipped[0]
            raise ImagesError(
                f"{len(found.skipped):,} of {len(found) + len(found.skipped):,} images cannot be "
                f"read (such as {first.name}: {first.reason}), and rows would no longer be those "
                "of the images. Leave them out, or use extract_named_features, which gives the "
                "name of each row."
            )
        return encode(encoder, found, encoder.config.views, executor, crops=crops)


def extract_named_features(
    encoder: PretrainedEncoder,
    images: str | Path | NDArray[np.uint8] | Any,
    *,
    crops: EvaluationCrops = "center",
    threads: int | None = None,
) -> NamedFeatures:
    """Features before the head of every image that can be read, with their names.

    Arguments are those of ``extract_features``.

    Raises:
        ImagesError: none of the images can be read.
        FeaturesError: features are not finite numbers.
    """
    with _opened(encoder, images, threads) as (found, executor):
        features = encode(encoder, found, encoder.config.views, executor, crops=crops)
        return NamedFeatures(features, found.names, found.skipped)


@contextmanager
def _opened(
    encoder: PretrainedEncoder, images: str | Path | NDArray[np.uint8] | Any, threads: int | None
) -> Iterator[tuple[ImageSet, Executor]]:
    config = replace(encoder.config.images, limit=None)
    with ThreadPoolExecutor(use_threads(threads)) as executor:
        if isinstance(images, np.ndarray):
            yield from_array(images, None, config), executor
        else:
            yield open_images(replace(config, path=path_of(images)), executor).train, executor


def encode(
    network: nn.Module,
    images: ImageSet,
    views: ViewsConfig,
    executor: Executor,
    *,
    crops: EvaluationCrops = "center",
    of: str = "the encoder",
) -> Tensor:
    """Runs a network, on its device, over the images as they are evaluated, in evaluation mode.

    Batch norms use their running statistics, so an image's features do not depend on its batch.
    Features of several views are averaged. ``of`` names the network in an error.

    Raises:
        FeaturesError: features are not finite numbers.
    """
    device = next(network.parameters()).device
    features = _over(
        images, views, executor, lambda batch: _in_evaluation(network, batch.to(device)), crops
    )
    return require_finite(features, of=of, names=images.names)


def pixel_features(images: ImageSet, views: ViewsConfig, executor: Executor) -> Tensor:
    """The pixels themselves as features, at the encoder's side or ``PIXEL_SIDE``."""
    small = replace(views, side_pixels=min(views.side_pixels, PIXEL_SIDE))
    return _over(images, small, executor, lambda batch: batch.flatten(1))


def _over(
    images: ImageSet,
    views: ViewsConfig,
    executor: Executor,
    work: Callable[[Tensor], Tensor],
    crops: EvaluationCrops = "center",
) -> Tensor:
    parts = []
    for indices in _chunks(len(images)):
        seen = evaluation_views(images, indices, crops, views, executor)
        parts.append(torch.stack([work(view).float() for view in seen]).mean(dim=0).cpu())
    return torch.cat(parts)


def _chunks(count: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, count, _BATCH):
        yield np.arange(start, min(start + _BATCH, count))


def _in_evaluation(network: nn.Module, batch: Tensor) -> Tensor:
    training = network.training
    network.eval()
    with torch.no_grad():
        features: Tensor = network(batch)
    network.train(training)
    return features


def require_finite(
    features: Tensor, *, of: str = "the encoder", names: Sequence[str] | None = None
) -> Tensor:
    """The features as they came, if all of them are finite numbers.

    Args:
        features: (images, dim).
        of: which encoder they are from, for the message.
        names: of the images, to name the first.

    Raises:
        FeaturesError: says of how many images they are not.
    """
    if bool(torch.isfinite(features.sum())):  # the sum of numbers is a number, but for overflow
        return features
    bad = ~torch.isfinite(features).flatten(1).all(dim=1)
    if not bool(bad.any()):
        return features
    first = "" if names is None else f" (such as {names[int(bad.nonzero()[0, 0])]})"
    raise FeaturesError(
        f"the features that {of} gives for {int(bad.sum()):,} of {len(bad):,} images{first} are "
        "not finite numbers"
    )
