"""What a loss is, and what a comparison of queries with keys comes to: loss and metrics."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from diptych.config.method import LossConfig
from diptych.errors import ConfigError
from diptych.methods.dictionaries import Comparison
from diptych.methods.logits import (
    SummedLogits,
    Temperature,
    batch_exclusions,
    in_batch_logsumexp,
    logit_rounding,
    negative_logits,
    negatives_logsumexp,
    positive_logits,
    pretext_accuracy,
    semi_hard,
)
from diptych.methods.method import StepOutput, scalar


@dataclass(frozen=True)
class Loss:
    """What a contrastive method learns by: an entry of ``losses.LOSSES``, or a loss of your own.

    Attributes:
        one_positive: (positive_logits, negatives, settings) to (), the mean over queries that have
            one positive key each. ``negatives`` is (queries,), the log sum exp of the negative
            logits, or (queries, keys) with ``needs_all_logits``. None where it takes several
            positives only.
        at_chance: (candidates, settings) to the loss where all logits are the same, the positive
            being one of so many candidates. When not given, what ``one_positive`` is where all
            logits are zero.
        many_positives: the loss where views are keys of each other and more than two belong
            together, called as ``supervised_contrastive``; None where it cannot be.
        needs_all_logits: it needs each negative logit by itself, in a matrix, -inf where a key does
            not count. Else they are summed up in tiles, which takes far less memory.
        needs_labels: positives are the views of the same class, by ``many_positives``.
    """

    one_positive: Callable[[Tensor, Tensor, LossConfig], Tensor] | None
    at_chance: Callable[[int, LossConfig], float] | None = None
    many_positives: Callable[..., Tensor] | None = None
    needs_all_logits: bool = False
    needs_labels: bool = False

    def __post_init__(self) -> None:
        if self.one_positive is None and (self.at_chance is None or self.many_positives is None):
            raise ConfigError(
                "a Loss without one_positive needs many_positives and at_chance; got "
                f"many_positives={self.many_positives}, at_chance={self.at_chance}."
            )


def contrast(
    comparison: Comparison, loss: Loss, settings: LossConfig, *, temperature: Temperature
) -> StepOutput:
    """The loss of queries that have one positive key each.

    Args:
        comparison: what each query is compared with.
        loss: of ``LOSSES``, or another.
        settings: margin and the like.
        temperature: dot products are divided by it.

    Returns:
        The loss and these metrics: ``pretext_accuracy``, the share of queries whose positive key
        has the highest logit; ``candidates``, keys among which it was, the positive included; and
        what loss and accuracy are at chance.
    """
    assert loss.one_positive is not None
    queries, negatives, excluded = comparison.queries, comparison.negatives, comparison.excluded
    positive = positive_logits(queries, comparison.positives, temperature=temperature)
    if loss.needs_all_logits:
        logits = negative_logits(queries, negatives, temperature=temperature, excluded=excluded)
        learned = semi_hard(positive, logits) if settings.semi_hard else logits
        # The accuracy is against all negatives, also where the loss learns from a semi-hard one.
        value, largest = loss.one_positive(positive, learned, settings), _largest(logits.detach())
    else:
        summed = _summed(comparison, temperature)
        value, largest = loss.one_positive(positive, summed.logsumexp, settings), summed.largest
    rounding = logit_rounding(
        queries,
        comparison.positives,
        negatives,
        temperature=temperature,
        stored_dtype=comparison.stored_dtype,
    )
    accuracy = pretext_accuracy(positive.detach(), largest, rounding)
    chance = 1.0 / comparison.candidates
    return _output(value, accuracy, comparison.candidates, chance, loss, settings)


def contrast_many(
    views: Float[Tensor, "views dim"],
    ids: Int[Tensor, " views"],
    loss: Loss,
    settings: LossConfig,
    *,
    temperature: Temperature,
    queries: Int[Tensor, " own_views"] | None = None,
) -> StepOutput:
    """The loss of views that have several positive keys each: all other views with the same id.

    A query counts for the accuracy if any of its positive keys has the highest logit.

    Args:
        views: all views of a batch.
        ids: the image of each view, or its class.
        loss: of ``LOSSES``, or another; one for many positives.
        settings: margin and the like.
        temperature: dot products are divided by it.
        queries: the rows that are queries here, where other processes have the rest.
    """
    assert loss.many_positives is not None
    value = loss.many_positives(views, ids, temperature=temperature, queries=queries)
    with torch.no_grad():
        # A second sum, for the metrics: it leaves out all positives, not the view alone.
        same = batch_exclusions(ids)
        # Of all rows, not of the queries alone, so that all processes have the same.
        positive_keys = float((same >= 0).sum()) / len(views) - 1.0
        positive = _largest_positive(views, same) / temperature
        asking = views
        if queries is None:
            summed = in_batch_logsumexp(views, temperature=temperature, excluded=same)
        else:
            asking, positive, same = views[queries], positive[queries], same[queries]
            summed = negatives_logsumexp(asking, views, temperature=temperature, excluded=same)
    candidates = max(1, len(views) - 1)
    rounding = logit_rounding(asking, views, temperature=temperature)
    accuracy = pretext_accuracy(positive, summed.largest, rounding)
    return _output(value, accuracy, candidates, positive_keys / candidates, loss, settings)


def _output(
    value: Tensor,
    accuracy: Tensor,
    candidates: int,
    chance_accuracy: float,
    loss: Loss,
    settings: LossConfig,
) -> StepOutput:
    if value.shape:
        raise ConfigError(
            "a loss must give one number, the mean over queries; the one of your own gave a tensor "
            f"of shape {tuple(value.shape)}. Take its mean."
        )
    metrics = {
        "chance_loss": scalar(_at_chance(loss, candidates, settings)),
        "pretext_accuracy": accuracy,
        "chance_pretext_accuracy": scalar(chance_accuracy),
        "candidates": scalar(candidates),
    }
    return StepOutput(value, metrics)


def _at_chance(loss: Loss, candidates: int, settings: LossConfig) -> float:
    if loss.at_chance is not None:
        return loss.at_chance(candidates, settings)
    assert loss.one_positive is not None
    zeros = torch.zeros(1, candidates - 1, dtype=torch.float64)
    negatives = zeros if loss.needs_all_logits else zeros.logsumexp(dim=1)
    return float(loss.one_positive(torch.zeros(1, dtype=torch.float64), negatives, settings))


def _summed(comparison: Comparison, temperature: Temperature) -> SummedLogits:
    """Negative logits in tiles; in half of them where queries and negatives are the same."""
    queries, excluded = comparison.queries, comparison.excluded
    if comparison.in_batch and excluded is not None:
        return in_batch_logsumexp(queries, temperature=temperature, excluded=excluded)
    return negatives_logsumexp(
        queries, comparison.negatives, temperature=temperature, excluded=excluded
    )


def _largest_positive(
    views: Float[Tensor, "views dim"], same: Int[Tensor, "views few"]
) -> Float[Tensor, " views"]:
    """Largest product of each view with another of its id; one column at a time saves memory."""
    largest = views.new_full((len(views),), -math.inf)
    rows = torch.arange(len(views), device=views.device)
    for column in same.T:
        products = (views * views[column.clamp(min=0)]).sum(dim=1)
        counts = (column >= 0) & (column != rows)
        largest = torch.where(counts, torch.maximum(largest, products), largest)
    return largest


def _largest(logits: Float[Tensor, "queries keys"]) -> Float[Tensor, " queries"]:
    if not logits.shape[1]:
        return logits.new_full((len(logits),), -math.inf)
    return logits.amax(dim=1)
