"""Contrastive learning: a query must find its key in a dictionary of encoded images.

Made of encoders of queries and keys, a head, a predictor or none, a dictionary and a loss.

Shuffled keys (MoCo, section 3.3): where groups of images share batch-norm statistics, query and key
of an image could be matched by these alone, without looking at the image. So keys are encoded in
another order, across groups and processes, and put back.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.consistency import require_consistent
from diptych.config.method import DictionaryConfig, MethodConfig
from diptych.config.run import RunConfig
from diptych.methods.anchor import Anchor
from diptych.methods.dictionaries import Dictionary, ImageBank, InBatch, KeyQueue
from diptych.methods.grad_cache import Views
from diptych.methods.logits import Temperature
from diptych.methods.losses import find_loss, require_fitting_loss
from diptych.methods.method import (
    HALF_TYPES,
    Method,
    StepOutput,
    autocast_to,
    mean_output,
)
from diptych.methods.networks import (
    at_least_fp32,
    build_networks,
    encode_by_size,
    encode_views,
    encode_whole,
    features_and_projections,
)
from diptych.methods.objective import Loss, contrast, contrast_many
from diptych.methods.sharded_bank import ShardedBank
from diptych.models.momentum_encoder import MomentumEncoder
from diptych.runtime.distributed import (
    gather_rows,
    gather_rows_with_gradient,
    gather_views,
    own_rows,
    own_view_rows,
    process_count,
)
from diptych.views.batches import Batch

LOWEST_TEMPERATURE: Final = 0.01
SHUFFLE_STREAM: Final = 0x5348554646  # "SHUFF": keeps these draws apart from other uses of the seed


class Vectors(NamedTuple):
    """The encoded views of a batch.

    Attributes:
        queries: (views, images, dim), small views last.
        keys: the same for the keys, in the order of the queries they belong to; None where the
            queries are the keys, or the dictionary has them.
        features: (views, images, features) of the queries, in front of the head; None where there
            is no anchor.
        key_features: the same of the keys; None where nothing comes with them.
    """

    queries: Tensor
    keys: Tensor | None
    features: Tensor | None = None
    key_features: Tensor | None = None


class Contrastive(Method):
    """Compares queries with a dictionary of encoded keys.

    Attributes:
        network: encoder and head, one after the other.
        predictor: behind the head on the queries' side, or None.
        momentum_encoder: encodes the keys; None where the network itself does.
        dictionary: what each query is compared with.
        config: symmetry, number of views, settings of the loss.
        loss: by the config, unless another is given.
        anchor: holds the features near those of the start, or None.
        shuffle_seed: shuffles keys across norm groups and processes; None for no shuffling.
        autocast_type: encode under autocast to this type, if any; the loss stays in fp32.
        chunk_size: images that are encoded at once, by cached gradients; None for the whole batch.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        dictionary: Dictionary,
        config: MethodConfig,
        *,
        loss: Loss | None = None,
        predictor: nn.Module | None = None,
        anchor: Anchor | None = None,
        shuffle_seed: int | None = None,
        autocast_type: torch.dtype | None = None,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__(encoder, head)
        self.predictor = predictor
        # A copy, not a second initialisation: momentum encoder and original start as one network.
        self.momentum_encoder = (
            MomentumEncoder(self.network) if config.key_encoder.kind == "momentum" else None
        )
        self.dictionary = dictionary
        self.config = config
        self.loss = find_loss(config.loss.kind) if loss is None else loss
        self.shuffle_seed = shuffle_seed
        self.autocast_type = autocast_type
        self.chunk_size = chunk_size
        self.anchor = anchor
        self.views, self.needs_labels = config.views, self.loss.needs_labels
        # Its logarithm is learned, so that no step of the optimizer makes it negative.
        start = torch.tensor(math.log(config.loss.temperature))
        self.log_temperature = nn.Parameter(start) if config.loss.learn_temperature else None

    @property
    def networks(self) -> list[nn.Module]:
        """The network, and that of the momentum encoder."""
        slow = [] if self.momentum_encoder is None else [self.momentum_encoder.network]
        return [self.network, *slow]

    @property
    def dictionary_size(self) -> int | None:
        """Of a queue or a bank."""
        return self.dictionary.full_size

    @property
    def temperature(self) -> Temperature:
        """Dot products are divided by it."""
        if self.log_temperature is None:
            return self.config.loss.temperature
        return self.log_temperature.exp()

    def forward(self, batch: Batch) -> StepOutput:
        """Encodes the views of a batch, and compares the queries with the dictionary."""
        vectors = self.encode(batch)
        output = self.compare(vectors, batch)
        if self.anchor is None or vectors.features is None:
            return output
        return self.anchor.added_to(output, vectors.features, self._query_views(batch))

    def encode(self, batch: Batch) -> Vectors:
        """Chooses which views are queries and which are keys, and encodes them."""
        queries = self._query_views(batch)
        # The first view may keep its order: what matters is that no other view shares it.
        if self._views_are_keys:
            return self._split(self._encoded(self._queries_encoded, queries, batch, from_view=1))
        first, second, *_ = batch.views
        keys = [second, first] if self.config.symmetric else [second]
        encoded = None
        if self.dictionary.needs_keys:
            learns = self._keys_learn
            encoded = self._encoded(self._keys_encoded, keys, batch, from_view=0, learns=learns)
        return self._split(self._encoded(self._queries_encoded, queries, batch), encoded)

    def _query_views(self, batch: Batch) -> tuple[Tensor, ...]:
        if self._views_are_keys or self.config.symmetric:
            return batch.views
        first, _, *small = batch.views
        return (first, *small)

    def _split(self, encoded: Tensor, keys: Tensor | None = None) -> Vectors:
        """Takes the features apart that an anchor needs."""
        if self.anchor is None:
            return Vectors(encoded, keys)
        dim = encoded.shape[-1] - self.anchor.features
        return Vectors(encoded[..., :dim], keys, encoded[..., dim:])

    def compare(self, vectors: Vectors, batch: Batch) -> StepOutput:
        """Compares all that is encoded of a batch."""
        return self.contrast(vectors.queries, vectors.keys, batch)

    def contrast(self, queries: Tensor, keys: Tensor | None, batch: Batch) -> StepOutput:
        """Compares encoded queries with the dictionary.

        Args:
            queries: (views, batch, dim), as ``encode`` gives them.
            keys: the same, or None.
            batch: that they come from.
        """
        # Logits and loss in fp32: half precision would round close logits to the same number.
        with torch.autocast(queries.device.type, enabled=False):
            queries = self._scaled(queries)
            if self._views_are_keys:
                return self._contrast_views(queries.flatten(0, 1), batch)
            # None comes only of a bank, which has keys of its own: any others will do.
            keys = queries.detach() if keys is None else self._scaled(keys)
            # Small views come after those of full size, and are compared with the keys in turn.
            pairs = zip(queries, cycle(keys), strict=False)
            output = mean_output([self._contrast_pair(query, key, batch) for query, key in pairs])
            return replace(output, keys=self._kept(queries, keys), indices=batch.indices)

    def encode_pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Query and key of each image, (batch, dim) each, as in training, without a comparison."""
        queries, keys, *_ = self.encode(batch)
        return self._scaled(queries[0]), self._scaled(queries[1] if keys is None else keys[0])

    @torch.no_grad()
    def update_momentum(self, momentum: float) -> None:
        """Moves the momentum encoder towards the network; it keeps ``momentum`` of itself.

        A learned temperature is put back to where it may be: inside of the loss a bound would
        leave it without a gradient beyond it.
        """
        if self.log_temperature is not None:
            self.log_temperature.clamp_(min=math.log(LOWEST_TEMPERATURE))
        if self.momentum_encoder is not None:
            self.momentum_encoder.update(self.network, momentum)

    def after_step(self, output: StepOutput) -> None:
        """Hands the keys of a batch, those of all processes, to the dictionary."""
        if output.keys is not None and output.indices is not None:
            keys = gather_views(output.keys, len(output.indices))
            self.dictionary.update(keys, gather_rows(output.indices))

    def state_metrics(self) -> dict[str, float]:
        """Those of the dictionary, and a learned temperature."""
        found = self.dictionary.state_metrics()
        if self.log_temperature is not None:
            found["temperature"] = float(torch.as_tensor(self.temperature).detach())
        return found

    @property
    def _views_are_keys(self) -> bool:
        return isinstance(self.dictionary, InBatch) and self.dictionary.both_views

    @property
    def _keys_learn(self) -> bool:
        """Whether gradients flow to keys that are encoded apart from the queries."""
        return self.momentum_encoder is None and not isinstance(self.dictionary, ImageBank)

    def _encoded(
        self,
        encode: Callable[[Views], Tensor],
        views: Sequence[Tensor],
        batch: Batch,
        *,
        from_view: int | None = None,
        learns: bool = True,
    ) -> Tensor:
        """(views, images, dim); of ``norm.kind = 'shuffle'`` some views are shuffled meanwhile.

        Views from ``from_view`` on are each shuffled differently, and put back after encoding.
        """
        seed = self.shuffle_seed
        if seed is None or from_view is None:
            return self._through(encode, tuple(views), learns=learns)
        shuffled = [
            shuffle_rows(view, seed=seed, step=batch.step, view=number)
            for number, view in enumerate(views[from_view:])
        ]
        vectors = self._through(encode, (*views[:from_view], *shuffled), learns=learns)
        restored = [
            restore_rows(one, seed=seed, step=batch.step, view=number)
            for number, one in enumerate(vectors[from_view:])
        ]
        return torch.stack([*vectors[:from_view], *restored])

    def _through(self, encode: Callable[[Views], Tensor], views: Views, *, learns: bool) -> Tensor:
        return encode_views(encode, views, self, chunk_size=self.chunk_size, learns=learns)

    def encode_queries(self, views: Views) -> Tensor:
        """(views, images, dim), in one pass for each size; its views share batch statistics."""
        return self._split(self._queries_encoded(views)).queries

    def _queries_encoded(self, views: Views) -> Tensor:
        """The same; with an anchor, each vector is followed by the features that it came from.

        As one tensor they take the same way through chunks and shuffling.
        """
        return encode_by_size(self._predicted, views, self)

    def _predicted(self, views: Views) -> Tensor:
        """(views x images, dim) of views of one size, through network and predictor."""
        with autocast_to(self.autocast_type, views[0]):
            features, vectors = features_and_projections(
                self.network, torch.cat(views), with_features=self.anchor is not None
            )
            if self.predictor is not None:
                vectors = self.predictor(vectors)
        vectors = at_least_fp32(vectors)
        if features is None:
            return vectors
        return torch.cat([vectors, at_least_fp32(features)], dim=1)

    def encode_keys(self, views: Views) -> Tensor:
        """(views, images, dim); gradients flow only to the keys of a batch."""
        return self._keys_encoded(views)

    def _keys_encoded(self, views: Views) -> Tensor:
        network = self.network if self.momentum_encoder is None else self.momentum_encoder
        # set_grad_enabled(True) would win over a no_grad around it, and cached gradients encode
        # without a graph at first.
        learns = self._keys_learn and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            return encode_whole(network, views, self.autocast_type)

    def _contrast_pair(self, queries: Tensor, keys: Tensor, batch: Batch) -> StepOutput:
        comparison = self.dictionary.compare(queries, keys, batch)
        temperature = self.temperature
        if comparison.teaches is not None and isinstance(temperature, Tensor):
            # A gradient of zero and not none: processes exchange those of the same parameters.
            temperature = torch.where(comparison.teaches, temperature, temperature.detach())
        return contrast(comparison, self.loss, self.config.loss, temperature=temperature)

    def _contrast_views(self, vectors: Tensor, batch: Batch) -> StepOutput:
        """Every view against all others of the batch, those of all processes."""
        count = len(batch.views)
        if count == 2 and self.loss.one_positive is not None:
            return self._contrast_pair(vectors, vectors, batch)
        ids = batch.indices if batch.groups is None else batch.groups
        if self.needs_labels:
            assert batch.labels is not None
            ids = batch.labels
        views = gather_views(vectors, len(batch))
        rows = None
        if process_count() > 1:
            rows = own_view_rows(torch.arange(len(views), device=views.device), count)
        return contrast_many(
            views,
            gather_rows(ids).repeat(count),
            self.loss,
            self.config.loss,
            temperature=self.temperature,
            queries=rows,
        )

    def _kept(self, queries: Tensor, keys: Tensor) -> Tensor | None:
        """What the dictionary is updated with after the step, without gradient."""
        if isinstance(self.dictionary, InBatch):
            return None
        if isinstance(self.dictionary, ImageBank):  # a key of each image, of its full-sized queries
            return self._scaled(queries[: 1 + self.config.symmetric].mean(dim=0)).detach()
        return keys.flatten(0, 1).detach()

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Vectors of length one for cosines, as they are for dot products."""
        if self.config.loss.similarity == "dot":
            return vectors
        return functional.normalize(vectors, dim=-1)


