"""Dense contrastive learning: places of the encoder's last map are compared as well (DenseCL).

DenseCL (Wang et al. 2020, 2011.09157) is MoCo v2 with a second head of 1x1 convolutions on the last
map. Each place of a query's map has the most similar place of its key's map as its positive, found
by the features of the encoder, and the keys of a second queue as negatives: of each earlier view
the mean over its places. So the encoder learns which places show the same, as a detector needs.
"""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.method import LossConfig, MethodConfig
from diptych.config.model import HeadConfig
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.methods.contrastive import Contrastive, Vectors, build_contrastive
from diptych.methods.dictionaries import Comparison, Dictionary, KeyQueue
from diptych.methods.grad_cache import Views
from diptych.methods.logits import Temperature
from diptych.methods.method import StepOutput, autocast_to, mean_output, scalar
from diptych.methods.objective import Loss, contrast
from diptych.models.momentum_encoder import MomentumEncoder
from diptych.models.parts import in_evaluation, is_of_last_part, last_map, output_and_map
from diptych.runtime.distributed import gather_views
from diptych.views.batches import Batch


def dense_positives(
    query_maps: Float[Tensor, "images channels places"],
    key_maps: Float[Tensor, "images channels places"],
    key_places: Float[Tensor, "images dim places"],
) -> Float[Tensor, "images dim places"]:
    """For each place of a query its positive key (DenseCL, section 3.3, eq. 3).

    Args:
        query_maps: of the encoder, of one view.
        key_maps: the same of the other view.
        key_places: projections of the places of the other view.

    Returns:
        For place i of a query the projection of the key's place j whose feature has the highest
        cosine with that of i.
    """
    with torch.no_grad():
        similar = functional.normalize(query_maps, dim=1).transpose(1, 2)
        # (images, query's places, key's places)
        nearest = (similar @ functional.normalize(key_maps, dim=1)).argmax(dim=2)
    return key_places.gather(2, nearest[:, None].expand(-1, key_places.shape[1], -1))


def contrast_places(
    queries: Float[Tensor, "images dim places"],
    positives: Float[Tensor, "images dim places"],
    negatives: Float[Tensor, "keys dim"],
    loss: Loss,
    settings: LossConfig,
    *,
    temperature: Temperature,
) -> StepOutput:
    """The loss of places (DenseCL, section 3.3, eq. 2): each is a query, all meet the same keys.

    Args:
        queries: projections, of length one for cosines.
        positives: the positive key of each.
        negatives: of the second queue.
        loss: of ``LOSSES``; in the paper InfoNCE.
        settings: of the loss.
        temperature: dot products are divided by it.
    """
    rows, keys = (one.transpose(1, 2).flatten(0, 1) for one in (queries, positives))
    comparison = Comparison(rows, keys, negatives, None, 1 + len(negatives))
    return contrast(comparison, loss, settings, temperature=temperature)


def join_losses(whole: StepOutput, places: StepOutput, weight: float) -> StepOutput:
    """(1 - weight) times the loss of whole images and weight times that of places (eq. 4).

    Metrics are those of whole images, and of places ``dense_loss`` and ``dense_accuracy``.
    """

    def joined(one: Tensor, other: Tensor) -> Tensor:
        return (1 - weight) * one + weight * other

    chances = whole.metrics["chance_loss"], places.metrics["chance_loss"]
    metrics = {
        **whole.metrics,
        "chance_loss": joined(*chances),
        "dense_loss": places.loss.detach(),
        "dense_accuracy": places.metrics["pretext_accuracy"],
        "chance_dense_accuracy": places.metrics["chance_pretext_accuracy"],
        "dense_weight": scalar(weight),
    }
    return replace(whole, loss=joined(whole.loss, places.loss), metrics=metrics)


