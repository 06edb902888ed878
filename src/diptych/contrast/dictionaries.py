"""Dictionaries of encoded keys, and the look-up of queries in them.

A dictionary answers ``look_up(queries, keys)`` without changing, and changes only in
``remember(keys)``, which the training step calls after the optimizer has moved.
"""

import math
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from diptych.configs import DictionaryConfig
from diptych.contrast.losses import (
    Scores,
    cross_entropy,
    info_nce_scores,
    nt_xent_scores,
    pretext_accuracy,
)


class LookUp(NamedTuple):
    """What came of looking up a batch of queries.

    Attributes:
        loss: (), mean over queries in nats.
        accuracy: (), share of queries that found their own key first; no gradient.
        candidates: keys that each query chose among, its own included.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    candidates: int

    @property
    def chance_loss(self) -> float:
        """The loss of an encoder that cannot tell the candidates apart: log(candidates)."""
        return math.log(self.candidates)


class Dictionary(Protocol):
    """What a method asks of a dictionary."""

    def look_up(
        self,
        queries: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch dim"],
        *,
        temperature: float,
    ) -> LookUp:
        """Compares each query with its own key and with the others; changes nothing."""
        ...

    def remember(self, keys: Float[Tensor, "batch dim"]) -> None:
        """Takes in the keys of a batch that has been learned from."""
        ...


class InBatch(nn.Module):
    """The other images of the batch: end-to-end, gradients flow to the keys (SimCLR)."""

    def look_up(
        self,
        queries: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch dim"],
        *,
        temperature: float,
    ) -> LookUp:
        """NT-Xent over the batch, in which each view is once the query and once the key."""
        scores = nt_xent_scores(queries, keys, temperature=temperature)
        return _look_up(scores, candidates=2 * len(queries) - 1)

    def remember(self, keys: Float[Tensor, "batch dim"]) -> None:
        """Nothing outlives the batch."""


class KeyQueue(nn.Module):
    """The keys of past batches, first in, first out (MoCo, section 3.2).

    It starts empty and is used as far as it is filled, so every negative is the key of a real
    image; the chance level log(1 + filled) rises until it is full. Batch and queue may have any
    sizes: a batch wraps around the end, and of one larger than the queue the last keys stay.

    Attributes:
        keys: (size, dim), a buffer; row order has no meaning.
        next_row: where the next key goes; saved with the keys.
        filled: how many rows hold a key; saved with the keys.
    """

    keys: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(size, dim))
        self.next_row = 0
        self.filled = 0

    # Plain numbers in use, so that an accelerator never waits for them; a tensor when saved.
    def get_extra_state(self) -> Tensor:
        """(2,) int64: next_row and filled, part of the state dict."""
        return torch.tensor([self.next_row, self.filled])

    def set_extra_state(self, state: Tensor) -> None:
        """Takes back what ``get_extra_state`` gave."""
        self.next_row, self.filled = (int(number) for number in state)

    def look_up(
        self,
        queries: Float[Tensor, "batch dim"],
        keys: Float[Tensor, "batch dim"],
        *,
        temperature: float,
    ) -> LookUp:
        """InfoNCE of each query with its own key against all keys in the queue."""
        negatives = self.keys[: self.filled]
        scores = info_nce_scores(queries, keys, negatives, temperature=temperature)
        return _look_up(scores, candidates=1 + len(negatives))

    @torch.no_grad()
    def remember(self, keys: Float[Tensor, "batch dim"]) -> None:
        """Enqueues keys over the oldest ones.

        Keys enter after the loss: a query must not meet its own key as a negative.
        """
        size = len(self.keys)
        start = self.next_row + max(0, len(keys) - size)  # as if the surplus had passed through
        newest = keys[-size:].to(self.keys.dtype)
        rows = (start + torch.arange(len(newest), device=self.keys.device)) % size
        self.keys[rows] = newest
        self.next_row = (start + len(newest)) % size
        self.filled = min(self.filled + len(keys), size)


def build_dictionary(config: DictionaryConfig, *, dim: int) -> InBatch | KeyQueue:
    """Builds the dictionary that the config names, for keys of length ``dim``."""
    return InBatch() if config.kind == "batch" else KeyQueue(config.queue_size, dim)


def _look_up(scores: Scores, *, candidates: int) -> LookUp:
    return LookUp(cross_entropy(scores), pretext_accuracy(scores), candidates)