def build_contrastive(
    config: RunConfig,
    *,
    image_count: int = 1,
    encoder: nn.Module | None = None,
    loss: Loss | None = None,
    form: Callable[..., Contrastive] = Contrastive,
) -> Contrastive:
    """Builds a contrastive method with random weights that follow from the config's seed.

    Args:
        config: of the run.
        image_count: images to learn from; a memory bank holds a key for each.
        encoder: in the place of the one that the config names; from (batch, channels, side, side)
            to (batch, features).
        loss: in the place of the one that the config names.
        form: called as ``Contrastive``, for a method that is one with more to it.

    Raises:
        ConfigError: settings do not go together, or there is no such encoder or loss.
    """
    require_consistent(config)
    loss = require_fitting_loss(config, loss)
    parts = build_networks(config, encoder=encoder)
    return form(
        parts.encoder,
        parts.head,
        build_dictionary(
            config.method.dictionary,
            dim=parts.dim,
            image_count=image_count,
            unit_length=config.method.loss.similarity == "cosine",
            seed=config.seed,
        ),
        config.method,
        loss=loss,
        predictor=parts.predictor,
        anchor=parts.anchor,
        shuffle_seed=config.seed if config.norm.kind == "shuffle" else None,
        autocast_type=HALF_TYPES[config.training.precision],
        chunk_size=config.training.chunk_size,
    )


