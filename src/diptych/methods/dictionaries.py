"""Dictionaries of encoded keys: the batch itself, a queue of past keys, a bank of all images.

A dictionary answers ``compare(queries, keys, batch)`` without changing, and changes only in
``update``, which the training step calls after the optimizer has moved. The answer says what each
query is compared with; what that comes to is the loss's part.

Where several processes train together, each compares its own queries with the keys of all, and each
stores the keys of all in the same order, so that dictionaries are the same everywhere.
"""

import math
from typing import Final, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from diptych.methods.logits import batch_exclusions
from diptych.runtime.distributed import (
    gather_rows,
    gather_views,
    own_slice,
    own_view_rows,
    process_count,
)
from diptych.views.batches import Batch

BANK_STREAM: Final = 0x42414E4B  # "BANK": keeps these draws apart from any other use of the seed


class Comparison(NamedTuple):
    """What each query of a batch is compared with.

    Attributes:
        queries: (queries, dim).
        positives: (queries, dim), each query's positive key.
        negatives: (keys, dim), shared by all queries.
        excluded: (queries, few), columns of ``negatives`` that do not count for a query, -1 for
            none; None where all count.
        candidates: keys each query chooses among, its positive included; a mean if they differ.
        in_batch: the negatives are the queries themselves, each once query and once key.
        stored_dtype: the type that keys were kept in, if not their own.
        teaches: whether all queries have a positive key, a tensor of one; None where they always
            have. Without one a query teaches nothing, nor a learned temperature.
    """

    queries: Float[Tensor, "queries dim"]
    positives: Float[Tensor, "queries dim"]
    negatives: Float[Tensor, "keys dim"]
    excluded: Int[Tensor, "queries few"] | None
    candidates: int
    in_batch: bool = False
    stored_dtype: torch.dtype | None = None
    teaches: Tensor | None = None


class Dictionary(Protocol):
    """What a method asks of a dictionary."""

    @property
    def full_size(self) -> int | None:
        """Keys that a query meets beside its own once it is full; None where nothing fills."""
        ...

    @property
    def needs_keys(self) -> bool:
        """Whether it needs keys of a batch's images to compare queries of them."""
        ...

    def compare(self, queries: Tensor, keys: Tensor, batch: Batch) -> Comparison:
        """Says what each query is compared with; changes nothing.

        Args:
            queries: (batch, dim), of this process.
            keys: (batch, dim), the same images in other views.
            batch: says which images they are.
        """
        ...

    def update(self, keys: Tensor, indices: Tensor) -> None:
        """Enqueues or stores the keys, (batch, dim), of images that all processes learned from."""
        ...

    def state_metrics(self) -> dict[str, float]:
        """Metrics of what it holds."""
        ...


class InBatch(nn.Module):
    """The other images of the batch: end-to-end, gradients flow to the keys.

    Attributes:
        both_views: each view is once the query, and all other views of the batch are candidates
            (SimCLR, section 2.1); else a query meets the batch's keys only (MoCo, section 3.2,
            the end-to-end mechanism).
    """

    def __init__(self, *, both_views: bool = True) -> None:
        super().__init__()
        self.both_views = both_views

    @property
    def full_size(self) -> None:
        """A batch is there at once."""

    @property
    def needs_keys(self) -> bool:
        """It holds no keys of its own."""
        return True

    def compare(
        self,
        queries: Float[Tensor, "queries dim"],
        keys: Float[Tensor, "queries dim"],
        batch: Batch,
    ) -> Comparison:
        """Each query against the batch, without the keys of its own image or group.

        With ``both_views``, rows are the first views of all images, then the second, and so on.
        The keys are those of all processes.
        """
        views, whole = len(queries) // len(batch), len(batch) * process_count()
        if batch.groups is None:  # columns i, i + whole, ...: the views of image i
            own = torch.arange(whole, device=queries.device)[own_slice(whole)]
            starts = whole * torch.arange(views, device=queries.device)
            excluded, left_out = own.repeat(views)[:, None] + starts, float(views)
        else:
            exclusions = batch_exclusions(gather_rows(batch.groups).repeat(views))
            left_out = float((exclusions >= 0).sum()) / len(exclusions)
            excluded = own_view_rows(exclusions, views)
        # Rows are view after view: a turn by one batch puts an image's other view in its row.
        positives = keys.roll(len(batch), dims=0) if self.both_views else keys
        negatives = gather_views(keys, len(batch))
        # With several processes there are more keys than queries: no triangle to halve the work.
        in_batch = self.both_views and process_count() == 1
        candidates = 1 + round(len(negatives) - left_out)
        return Comparison(queries, positives, negatives, excluded, candidates, in_batch=in_batch)

    def update(self, keys: Tensor, indices: Tensor) -> None:
        """Nothing outlives the batch."""

    def state_metrics(self) -> dict[str, float]:
        """None."""
        return {}


