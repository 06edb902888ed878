"""What methods without a dictionary of negatives share: views in, vectors out, a loss of these.

A Siamese method encodes all views of a batch and makes those of one image alike; how it keeps the
images from becoming all alike is what tells the methods apart (SimSiam, section 3). Each is a
subclass with one function, ``compare``.
"""

from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import replace
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

from diptych.config.run import RunConfig
from diptych.images.collection import Collection
from diptych.methods.dictionaries import InBatch
from diptych.methods.grad_cache import Views
from diptych.methods.logits import (
    logit_rounding,
    negatives_logsumexp,
    positive_logits,
    pretext_accuracy,
)
from diptych.methods.method import HALF_TYPES, Method, StepOutput, autocast_to, scalar
from diptych.methods.networks import (
    Networks,
    at_least_fp32,
    build_networks,
    encode_by_size,
    encode_views,
    encode_whole,
    features_and_projections,
)
from diptych.models.momentum_encoder import MomentumEncoder
from diptych.runtime.distributed import gather_views
from diptych.views.batches import Batch


class Encoded(NamedTuple):
    """The encoded views of this process's share of a batch; of no particular length.

    Attributes:
        predictions: (views, images, dim), small views last; the projections where there is no
            predictor.
        projections: (views, images, dim), in front of the predictor.
        targets: (full-sized views, images, dim), what the views of an image should be like: of the
            momentum encoder, without gradient; where there is none the network's own projections,
            with their gradient.
        features: (views, images, features), in front of the head; None where there is no anchor.
    """

    predictions: Tensor
    projections: Tensor
    targets: Tensor
    features: Tensor | None = None


class Siamese(Method):
    """Encodes all views of a batch, in chunks where that is asked for.

    Attributes:
        predictor: behind the head, on the side that learns; None for none.
        momentum_encoder: gives the targets; None where the network itself does.
        anchor: holds the features near those of the start, or None.
        autocast_type: encode under autocast to this type, if any; the loss stays in fp32.
        chunk_size: images that are encoded at once, by cached gradients; None for the whole batch.
    """

    def __init__(self, networks: Networks, config: RunConfig) -> None:
        super().__init__(networks.encoder, networks.head)
        self.predictor = networks.predictor
        self.momentum_encoder = (
            MomentumEncoder(self.network) if config.method.key_encoder.kind == "momentum" else None
        )
        self.anchor = networks.anchor
        self.views, self._dim = config.method.views, networks.dim
        self.autocast_type = HALF_TYPES[config.training.precision]
        self.chunk_size = config.training.chunk_size

    @classmethod
    def build(
        cls,
        config: RunConfig,
        collection: Collection,
        executor: Executor,
        *,
        encoder: torch.nn.Module | None = None,
    ) -> Self:
        """With random weights, or from an encoder that is given; an entry of ``METHODS``."""
        return cls(build_networks(config, encoder=encoder), config)

    def compare(self, encoded: Encoded, batch: Batch) -> StepOutput:
        """The loss of the encoded views, its metrics, and what ``after_step`` needs.

        Called without autocast. The loss is a mean over this process's images, or over those of all
        processes, then the same on each (``of_all_processes``).
        """
        raise NotImplementedError

    @property
    def networks(self) -> list[torch.nn.Module]:
        """The network, and that of the momentum encoder."""
        slow = [] if self.momentum_encoder is None else [self.momentum_encoder.network]
        return [self.network, *slow]

    def forward(self, batch: Batch) -> StepOutput:
        """Encodes the views of a batch, and compares them."""
        encoded = self.encode(batch.views)
        with torch.autocast(batch.views[0].device.type, enabled=False):
            output = self.compare(encoded, batch)
            found = {**output.metrics, **self.view_metrics(encoded, batch)}
            output = replace(output, metrics=found)
        if self.anchor is None or encoded.features is None:
            return output
        return self.anchor.added_to(output, encoded.features, batch.views)

    def encode(self, views: Views) -> Encoded:
        """All views through network and predictor, those of full size through the targets' too."""
        vectors = encode_views(self._encode, views, self, chunk_size=self.chunk_size)
        features = None
        if self.anchor is not None:
            kept = vectors.shape[-1] - self.anchor.features
            vectors, features = vectors[..., :kept], vectors[..., kept:]
        projections, predictions = vectors[..., : self._dim], vectors[..., -self._dim :]
        targets = projections[: self.views]
        if self.momentum_encoder is not None:
            targets = encode_views(
                self._encode_targets,
                views[: self.views],
                self,
                chunk_size=self.chunk_size,
                learns=False,
            )
        return Encoded(predictions, projections, targets, features)

    @torch.no_grad()
    def view_metrics(self, encoded: Encoded, batch: Batch) -> dict[str, Tensor]:
        """Whether images can be told apart, which no loss of these methods says by itself.

        ``retrieval_accuracy`` is the share of images whose second view has the target nearest to
        the prediction of the first, among the images of the batch. ``projection_std`` and
        ``projection_rank``: see ``spread_of``.
        """
        query = functional.normalize(encoded.predictions[0], dim=1)
        target = functional.normalize(encoded.targets[1], dim=1)
        accuracy, candidates = retrieval(query, target, batch)
        std, rank = spread_of(encoded.projections[0])
        return {
            "retrieval_accuracy": accuracy,
            "chance_retrieval_accuracy": scalar(1.0 / candidates),
            "candidates": scalar(candidates),
            "projection_std": std,
            "projection_rank": rank,
        }

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """Moves the momentum encoder towards the network; it keeps ``momentum`` of itself."""
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.network, momentum)

    def _encode(self, views: Views) -> Tensor:
        """(views, images, one after the other: projection, prediction, features if needed)."""
        return encode_by_size(self._one_size, views, self)

    def _one_size(self, views: Views) -> Tensor:
        # As one tensor they take the same way through chunks.
        with autocast_to(self.autocast_type, views[0]):
            features, projections = features_and_projections(
                self.network, torch.cat(views), with_features=self.anchor is not None
            )
            found = [projections]
            if self.predictor is not None:
                found.append(self.predictor(projections))
        found += [] if features is None else [features]
        return torch.cat([at_least_fp32(one) for one in found], dim=1)

    @torch.no_grad()
    def _encode_targets(self, views: Views) -> Tensor:
        assert self.momentum_encoder is not None
        return encode_whole(self.momentum_encoder, views, self.autocast_type)