def build_dictionary(
    config: DictionaryConfig, *, dim: int, image_count: int, unit_length: bool, seed: int
) -> InBatch | KeyQueue | ImageBank:
    """Builds the dictionary that the config names.

    Args:
        config: which one, and its size.
        dim: length of a key.
        image_count: images to learn from; a bank holds a key of each.
        unit_length: keys have length one, for cosines.
        seed: of the run.
    """
    if config.kind == "batch":
        return InBatch(both_views=config.batch.both_views)
    if config.kind == "queue":
        return KeyQueue(config.queue.size, dim)
    kind = ShardedBank if config.bank.placement == "sharded" else ImageBank
    return kind(
        image_count,
        dim,
        negatives=config.bank.negatives,
        momentum=config.bank.momentum,
        dtype=torch.float16 if config.bank.precision == "fp16" else torch.float32,
        unit_length=unit_length,
        seed=seed,
    )


def shuffled_order(seed: int, step: int, count: int, view: int = 0) -> Tensor:
    """An order of ``count`` rows, int64, by seed, step and view: the same on all processes."""
    key = np.array([seed, SHUFFLE_STREAM], dtype=np.uint64)
    # Drawing counts up the first word; view and step stand in others, so no two streams meet.
    bits = np.random.Philox(key=key, counter=np.array([0, 0, view, step], dtype=np.uint64))
    return torch.from_numpy(np.random.Generator(bits).permutation(count))


def shuffle_rows(rows: Tensor, *, seed: int, step: int, view: int = 0) -> Tensor:
    """This process's part of the rows of all processes in their shuffled order; no gradient.

    Args:
        rows: (rows, ...), as many on each process.
        seed: of the run.
        step: counted from 0.
        view: each is shuffled differently, or their keys would stay in one group.
    """
    # Over all processes: within one, a group as large as its share would be the same images.
    order = shuffled_order(seed, step, len(rows) * process_count(), view).to(rows.device)
    return own_rows(gather_rows(rows)[order]) if process_count() > 1 else rows[order]


def restore_rows(rows: Tensor, *, seed: int, step: int, view: int = 0) -> Tensor:
    """Puts back what ``shuffle_rows`` moved; gradients flow back to where rows were encoded."""
    order = shuffled_order(seed, step, len(rows) * process_count(), view).to(rows.device)
    inverse = torch.argsort(order)
    if process_count() == 1:
        return rows[inverse]
    gather = gather_rows_with_gradient if rows.requires_grad else gather_rows
    return own_rows(gather(rows)[inverse])
