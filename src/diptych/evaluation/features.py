"""Features of images: from a frozen encoder, from each of its layers, and the pixels themselves."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.config.data import ViewsConfig
from diptych.errors import FeaturesError, ImagesError
from diptych.images.collection import ImageSet
from diptych.images.inventory import Skipped
from diptych.images.listing import Progress, ignore_progress
from diptych.images.open import from_array, open_images
from diptych.images.sources.handed_over import path_of
from diptych.models.heads import layers_of_head
from diptych.models.parts import in_evaluation
from diptych.models.weights import (
    PretrainedEncoder,
    load_encoder,
    load_untrained,
    load_with_head,
    untrained_head,
)
from diptych.runs.folder import RunFolder
from diptych.runtime.devices import BATCH_SIZE, Runtime
from diptych.views.batches import evaluation_views
from diptych.views.cpu import EvaluationCrops

PIXEL_SIDE: Final = 32
"""Raw pixels are compared at this side at most: more would measure position, not content."""


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
    batch_size: int = BATCH_SIZE,
) -> Tensor:
    """Features before the head of every image, in the order of the images: of their names.

    They are extracted at every call, on the encoder's device: nothing is kept on disk.

    Args:
        encoder: from ``load_encoder``.
        images: anything that ``pretrain`` takes, or a uint8 array (images, height, width[,
            channels]). Of a path with held-out images, those to learn from are used.
        crops: ``five`` takes the mean of the features of five views instead of the centre's.
        threads: CPU threads; all cores when not given.
        batch_size: images that the encoder sees at once; changes features by rounding only.

    Returns:
        (images, features), float32, on the CPU.

    Raises:
        ImagesError: one of the images cannot be read, so that the rows would not be those of the
            images; ``extract_named_features`` leaves it out and says so.
        FeaturesError: features are not finite numbers.
    """
    runtime = Runtime(threads=threads, batch_size=batch_size)
    with _opened(encoder, images, runtime) as found:
        if found.skipped:
            first = found.skipped[0]
            raise ImagesError(
                f"{len(found.skipped):,} of {len(found) + len(found.skipped):,} images cannot be "
                f"read (such as {first.name}: {first.reason}), and rows would no longer be those "
                "of the images. Leave them out, or use extract_named_features, which gives the "
                "name of each row."
            )
        return _encode_all(encoder, found, crops, runtime)


def extract_named_features(
    encoder: PretrainedEncoder,
    images: str | Path | NDArray[np.uint8] | Any,
    *,
    crops: EvaluationCrops = "center",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
) -> NamedFeatures:
    """Features before the head of every image that can be read, with their names.

    Arguments are those of ``extract_features``.

    Raises:
        ImagesError: none of the images can be read.
        FeaturesError: features are not finite numbers.
    """
    runtime = Runtime(threads=threads, batch_size=batch_size)
    with _opened(encoder, images, runtime) as found:
        features = _encode_all(encoder, found, crops, runtime)
        return NamedFeatures(features, found.names, found.skipped)


@contextmanager
def _opened(
    encoder: PretrainedEncoder, images: str | Path | NDArray[np.uint8] | Any, runtime: Runtime
) -> Iterator[ImageSet]:
    # A run's limit is of its own images; here every image is to have a row.
    config = replace(encoder.config.images, limit=None)
    with runtime:
        if isinstance(images, np.ndarray):
            yield from_array(images, None, config)
        else:
            yield open_images(config.at(path_of(images)), runtime.executor).train


def _encode_all(
    encoder: PretrainedEncoder, images: ImageSet, crops: EvaluationCrops, runtime: Runtime
) -> Tensor:
    size, views = runtime.batch_size, encoder.config.views
    return encode(encoder, images, views, runtime.executor, crops=crops, batch_size=size)


def encode(
    network: nn.Module,
    images: ImageSet,
    views: ViewsConfig,
    executor: Executor,
    *,
    crops: EvaluationCrops = "center",
    of: str = "the encoder",
    batch_size: int = BATCH_SIZE,
    on_images: Progress = ignore_progress,
) -> Tensor:
    """Runs a network, on its device, over the images as they are evaluated, in evaluation mode.

    Batch norms use their running statistics, so an image's features do not depend on its batch,
    but for rounding.

    Args:
        network: from (batch, channels, side, side) to (batch, dim).
        images: to show it.
        views: give the side and the normalisation.
        executor: its threads make views.
        crops: features of several views are averaged.
        of: names the network in an error.
        batch_size: images that it sees at once.
        on_images: told how many images are done.

    Returns:
        (images, dim), float32, on the CPU.

    Raises:
        FeaturesError: features are not finite numbers.
    """
    device, parts = next(network.parameters()).device, list[Tensor]()
    for indices in in_batches(len(images), batch_size):
        seen = evaluation_views(images, indices, crops, views, executor)
        features = [_in_evaluation(network, view.to(device)).float() for view in seen]
        parts.append(torch.stack(features).mean(dim=0).cpu())
        on_images(int(indices[-1]) + 1, len(images))
    return require_finite(torch.cat(parts), of=of, names=images.names)


def pixel_features(images: ImageSet, views: ViewsConfig, executor: Executor) -> Tensor:
    """The pixels themselves as features, at the encoder's side or ``PIXEL_SIDE``."""
    small = replace(views, side_pixels=min(views.side_pixels, PIXEL_SIDE))
    parts = [
        evaluation_views(images, indices, "center", small, executor)[0].flatten(1)
        for indices in in_batches(len(images), BATCH_SIZE)
    ]
    return torch.cat(parts)


