"""A contrastive method: encoders of queries and keys, head, predictor, dictionary, loss."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager
from itertools import cycle, groupby
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.consistency import norm_of_batch, require_consistent
from diptych.config.method import DictionaryConfig, MethodConfig
from diptych.config.run import RunConfig
from diptych.methods.dictionaries import Dictionary, ImageBank, InBatch, KeyQueue
from diptych.methods.objective import LookUp, look_up, look_up_many
from diptych.methods.scores import Temperature
from diptych.methods.sharded_bank import ShardedBank
from diptych.methods.shuffle import restore_rows, shuffle_rows
from diptych.models.encoders import build_encoder, count_features
from diptych.models.heads import build_head, build_predictor, output_dim
from diptych.models.momentum_encoder import MomentumEncoder
from diptych.models.norms import frozen_statistics, use_norm
from diptych.runtime.distributed import gather_rows, gather_views, own_view_rows, process_count
from diptych.views.batches import Batch

LOWEST_TEMPERATURE = 0.01

HALF_TYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
"""For ``training.precision``: the type that autocast computes in; None for no autocast."""

Views = tuple[Tensor, ...]


class Panels(NamedTuple):
    """The views of a batch as they are encoded.

    Attributes:
        queries: each (batch, channels, side, side), small views last; row i shows image i of the
            batch, except in views that are shuffled.
        keys: the same for the keys, in the order of the queries they belong to; empty where the
            queries are the keys, or the dictionary has them.
    """

    queries: Views
    keys: Views


class Output(NamedTuple):
    """What one batch gave.

    Attributes:
        look_up: loss, accuracy and number of candidates; of this process's queries.
        keys: (keys, dim), without gradient; for the dictionary.
        indices: (batch,), the images that the keys are of.
    """

    look_up: LookUp
    keys: Tensor
    indices: Tensor


class Method(nn.Module):
    """Look-up of queries in a dictionary of encoded keys.

    A call changes nothing but batch-norm statistics. After the optimizer has moved, ``follow``
    moves the momentum encoder and ``remember`` advances the dictionary, in this order.

    Attributes:
        network: encoder and head, one after the other.
        predictor: behind the head on the queries' side, or None.
        momentum encoder: encodes the keys; None where the network itself does.
        dictionary: what each query is compared with.
        config: loss, symmetry, number of views.
        shuffle_seed: shuffles keys across norm groups and processes; None for no shuffling.
        autocast_type: encode under autocast to this type, if any; the loss stays in fp32.
    """

    def __init__(
        self,
        encoder: nn.Module,
        head: nn.Module,
        dictionary: Dictionary,
        config: MethodConfig,
        *,
        predictor: nn.Module | None = None,
        shuffle_seed: int | None = None,
        autocast_type: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.network = nn.Sequential()
        self.network.add_module("encoder", encoder)
        self.network.add_module("head", head)
        self.predictor = predictor
        # A copy, not a second initialisation: momentum encoder and original start as one network.
        self.momentum_encoder = (
            MomentumEncoder(self.network) if config.key_encoder.kind == "momentum" else None
        )
        self.dictionary = dictionary
        self.config = config
        self.shuffle_seed = shuffle_seed
        self.autocast_type = autocast_type
        learned = config.loss.learn_temperature
        start = torch.tensor(math.log(config.loss.temperature))
        self.log_temperature = nn.Parameter(start) if learned else None

    @property
    def encoder(self) -> nn.Module:
        """The part that is kept."""
        return self.network.get_submodule("encoder")

    @property
    def temperature(self) -> Temperature:
        """Scores are divided by it."""
        if self.log_temperature is None:
            return self.config.loss.temperature
        return self.log_temperature.exp()

    def forward(self, batch: Batch) -> Output:
        """Looks up the queries of a batch in the dictionary."""
        panels = self.arrange(batch)
        keys = self.encode_keys(panels.keys) if panels.keys else None
        return self.compare(self.encode_queries(panels.queries), keys, batch)

    def arrange(self, batch: Batch) -> Panels:
        """Chooses the views that are encoded as queries and as keys; shuffles those of keys."""
        if self._queries_are_keys:
            first, *others = batch.views
            return Panels((first, *self._shuffled(others, batch)), ())
        first, second, *small = batch.views
        queries, keys = (
            ((first, second), (second, first)) if self.config.symmetric else ((first,), (second,))
        )
        queries = (*queries, *small)
        if not self.dictionary.lacks(batch.indices):
            return Panels(queries, ())
        return Panels(queries, tuple(self._shuffled(keys, batch)))

    def encode_queries(self, views: Views) -> Tensor:
        """(views, images, dim), in one pass for each size, whose views share batch statistics."""
        full, *smaller = [tuple(same) for _, same in groupby(views, key=lambda one: one.shape[-1])]
        vectors = self._encode_as_query(full)
        if smaller:
            # Images are evaluated at full size, and running statistics are for that.
            with frozen_statistics(self):
                small = [self._encode_as_query(same) for same in smaller]
            vectors = torch.cat([vectors, *small])
        return vectors.reshape(len(views), -1, vectors.shape[1])

    def encode_keys(self, views: Views) -> Tensor:
        """(views, images, dim); gradients flow only to the keys of a batch."""
        network = self.network if self.momentum_encoder is None else self.momentum_encoder
        with self._precision(views[0]), torch.set_grad_enabled(self.keys_learn):
            vectors = network(torch.cat(views))
        return _at_least_fp32(vectors).reshape(len(views), -1, vectors.shape[1])

    def compare(self, queries: Tensor, keys: Tensor | None, batch: Batch) -> Output:
        """Scores encoded queries against the dictionary.

        Args:
            queries: (views, batch, dim), as encoded, in the order of ``arrange``.
            keys: the same shape, or None where ``arrange`` asks for none.
            batch: that they come from.
        """
        with torch.autocast(queries.device.type, enabled=False):
            if self._queries_are_keys:
                rest = self._restored(queries[1:], batch)
                queries = self._scaled(torch.stack([queries[0], *rest]))
                found = self._look_up_among(queries.flatten(0, 1), batch)
                return Output(found, queries[0].detach(), batch.indices)
            queries = self._scaled(queries)
            if keys is None:
                keys = queries.detach()
            else:
                keys = self._scaled(torch.stack(self._restored(keys, batch)))
            # Small views come after those of full size, and look for the keys in turn.
            pairs = zip(queries, cycle(keys), strict=False)
            found = _mean([self._look_up(query, key, batch) for query, key in pairs])
        bank = self.config.dictionary.kind == "bank"
        full_sized = queries[: 1 + self.config.symmetric]
        remembered = self._scaled(full_sized.mean(dim=0)) if bank else keys.flatten(0, 1)
        return Output(found, remembered.detach(), batch.indices)

    def encode_pairs(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Query and key of each image, (batch, dim) each, as in training but without a look-up."""
        panels = self.arrange(batch)
        queries = self.encode_queries(panels.queries)
        if self._queries_are_keys:
            query, key = queries[0], self._restored(queries[1:], batch)[0]
        else:
            query, key = queries[0], self._restored(self.encode_keys(panels.keys), batch)[0]
        return self._scaled(query), self._scaled(key)

    @property
    def keys_learn(self) -> bool:
        """Whether gradients flow to keys that are encoded apart from the queries."""
        return (
            self.momentum_encoder is None
            and self.config.dictionary.kind != "bank"
            and torch.is_grad_enabled()
        )

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Moves the momentum encoder towards the network; it keeps ``momentum`` of itself.

        A learned temperature is put back to where it may be: inside of the loss a bound would
        leave it without a gradient beyond it.
        """
        if self.log_temperature is not None:
            self.log_temperature.clamp_(min=math.log(LOWEST_TEMPERATURE))
        if self.momentum_encoder is not None:
            self.momentum_encoder.follow(self.network, momentum)

    def remember(self, output: Output) -> None:
        """Hands the keys of a batch, those of all processes, to the dictionary."""
        if isinstance(self.dictionary, InBatch):
            return
        keys = gather_views(output.keys, len(output.indices))
        self.dictionary.remember(keys, gather_rows(output.indices))

    def figures(self) -> dict[str, float]:
        """What is worth a place in the metrics besides the loss."""
        learned = self.log_temperature is not None
        temperature = (
            {"temperature": float(torch.as_tensor(self.temperature).detach())} if learned else {}
        )
        return self.dictionary.figures() | temperature

    @property
    def _queries_are_keys(self) -> bool:
        return isinstance(self.dictionary, InBatch) and self.dictionary.both_views

    def _encode_as_query(self, views: Views) -> Tensor:
        """(views x images, dim) of views of one size."""
        with self._precision(views[0]):
            vectors = self.network(torch.cat(views))
            if self.predictor is not None:
                vectors = self.predictor(vectors)
        return _at_least_fp32(vectors)

    def _look_up(self, queries: Tensor, keys: Tensor, batch: Batch) -> LookUp:
        comparison = self.dictionary.compare(queries, keys, batch)
        return look_up(comparison, self.config.loss, temperature=self.temperature)

    def _look_up_among(self, vectors: Tensor, batch: Batch) -> LookUp:
        """Every view against all others of the batch, those of all processes."""
        supervised = self.config.loss.kind == "supervised"
        if not supervised and len(batch.views) == 2:
            return self._look_up(vectors, vectors, batch)
        ids = batch.indices if batch.groups is None else batch.groups
        if supervised:
            assert batch.labels is not None
            ids = batch.labels
        views = gather_views(vectors, len(batch))
        many = gather_rows(ids).repeat(len(batch.views))
        rows = None
        if process_count() > 1:
            rows = own_view_rows(torch.arange(len(views), device=views.device), len(batch.views))
        return look_up_many(
            views, many, self.config.loss, temperature=self.temperature, queries=rows
        )

    def _shuffled(self, views: Iterable[Tensor], batch: Batch) -> list[Tensor]:
        """Each view in an order of its own."""
        if (seed := self.shuffle_seed) is None:
            return list(views)
        return [
            shuffle_rows(view, seed=seed, step=batch.step, view=number)
            for number, view in enumerate(views)
        ]

    def _restored(self, encoded: Iterable[Tensor], batch: Batch) -> list[Tensor]:
        """Vectors of views that were shuffled, in the order of the batch."""
        if (seed := self.shuffle_seed) is None:
            return list(encoded)
        return [
            restore_rows(vectors, seed=seed, step=batch.step, view=number)
            for number, vectors in enumerate(encoded)
        ]

    def _scaled(self, vectors: Tensor) -> Tensor:
        """Vectors of length one for cosines, as they are for dot products."""
        if self.config.loss.similarity == "dot":
            return vectors
        return functional.normalize(vectors, dim=-1)

    def _precision(self, images: Tensor) -> AbstractContextManager[object]:
        half = self.autocast_type
        return torch.autocast(images.device.type, half, enabled=half is not None)


def build_method(config: RunConfig, *, image_count: int = 1) -> Method:
    """Builds a method with random weights that follow from the config's seed.

    Args:
        config: of the run.
        image_count: images to learn from; a memory bank holds a key for each.

    Raises:
        ConfigError: settings do not go together, or there is no such encoder.
    """
    require_consistent(config)
    channels, side = config.images.channels, config.views.side_pixels
    norm = norm_of_batch(config)
    encoder = build_encoder(config.encoder, channels=channels, side_pixels=side, seed=config.seed)
    features = count_features(encoder, channels=channels, side_pixels=side)
    dim = output_dim(config.head, features)
    head = build_head(config.head, features=features, seed=config.seed + 1)
    predictor = build_predictor(config.head, dim=dim, seed=config.seed + 2)
    return Method(
        use_norm(encoder, norm),
        use_norm(head, norm),
        build_dictionary(
            config.method.dictionary,
            dim=dim,
            image_count=image_count,
            unit_length=config.method.loss.similarity == "cosine",
            seed=config.seed,
        ),
        config.method,
        predictor=None if predictor is None else use_norm(predictor, norm),
        shuffle_seed=config.seed if config.norm.kind == "shuffle" else None,
        autocast_type=HALF_TYPES[config.training.precision],
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


def _mean(found: list[LookUp]) -> LookUp:
    """The mean over the two directions of a symmetric method."""
    loss = torch.stack([one.loss for one in found]).mean()
    accuracy = torch.stack([one.accuracy for one in found]).mean()
    return found[0]._replace(loss=loss, accuracy=accuracy)


def _at_least_fp32(vectors: Tensor) -> Tensor:
    return vectors.float() if vectors.dtype.itemsize < 4 else vectors