class KeyQueue(nn.Module):
    """The keys of past batches, first in, first out (MoCo, section 3.2).

    It starts empty and is used as far as it is filled, so every negative is the key of a real
    image; the chance level log(1 + filled) rises until it is full. Batch and queue may have any
    sizes: a batch wraps around the end, and of one larger than the queue the last keys stay.

    Attributes:
        keys: (size, dim), a buffer; row order has no meaning.
        next_row: where the next key goes; saved with the keys.
        filled: how many rows hold a key; saved with the keys.
        last_count: keys that came in last; the queue's age in steps follows from it.
    """

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.next_row = 0
        self.filled = 0
        self.last_count = 0

    # Plain numbers in use, so that an accelerator never waits for them; a tensor when saved.
    def get_extra_state(self) -> Tensor:
        """(3,) int64: next_row, filled and last_count, part of the state dict."""
        return torch.tensor([self.next_row, self.filled, self.last_count])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what ``get_extra_state`` gave."""
        self.next_row, self.filled, self.last_count = (int(number) for number in state)

    @property
    def negatives(self) -> Float[Tensor, "filled dim"]:
        """The keys it holds, in no order, without gradient."""
        # A view, which the loss saves for its backward pass: keys must not come in before it.
        return self.keys[: self.filled]

    @property
    def full_size(self) -> int:
        """Keys that it has room for."""
        return len(self.keys)

    @property
    def oldest_key_steps(self) -> int:
        """Steps since the oldest key came in; the momentum must keep pace with it."""
        return math.ceil(self.filled / self.last_count) if self.last_count else 0

    @property
    def needs_keys(self) -> bool:
        """A query's positive key is always a fresh one."""
        return True

    def compare(
        self,
        queries: Float[Tensor, "queries dim"],
        keys: Float[Tensor, "queries dim"],
        batch: Batch,
    ) -> Comparison:
        """Each query with its fresh key against all keys in the queue."""
        return Comparison(queries, keys, self.negatives, None, 1 + self.filled)

    def update(self, keys: Tensor, indices: Tensor) -> None:
        """Enqueues the keys; of which images they are does not matter."""
        self.enqueue(keys)

    @torch.no_grad()
    def enqueue(self, keys: Float[Tensor, "batch dim"]) -> None:
        """Puts keys over the oldest ones.

        After the loss: a query must not meet its own key as a negative.
        """
        size = len(self.keys)
        start = self.next_row + max(0, len(keys) - size)  # as if the surplus had passed through
        newest = keys[-size:].to(self.keys.dtype)
        rows = (start + torch.arange(len(newest), device=self.keys.device)) % size
        self.keys[rows] = newest
        self.next_row = (start + len(newest)) % size
        self.filled = min(self.filled + len(keys), size)
        self.last_count = len(keys)

    def state_metrics(self) -> dict[str, float]:
        """The age of its oldest key."""
        return {"oldest_key_steps": float(self.oldest_key_steps)}