def in_batches(count: int, size: int) -> Iterator[NDArray[np.int64]]:
    """The numbers below ``count`` in consecutive batches, of which the last may be smaller."""
    for start in range(0, count, size):
        yield np.arange(start, min(start + size, count))


def _in_evaluation(network: nn.Module, batch: Tensor) -> Tensor:
    # Health is measured amid training, so the mode is put back.
    with in_evaluation(network), torch.no_grad():
        features: Tensor = network(batch)
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


# --- every layer --------------------------------------------------------------------------------

FEATURES: Final = "h"
"""The name of what the encoder gives."""

PROJECTION: Final = "g(h)"
"""The name of what the head gives; not of unit length."""


class LayeredNetwork(nn.Module):
    """A network that gives the features of each of its layers, in one pass.

    The head is made to answer the pretext task, and may throw away what that task does not need
    (SimCLR, section 4.2); its layers show what.

    Attributes:
        parts: modules that come one after the other.
        names: of what each part gives, ``h``, ``hidden 1``, ..., ``g(h)``.
    """

    def __init__(self, parts: Sequence[nn.Module], names: Sequence[str]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.names = tuple(names)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised images (batch, channels, side, side) to (batch, dim) of each layer."""
        found, features = [], images
        for part in self.parts:
            features = part(features)
            found.append(features)
        return tuple(found)

    @torch.no_grad()
    def in_evaluation(self, images: Tensor) -> dict[str, Tensor]:
        """Features by layer, float32, on the CPU, in evaluation mode."""
        device = next(self.parameters()).device
        with in_evaluation(self):
            found = self(images.to(device))
        return {
            name: require_finite(one.float().cpu(), of=f"layer {name}")
            for name, one in zip(self.names, found, strict=True)
        }


def layered_network(encoder: nn.Module, head: nn.Module | None) -> LayeredNetwork:
    """An encoder and the head behind it, if there is one, with the features of every layer.

    Args:
        encoder: from (batch, channels, side, side) to (batch, features).
        head: of ``build_head``.
    """
    parts = [] if head is None else layers_of_head(head)
    hidden = [f"hidden {number}" for number in range(1, len(parts))]
    names = [FEATURES, *hidden, *([PROJECTION] if parts else [])]
    return LayeredNetwork([encoder, *parts], names)


def trained_layers(folder: RunFolder, encoder: nn.Module | None = None) -> LayeredNetwork:
    """Those of a run after its last step; methods with other heads have only h.

    Args:
        folder: of the run.
        encoder: as in ``load_encoder``.
    """
    kept = load_encoder(folder, encoder=encoder)
    if not kept.config.has_projection_head:
        return layered_network(kept.network, None)
    trained, head = load_with_head(folder, encoder=encoder)
    return layered_network(trained.network, head)  # which was trained on features as they are


def untrained_layers(folder: RunFolder, encoder: nn.Module | None = None) -> LayeredNetwork:
    """Those of a run as it began."""
    config = load_encoder(folder, encoder=encoder).config
    untrained = load_untrained(folder, config, encoder)
    head = untrained_head(config, untrained) if config.has_projection_head else None
    return layered_network(untrained, head)