class DenseContrastive(Contrastive):
    """Contrast of whole images and of the places of their maps.

    Beside each vector come the projections of its places, and the features of these, in one row:
    so they take the same way through chunks and shuffling.

    Attributes:
        dense_head: maps (batch, channels, side, side) to (batch, dim, side, side).
        dense_momentum: its slowly moving copy, for the keys.
        dense_queue: keys of places.
        layer: of the encoder, that gives the map.
        cells: in which a map is averaged, along height and width.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        dictionary: Dictionary,
        config: MethodConfig,
        *,
        dim: int,
        dense_head: nn.Module,
        dense_dim: int,
        layer: str,
        cells: tuple[int, int],
        **options: Any,
    ) -> None:
        super().__init__(encoder, head, dictionary, config, **options)
        self.dense_head, self.dense_momentum = dense_head, MomentumEncoder(dense_head)
        self.dense_queue = KeyQueue(config.dictionary.queue.size, dense_dim)
        self.layer, self.cells = layer, cells
        self._dim, self._dense_dim = dim, dense_dim

    @property
    def places(self) -> int:
        """Of a map, each of which is a query."""
        return self.cells[0] * self.cells[1]

    def compare(self, vectors: Vectors, batch: Batch) -> StepOutput:
        """Compares images with the dictionary, and places with their queue."""
        queries, keys = vectors.features, vectors.key_features
        assert queries is not None
        assert keys is not None
        whole = self.contrast(vectors.queries, vectors.keys, batch)
        assert whole.keys is not None
        with torch.autocast(queries.device.type, enabled=False):
            pairs = zip(queries, keys, strict=True)
            places = mean_output([self._contrast_places(*pair) for pair in pairs])
            pooled = self._pooled(keys.flatten(0, 1))
        settings = self.config.dense
        weight = settings.weight if batch.step >= settings.warmup_steps else 0.0
        output = join_losses(whole, places, weight)
        return replace(output, keys=torch.cat([whole.keys, pooled], dim=1))

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """Moves both momentum encoders towards the network and the dense head."""
        super().update_momentum(momentum)
        self.dense_momentum.update(self.dense_head, momentum)

    def after_step(self, output: StepOutput) -> None:
        """Enqueues keys of images and of places, those of all processes."""
        assert output.keys is not None
        assert output.indices is not None
        keys, places = _cut(output.keys, self._dim)
        super().after_step(replace(output, keys=keys))
        self.dense_queue.enqueue(gather_views(places, len(output.indices)))

    def encode_keys(self, views: Views) -> Tensor:
        """(views, images, dim), of whole images."""
        return self._vectors(self._keys_encoded(views))[0]

    def _predicted(self, views: Views) -> Tensor:
        """(views x images, dim and places) of views of one size."""
        return self._rows(self.network, self.dense_head, views)

    def _keys_encoded(self, views: Views) -> Tensor:
        assert self.momentum_encoder is not None
        with torch.no_grad():
            rows = self._rows(self.momentum_encoder.network, self.dense_momentum, views)
        return rows.reshape(len(views), -1, rows.shape[1])

    def _rows(self, network: nn.Module, dense_head: nn.Module, views: Views) -> Tensor:
        """A vector of each image, then projections of its places, then their features."""
        images, encoder = torch.cat(views), network.get_submodule("encoder")
        with autocast_to(self.autocast_type, images):
            vectors, maps = output_and_map(network, encoder, self.layer, images)
            if maps.shape[2:] != self.cells:
                maps = functional.adaptive_avg_pool2d(maps, self.cells)
            places = dense_head(maps)
        # Features only say which places belong together: no gradient goes through them.
        parts = (vectors, places.flatten(1), maps.detach().flatten(1))
        whole = torch.promote_types(torch.float32, vectors.dtype)
        return torch.cat([part.to(whole) for part in parts], dim=1)

    def _split(self, encoded: Tensor, keys: Tensor | None = None) -> Vectors:
        queries, places = self._vectors(encoded)
        if keys is None:
            return Vectors(queries, None, places)
        vectors, key_places = self._vectors(keys)
        return Vectors(queries, vectors, places, key_places)

    def _vectors(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors of images, and what comes beside them."""
        return _cut(rows, self._dim)

    def _apart(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Projections (images, dim, places) and features (images, channels, places)."""
        parts = _cut(rows, self._dense_dim * self.places)
        projections, features = (part.reshape(len(rows), -1, self.places) for part in parts)
        return projections, features

    def _contrast_places(self, queries: Tensor, keys: Tensor) -> StepOutput:
        asked, features = self._apart(queries)
        found, key_features = self._apart(keys)
        positives = dense_positives(features, key_features, self._scaled_places(found))
        return contrast_places(
            self._scaled_places(asked),
            positives,
            self.dense_queue.negatives,
            self.loss,
            self.config.loss,
            temperature=self.temperature,
        )

    def _pooled(self, keys: Tensor) -> Tensor:
        """What the second queue keeps of each view: the mean over its places (section 3.3)."""
        return self._scaled(self._apart(keys)[0].mean(dim=-1)).detach()

    def _scaled_places(self, places: Tensor) -> Tensor:
        return self._scaled(places.transpose(1, 2)).transpose(1, 2)


def build_dense(config: RunConfig, **options: Any) -> Contrastive:
    """Builds the method with random weights that follow from the config's seed.

    Args:
        config: of the run.
        options: of ``build_contrastive``.

    Raises:
        ConfigError: settings do not go together, or the encoder has no map.
    """
    return build_contrastive(config, form=partial(_with_places, config), **options)


def build_dense_head(config: HeadConfig, *, channels: int, seed: int) -> nn.Module:
    """Two 1x1 convolutions with a ReLU between them (DenseCL, section 3.2).

    Args:
        config: widths, as of the projection head.
        channels: of the map.
        seed: of the initial weights; the global generator is left as it was.
    """
    hidden = config.hidden_features or channels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(hidden, config.output_features, 1),
        )


def _with_places(
    config: RunConfig,
    encoder: nn.Module,
    head: nn.Module,
    dictionary: KeyQueue,
    method: MethodConfig,
    **options: Any,
) -> DenseContrastive:
    """The method with a dense head for the map of its encoder."""
    layer, (channels, *sides) = _map_of(config, encoder)
    height, width = (min(method.dense.cells, side) for side in sides)
    return DenseContrastive(
        encoder,
        head,
        dictionary,
        method,
        dim=dictionary.keys.shape[1],
        dense_head=build_dense_head(config.head, channels=channels, seed=config.seed + 3),
        dense_dim=config.head.output_features,
        layer=layer,
        cells=(height, width),
        **options,
    )


def _map_of(config: RunConfig, encoder: nn.Module) -> tuple[str, torch.Size]:
    """The last map of an encoder for views of a run: the layer that gives it, and its shape."""
    side = config.views.side_pixels
    blank = next(encoder.parameters()).new_zeros(1, config.images.channels, side, side)
    with in_evaluation(encoder):
        found = last_map(encoder, blank)
    # Where the last stage leaves one place, the last map with several is an earlier stage's.
    if found is None or not is_of_last_part(encoder, found[0]):
        raise ConfigError(
            f"method.kind = 'dense' compares places of the encoder's last map, and that of "
            f"{type(encoder).__name__} has a single one for views of {side} pixels. "
            "Take larger views.side_pixels, or another encoder."
        )
    return found


def _cut(rows: Tensor, length: int) -> tuple[Tensor, Tensor]:
    return rows[..., :length], rows[..., length:]
