"""Losses as pure functions: a mean over queries, in nats.

A query q should score high with its own key k+ and low with all others. Scores are dot products
divided by the temperature; for cosines the caller hands in vectors of length one. Each loss comes
in two steps, scores and then cross-entropy, because the pretext accuracy is read off the same
scores. Cross-entropy subtracts the largest score first, so no temperature overflows.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional


class Scores(NamedTuple):
    """How well each query fits each candidate.

    Attributes:
        logits: (queries, candidates); -inf where a candidate does not count.
        own: (queries,), the column of each query's own key.
    """

    logits: Float[Tensor, "queries candidates"]
    own: Int[Tensor, " queries"]


def info_nce_scores(
    queries: Float[Tensor, "batch dim"],
    positives: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: float,
) -> Scores:
    """Scores of each query with its own key, in column 0, and with all keys of a dictionary."""
    own = (queries * positives).sum(dim=1, keepdim=True)
    others = queries @ negatives.T
    logits = torch.cat([own, others], dim=1) / temperature
    return Scores(logits, torch.zeros(len(queries), dtype=torch.long, device=queries.device))


def info_nce(
    queries: Float[Tensor, "batch dim"],
    positives: Float[Tensor, "batch dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """InfoNCE against a dictionary (CPC, eq. 4; MoCo, eq. 1).

    Mean over queries of -log( exp(q.k+/T) / (exp(q.k+/T) + sum_k exp(q.k/T)) ). Equal scores give
    log(1 + keys).

    Example:
        >>> q = torch.eye(2)
        >>> float(info_nce(q, q, torch.zeros(3, 2), temperature=1.0))  # log(e + 3) - 1
        0.7436...
    """
    return cross_entropy(info_nce_scores(queries, positives, negatives, temperature=temperature))


def nt_xent_scores(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    temperature: float,
) -> Scores:
    """Scores of all 2 x batch views with each other; a view does not count for itself.

    Row i and row i + batch are the two views of image i.
    """
    batch = len(first)
    views = torch.cat([first, second])
    logits = views @ views.T / temperature
    itself = torch.eye(2 * batch, dtype=torch.bool, device=views.device)
    own = torch.arange(2 * batch, device=views.device).roll(batch)
    return Scores(logits.masked_fill(itself, -math.inf), own)


def nt_xent(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """The normalised temperature-scaled cross-entropy over a batch (SimCLR, eq. 1).

    Every view is a query once; its key is the other view of its image, its negatives are the
    2 x (batch - 1) views of the other images. Mean over the 2 x batch queries. Equal scores give
    log(2 x batch - 1). Gradients flow to queries and keys.

    Example:
        >>> same = torch.ones(4, 2)
        >>> float(nt_xent(same, same, temperature=0.5))  # log(7)
        1.9459...
    """
    return cross_entropy(nt_xent_scores(first, second, temperature=temperature))


def cross_entropy(scores: Scores) -> Float[Tensor, ""]:
    """Mean over queries of -log softmax at the own key, in nats, in at least float32."""
    logits = scores.logits
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    return functional.cross_entropy(logits, scores.own)


def pretext_accuracy(scores: Scores) -> Float[Tensor, ""]:
    """Share of queries that score higher with their own key than with any other.

    A tie does not count: where all features have collapsed to one point every score is the same,
    and the accuracy is 0.
    """
    logits = scores.logits.detach()
    column = scores.own[:, None]
    own = logits.gather(1, column)
    if logits.shape[1] == 1:
        return own.new_ones(())
    best_other = logits.scatter(1, column, -math.inf).amax(dim=1, keepdim=True)
    return (own > best_other).to(own.dtype).mean()