class ImageBank(nn.Module):
    """One key for each image, from when it was last seen (InstDisc, section 3; MoCo, section 3.2).

    A query's positive key is the bank's; its negatives are keys of other images, drawn anew for
    each batch, all equally likely. It starts empty: of an image that it has no key of nothing is
    learned, and it is no query's negative. So the first epoch fills the bank with keys of the
    network as it began; docs/decisions/0007-the-bank-starts-empty.md says why.

    Attributes:
        keys: (images, dim), a buffer, fp32 or fp16.
        seen: (images,), the images that have a key come first.
        known: (images,), whether an image has a key.
        count: how many have one.
        negative_count: keys drawn for each query.
        momentum: share of its key that an image keeps when it is seen again.
        unit_length: keys are kept at length one, for cosines.
        seed: of the run; what is drawn follows from it and the step.
    """

    keys: Tensor
    seen: Tensor
    known: Tensor

    def __init__(
        self,
        images: int,
        dim: int,
        *,
        negatives: int,
        momentum: float = 0.5,
        dtype: torch.dtype = torch.float32,
        unit_length: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(self._rows_here(images), dim, dtype=dtype))
        self.register_buffer("seen", torch.zeros(images, dtype=torch.long))
        self.register_buffer("known", torch.zeros(images, dtype=torch.bool))
        self.count = 0
        self.negative_count = negatives
        self.momentum = momentum
        self.unit_length = unit_length
        self.seed = seed

    def get_extra_state(self) -> Tensor:
        """(1,) int64: count, part of the state dict."""
        return torch.tensor([self.count])

    def set_extra_state(self, state: Tensor) -> None:
        """Restores what ``get_extra_state`` gave."""
        self.count = int(state[0])

    @property
    def full_size(self) -> int:
        """Keys that are drawn for a query once all images have one."""
        return min(self.negative_count, len(self.known) - 1)

    @property
    def needs_keys(self) -> bool:
        """Its keys are those of earlier batches."""
        return False

    def compare(
        self,
        queries: Float[Tensor, "queries dim"],
        keys: Float[Tensor, "queries dim"],
        batch: Batch,
    ) -> Comparison:
        """Each query with its image's key against keys of other images."""
        drawn = self.draw(batch.step)
        stored, negatives = self._stored_keys(batch.indices, drawn)
        # A query without a key keeps its row, of zeros, so that a loss stays the mean over the
        # batch, however the batch is cut; but no gradient comes of it.
        known = self.known[batch.indices]
        queries = torch.where(known[:, None], queries, queries.detach())
        positives = stored.to(queries.dtype)
        excluded = self._excluded_columns(drawn, batch)
        counted = self.negative_count  # the same for all, unless all keys there are were drawn
        if len(drawn) <= self.negative_count:
            own_drawn = gather_rows((excluded >= 0).float())
            counted = round(len(drawn) - float(own_drawn.mean()))
        return Comparison(
            queries,
            positives,
            negatives.to(queries.dtype),
            excluded,
            1 + counted,
            stored_dtype=self.keys.dtype,
            # Of the whole batch: all processes must learn the temperature, or none.
            teaches=gather_rows(known).all(),
        )

    def draw(self, step: int) -> Int[Tensor, " drawn"]:
        """Different images that have a key: one more than the negatives asked for, if there are.

        A function of the seed and the step.
        """
        # numpy's generator, not the device's: the same images on any device and every process.
        key = np.array([self.seed, BANK_STREAM], dtype=np.uint64)
        bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, step], dtype=np.uint64))
        wanted = min(self.negative_count + 1, self.count)
        # Shuffled, so that the last column, which is left out below, is as random as any.
        rows = np.random.Generator(bits).choice(self.count, wanted, replace=False, shuffle=True)
        return self.seen[torch.from_numpy(rows).to(self.seen.device)]

    def _excluded_columns(self, drawn: Tensor, batch: Batch) -> Tensor:
        """For each query the column to leave out: its own image's, or else the surplus one.

        So every query meets the same number of negatives, uniform among the others' keys.
        """
        own = drawn[None, :] == batch.indices[:, None]  # (queries, drawn)
        surplus = len(drawn) - 1 if len(drawn) > self.negative_count else -1
        if not len(drawn):
            return batch.indices.new_full((len(batch), 1), -1)
        # As int: torch has no argmax of bools.
        return torch.where(own.any(dim=1), own.int().argmax(dim=1), surplus)[:, None]

    @torch.no_grad()
    def update(self, keys: Float[Tensor, "batch dim"], indices: Int[Tensor, " batch"]) -> None:
        """Moves the images' keys towards the new ones, or stores those of new images."""
        # Looked up first: a new image's key must not be mixed with the zeros that stand there.
        known = self.known[indices]
        self._update_rows(keys, indices, known)
        if self.count < len(self.known):
            new = indices[~known]
            self.seen[self.count : self.count + len(new)] = new
            self.known[new] = True
            self.count += len(new)

    @staticmethod
    def _rows_here(images: int) -> int:
        """Keys that this process holds."""
        return images

    def _stored_keys(self, own: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The keys of this process's images, and those of images that all processes have drawn."""
        return self.keys[own], self.keys[drawn]

    def _update_rows(self, keys: Tensor, rows: Tensor, known: Tensor) -> None:
        """Moves rows of ``keys`` towards new keys; ``known`` says which rows hold a key."""
        # Mixed and normalised in the type of the new keys: a bank in fp16 rounds once, at the end.
        old = self.keys[rows].to(keys.dtype)
        mixed = torch.where(known[:, None], torch.lerp(keys, old, self.momentum), keys)
        if self.unit_length:
            mixed = functional.normalize(mixed, dim=1)
        self.keys[rows] = mixed.to(self.keys.dtype)

    def state_metrics(self) -> dict[str, float]:
        """How many images have a key."""
        return {"images_in_bank": float(self.count)}
