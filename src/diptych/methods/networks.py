"""The networks of a method: how they are built, and how the views of a batch pass them."""

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.config.consistency import norm_of_batch, require_consistent
from diptych.config.run import RunConfig
from diptych.methods.anchor import Anchor
from diptych.methods.grad_cache import Views, encode_in_chunks
from diptych.methods.method import HALF_TYPES, autocast_to
from diptych.models.encoders import build_encoder, count_features, require_side
from diptych.models.heads import build_head, build_predictor, output_dim
from diptych.models.norms import frozen_statistics, use_norm
from diptych.models.parts import batch_norms, hold_statistics


class Networks(NamedTuple):
    """What images pass, with the norms of a run.

    Attributes:
        encoder: from (batch, channels, side, side) to (batch, features).
        head: from features to (batch, dim), the projections.
        predictor: from projections to (batch, dim), or None.
        anchor: holds the features near those of the start, or None.
        dim: length of a projection.
    """

    encoder: nn.Module
    head: nn.Module
    predictor: nn.Module | None
    anchor: Anchor | None
    dim: int


def build_networks(config: RunConfig, *, encoder: nn.Module | None = None) -> Networks:
    """Builds the networks that a config names, with random weights that follow from its seed.

    Args:
        config: of the run.
        encoder: in the place of the one that the config names; from (batch, channels, side, side)
            to (batch, features).

    Raises:
        ConfigError: settings do not go together, or there is no such encoder.
    """
    require_consistent(config)
    channels, side = config.images.channels, config.views.side_pixels
    norm = norm_of_batch(config)
    smaller = config.views.smaller_sides
    if encoder is None:
        encoder = build_encoder(
            config.encoder,
            channels=channels,
            side_pixels=side,
            seed=config.seed,
            several_sides=bool(smaller),
        )
    for setting, smaller_side in smaller.items():
        require_side(encoder, channels=channels, side_pixels=smaller_side, setting=setting)
    features = count_features(encoder, channels=channels, side_pixels=side)
    dim = output_dim(config.head, features)
    # A seed for each part: another encoder leaves the weights of head and predictor as they are.
    head = build_head(config.head, features=features, seed=config.seed + 1)
    predictor = build_predictor(config.head, dim=dim, seed=config.seed + 2)
    encoder, anchor = use_norm(encoder, norm), None
    if config.encoder.batch_statistics == "start":
        hold_statistics(batch_norms(encoder))
    if config.method.anchor.weight > 0:
        # A copy of what the run begins with: the state of a run that goes on comes later.
        anchor = Anchor(
            encoder,
            config.method.anchor,
            features=features,
            autocast_type=HALF_TYPES[config.training.precision],
            chunk_size=config.training.chunk_size,
        )
    return Networks(
        encoder,
        use_norm(head, norm),
        None if predictor is None else use_norm(predictor, norm),
        anchor,
        dim,
    )


def encode_views(
    encode: Callable[[Views], Tensor],
    views: Views,
    network: nn.Module,
    *,
    chunk_size: int | None,
    learns: bool = True,
) -> Tensor:
    """The whole batch at once, or in chunks where that is asked for; the same gradients.

    Args:
        encode: views of some images to (views, images, dim).
        views: of all images of this process.
        network: that ``encode`` uses.
        chunk_size: images that are encoded at once; None for all.
        learns: whether gradients go back to the network.
    """
    if chunk_size is None or chunk_size >= len(views[0]):
        return encode(views)
    return encode_in_chunks(encode, views, network, chunk_size=chunk_size, learns=learns)


def encode_by_size(encode: Callable[[Views], Tensor], views: Views, network: nn.Module) -> Tensor:
    """(views, images, dim), in one pass for each size; its views share batch statistics.

    Args:
        encode: views of one size to (views x images, dim).
        views: all that have one size stand together, those of full size first.
        network: that ``encode`` uses.
    """
    # groupby joins neighbours only: all views of one size must stand together.
    full, *smaller = [tuple(same) for _, same in groupby(views, key=lambda one: one.shape[-1])]
    vectors = encode(full)
    if smaller:
        # Images are evaluated at full size, and running statistics are for that.
        with frozen_statistics(network):
            vectors = torch.cat([vectors, *(encode(same) for same in smaller)])
    return vectors.reshape(len(views), -1, vectors.shape[1])


def encode_whole(network: nn.Module, views: Views, half: torch.dtype | None) -> Tensor:
    """(views, images, dim) of views of one size, in one pass under autocast, in fp32 at least."""
    with autocast_to(half, views[0]):
        vectors = network(torch.cat(views))
    return at_least_fp32(vectors).reshape(len(views), -1, vectors.shape[1])


def features_and_projections(
    network: nn.Sequential, images: Tensor, *, with_features: bool
) -> tuple[Tensor | None, Tensor]:
    """What encoder and head give; the features only where an anchor asks for them.

    Without them the network is called as a whole, which may be compiled.
    """
    if not with_features:
        return None, network(images)
    features = network.get_submodule("encoder")(images)
    return features, network.get_submodule("head")(features)


def at_least_fp32(vectors: Tensor) -> Tensor:
    """Losses are computed in fp32: half precision would round close numbers to the same one."""
    return vectors.float() if vectors.dtype.itemsize < 4 else vectors
