"""A comparison scored: the loss, and how many queries found their own key."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.config.method import LossConfig
from diptych.methods import losses
from diptych.methods.dictionaries import Comparison
from diptych.methods.scores import (
    Temperature,
    all_scores,
    batch_exclusions,
    own_scores,
    resolution,
    sum_up,
    sum_up_among,
)


class LookUp(NamedTuple):
    """What came of looking up a batch of queries.

    Attributes:
        loss: (), mean over queries in nats.
        accuracy: (), share of queries that found their own key first; no gradient.
        candidates: keys that each query chose among, its own included.
        chance_loss: the loss of an encoder that cannot tell the candidates apart.
        chance_accuracy: what guessing among the candidates finds. More than one of them where a
            query has several own keys, as all others of its class.
    """

    loss: Float[Tensor, ""]
    accuracy: Float[Tensor, ""]
    candidates: int
    chance_loss: float
    chance_accuracy: float


def look_up(comparison: Comparison, config: LossConfig, *, temperature: Temperature) -> LookUp:
    """Scores each query with its own key and with the others.

    Args:
        comparison: of one own key for each query.
        config: the loss.
        temperature: scores are divided by it.
    """
    own = own_scores(comparison.queries, comparison.positives, temperature=temperature)
    score = _from_sums if config.kind in ("info_nce", "decoupled") else _from_all_scores
    loss, best = score(own, comparison, config, temperature)
    chance = chance_loss(config, comparison.candidates)
    apart = resolution(
        comparison.queries,
        comparison.positives,
        comparison.negatives,
        temperature=temperature,
        stored=comparison.stored,
    )
    accuracy = losses.pretext_accuracy(own.detach(), best, apart)
    return LookUp(loss, accuracy, comparison.candidates, chance, 1.0 / comparison.candidates)


def _from_sums(
    own: Tensor, comparison: Comparison, config: LossConfig, temperature: Temperature
) -> tuple[Tensor, Tensor]:
    """Loss and best negative scores where the log sum exp of scores is enough: in tiles."""
    excluded = comparison.excluded
    if comparison.among and excluded is not None:
        others = sum_up_among(comparison.queries, temperature=temperature, excluded=excluded)
    else:
        others = sum_up(
            comparison.queries, comparison.negatives, temperature=temperature, excluded=excluded
        )
    if config.kind == "decoupled":
        return losses.decoupled_cross_entropy(own, others.log_sum), others.best
    return losses.cross_entropy(own, others.log_sum), others.best


def _from_all_scores(
    own: Tensor, comparison: Comparison, config: LossConfig, temperature: Temperature
) -> tuple[Tensor, Tensor]:
    """Loss and best negative scores where each score counts by itself: all in one matrix."""
    scores = all_scores(
        comparison.queries,
        comparison.negatives,
        temperature=temperature,
        excluded=comparison.excluded,
    )
    learned = losses.semi_hard(own, scores) if config.semi_hard else scores
    if config.kind == "nt_logistic":
        return losses.logistic(own, learned), _largest(scores.detach())
    return losses.margin_triplet(own, learned, margin=config.triplet.margin), _largest(
        scores.detach()
    )


def look_up_many(
    views: Float[Tensor, "views dim"],
    ids: Int[Tensor, " views"],
    config: LossConfig,
    *,
    temperature: Temperature,
    queries: Int[Tensor, " own_views"] | None = None,
) -> LookUp:
    """Scores views that have several own keys each: all other views with the same id.

    Args:
        views: all views of a batch.
        ids: the image of each view, or its class for the supervised loss.
        config: the loss; only its name for chance is read.
        temperature: scores are divided by it.
        queries: the rows that are queries here, where other processes have the rest.
    """
    loss = losses.supervised_contrastive(views, ids, temperature=temperature, queries=queries)
    with torch.no_grad():
        same = batch_exclusions(ids)
        # Of all rows, not of the queries alone, so that all processes have the same.
        own_keys = float((same >= 0).sum()) / len(views) - 1.0
        own = _best_own(views, same) / temperature
        asking = views
        if queries is None:
            best = sum_up_among(views, temperature=temperature, excluded=same).best
        else:
            asking, own, same = views[queries], own[queries], same[queries]
            best = sum_up(asking, views, temperature=temperature, excluded=same).best
    candidates = max(1, len(views) - 1)
    apart = resolution(asking, views, temperature=temperature)
    accuracy = losses.pretext_accuracy(own, best, apart)
    chance = chance_loss(config, candidates)
    return LookUp(loss, accuracy, candidates, chance, own_keys / candidates)


def _best_own(
    views: Float[Tensor, "views dim"], same: Int[Tensor, "views few"]
) -> Float[Tensor, " views"]:
    """Largest product of each view with another of its id; one column at a time saves memory."""
    best = views.new_full((len(views),), -math.inf)
    rows = torch.arange(len(views), device=views.device)
    for column in same.T:
        fits = (views * views[column.clamp(min=0)]).sum(dim=1)
        counts = (column >= 0) & (column != rows)
        best = torch.where(counts, torch.maximum(best, fits), best)
    return best


def chance_loss(config: LossConfig, candidates: int) -> float:
    """The loss where every score is the same.

    ``info_nce`` and ``supervised``: log(candidates). ``decoupled``: log(candidates - 1), as the own
    key is not in its denominator. ``nt_logistic``: 2 log 2, all scores 0. ``triplet``: the margin.
    Semi-hard negatives score below the own key, so then there are none: log 2, and 0.
    """
    if config.kind == "decoupled":
        return math.log(max(1, candidates - 1))
    if config.kind == "nt_logistic":
        return (1 if config.semi_hard else 2) * math.log(2)
    if config.kind == "triplet":
        return 0.0 if config.semi_hard else config.triplet.margin
    return math.log(max(1, candidates))


def _largest(scores: Float[Tensor, "queries keys"]) -> Float[Tensor, " queries"]:
    if not scores.shape[1]:
        return scores.new_full((len(scores),), -math.inf)
    return scores.amax(dim=1)