def other_views(views: int, targets: int) -> Iterator[tuple[int, int]]:
    """All pairs of a view and the target of another view of the same image.

    >>> list(other_views(3, 2))  # two of full size, and a small one
    [(0, 1), (1, 0), (2, 0), (2, 1)]
    """
    return ((view, target) for view in range(views) for target in range(targets) if view != target)


def view_pairs(views: int, targets: int) -> list[tuple[int, int]]:
    """The same pairs, each once: for losses in which both views learn.

    >>> view_pairs(3, 2)
    [(0, 1), (0, 2), (1, 2)]
    """
    return [(one, other) for one in range(targets) for other in range(one + 1, views)]


def of_all_processes(vectors: Tensor) -> Tensor:
    """(views, images of all processes, dim), with gradient; for losses of a batch's statistics."""
    views, images, dim = vectors.shape
    return gather_views(vectors.flatten(0, 1), images).reshape(views, -1, dim)


def retrieval(queries: Tensor, targets: Tensor, batch: Batch) -> tuple[Tensor, int]:
    """The share of queries that are nearest to the target of their own image, of how many.

    Other images of the same group do not count. A tie is no success.

    Args:
        queries: (images, dim), of length one.
        targets: (images, dim), of length one.
        batch: this process's share; targets are those of all processes.

    Returns:
        The share, and among how many targets each query chooses.
    """
    compared = InBatch(both_views=False).compare(queries, targets, batch)
    largest = negatives_logsumexp(
        queries, compared.negatives, temperature=1.0, excluded=compared.excluded
    ).largest
    positive = positive_logits(queries, targets, temperature=1.0)
    rounding = logit_rounding(queries, targets, compared.negatives, temperature=1.0)
    return pretext_accuracy(positive, largest, rounding), compared.candidates


def spread_of(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """How the directions of vectors are spread: 1 and many, or near 0, or 1, where all are alike.

    Args:
        vectors: (images, dim).

    Returns:
        The standard deviation of a coordinate at length one over images, times sqrt(dim): a mean
        over coordinates, 1 where directions are even and 0 where all are one (SimSiam, section
        4.1); and the participation ratio of their covariance, (sum of eigenvalues)^2 / sum of their
        squares: in about how many directions they differ.
    """
    unit = functional.normalize(vectors, dim=1)
    centred = unit - unit.mean(dim=0)
    std = centred.square().mean(dim=0).sqrt().mean() * unit.shape[1] ** 0.5
    # Of the smaller one of both products, which have the same eigenvalues.
    wide = centred.shape[1] > centred.shape[0]
    product = centred @ centred.T if wide else centred.T @ centred
    squares = product.square().sum()
    total = centred.square().sum()
    return std, total.square() / squares.clamp(min=torch.finfo(squares.dtype).tiny)
