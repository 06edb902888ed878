"""Losses as pure functions: a mean over queries, in nats.

A query q should score high with its own key k+ and low with all others. Scores are dot products
divided by the temperature; for cosines the caller hands in vectors of length one. Below, s+ is the
score with the own key, s- one with a negative.

The first half takes scores and is a line or two each; the second half takes vectors and is what to
call from outside. Where no negative counts for a query it adds nothing to the sum over negatives.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from diptych.methods.scores import (
    Temperature,
    all_scores,
    finds_own,
    mean_positives,
    own_scores,
    sum_up,
    sum_up_among,
)

# Beyond this exponent log(1 + e^x) is x in float64 too; the default, 20, is good for float32 only.
SOFTPLUS_LINEAR_FROM = 40.0


def cross_entropy(
    own: Float[Tensor, " queries"], log_sum: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """Mean of -log( e^s+ / (e^s+ + sum e^s-) ), the negatives given by their log sum exp.

    It is softplus(log_sum - s+), exact also where the loss is close to zero. Equal scores give
    log(1 + negatives).

    Example:
        >>> float(cross_entropy(torch.tensor([2.0]), torch.tensor([2.0])))  # log 2
        0.6931...
    """
    return functional.softplus(log_sum - own, threshold=SOFTPLUS_LINEAR_FROM).mean()


def cross_entropy_of_many(
    own: Float[Tensor, "queries positives"], log_sum: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """Mean over queries and their positives of -log( e^s+ / (sum of all e^s+ + sum of e^s-) ).

    With one positive it is ``cross_entropy``.

    Example:
        >>> float(cross_entropy_of_many(torch.zeros(1, 2), torch.tensor([0.0])))  # log 3
        1.0986...
    """
    candidates = torch.cat([own, log_sum[:, None]], dim=1)
    return -functional.log_softmax(candidates, dim=1)[:, :-1].mean()


def decoupled_cross_entropy(
    own: Float[Tensor, " queries"], log_sum: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """Mean of -log( e^s+ / sum e^s- ): the own key is not in the denominator (DCL, eq. 6).

    It may be negative. Equal scores give log(negatives). A query without negatives adds nothing.

    Example:
        >>> float(decoupled_cross_entropy(torch.tensor([2.0]), torch.tensor([3.0])))
        1.0
    """
    return torch.where(log_sum == -math.inf, 0.0, log_sum - own).mean()


def logistic(
    own: Float[Tensor, " queries"], others: Float[Tensor, "queries keys"]
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(s+) - mean of log sigmoid(-s-) (NT-Logistic; SimCLR, table 2).

    The inner mean is over the negatives that count, whose score is not -inf. Scores of zero give
    2 log 2.

    Example:
        >>> float(logistic(torch.zeros(1), torch.tensor([[0.0, -math.inf]])))
        1.3862...
    """
    attraction = functional.softplus(-own, threshold=SOFTPLUS_LINEAR_FROM)
    repulsion = functional.softplus(others, threshold=SOFTPLUS_LINEAR_FROM)  # of -inf: 0
    return (attraction + repulsion.sum(dim=1) / _counted(others)).mean()


def margin_triplet(
    own: Float[Tensor, " queries"], others: Float[Tensor, "queries keys"], *, margin: float
) -> Float[Tensor, ""]:
    """Mean of max(0, s- - s+ + margin) (margin triplet; SimCLR, table 2).

    The mean is over the negatives that count, whose score is not -inf, and then over queries. Equal
    scores give the margin.

    Example:
        >>> float(margin_triplet(torch.ones(1), torch.tensor([[0.75, -1.0]]), margin=0.5))
        0.125
    """
    violation = functional.relu(others - own[:, None] + margin)  # of -inf: 0
    return (violation.sum(dim=1) / _counted(others)).mean()


def semi_hard(
    own: Float[Tensor, " queries"], others: Float[Tensor, "queries keys"]
) -> Float[Tensor, "queries 1"]:
    """The largest score below the own one: the closest of the keys farther than the own key.

    FaceNet (1503.03832), eq. 4, used in SimCLR's table 4. Where there is none it is -inf, which
    counts for nothing. Of those, the ones outside a triplet's margin give zero loss anyway.

    Example:
        >>> semi_hard(torch.tensor([0.5]), torch.tensor([[0.9, 0.4, 0.1]]))
        tensor([[0.4000]])
    """
    if not others.shape[1]:
        return others.new_full((len(others), 1), -math.inf)
    farther = others.masked_fill(others >= own.detach()[:, None], -math.inf)
    return farther.amax(dim=1, keepdim=True)


def pretext_accuracy(
    own: Float[Tensor, " queries"],
    best: Float[Tensor, " queries"],
    apart: Float[Tensor, " queries"] | float = 0.0,
) -> Float[Tensor, ""]:
    """Share of queries that score higher with their own key than with the best of the others.

    A tie does not count: where all features have collapsed to one point every score is the same,
    and the accuracy is 0. As equal scores that are computed in different ways differ by rounding,
    ``apart`` says what a score must be higher by: see ``scores.resolution``.

    Example:
        >>> float(pretext_accuracy(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.4])))
        0.5
    """
    return finds_own(own, best, apart).to(own.dtype).mean()


def info_nce(
    queries: Float[Tensor, "queries dim"],
    positives: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: Temperature,
    excluded: Int[Tensor, "queries few"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE against a dictionary (CPC, eq. 4; MoCo, eq. 1).

    Mean over queries of -log( exp(q.k+/T) / (exp(q.k+/T) + sum_k exp(q.k/T)) ). Equal scores give
    log(1 + keys).

    Args:
        queries: (queries, dim).
        positives: (queries, dim), each query's own key.
        negatives: (keys, dim), shared by all queries.
        temperature: scores are divided by it; gradients flow to a tensor.
        excluded: (queries, few), negatives that do not count for a query, -1 for none.

    Example:
        >>> q = torch.eye(2)
        >>> float(info_nce(q, q, torch.zeros(3, 2), temperature=1.0))  # log(e + 3) - 1
        0.7436...
    """
    own = own_scores(queries, positives, temperature=temperature)
    others = sum_up(queries, negatives, temperature=temperature, excluded=excluded)
    return cross_entropy(own, others.log_sum)


def nt_xent(*views: Float[Tensor, "batch dim"], temperature: Temperature) -> Float[Tensor, ""]:
    """The normalised temperature-scaled cross-entropy over a batch (SimCLR, eq. 1).

    Every view is a query once; its keys are the other views of its image, its negatives all views
    of the other images. Mean over all views, and over the keys of each, of
    -log( exp(q.k+/T) / sum over all other views of exp(q.k/T) ); for more than two views that is
    SupCon's eq. 2 with images for classes. Equal scores give log(views x batch - 1). Gradients flow
    to queries and keys.

    Args:
        views: two or more of (batch, dim); row i belongs to image i in each.
        temperature: scores are divided by it; gradients flow to a tensor.

    Example:
        >>> same = torch.ones(4, 2)
        >>> float(nt_xent(same, same, temperature=0.5))  # log(7)
        1.9459...
    """
    own, log_sum = _over_batch(views, temperature)
    return (
        cross_entropy_of_many(own, log_sum) if len(views) > 2 else cross_entropy(own[:, 0], log_sum)
    )


def decoupled_nt_xent(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    temperature: Temperature,
) -> Float[Tensor, ""]:
    """NT-Xent without the own key in the denominator (DCL, eq. 6).

    Mean over the 2 x batch views of log( sum over views of other images of exp(q.k/T) ) - q.k+/T.
    Equal scores give log(2 x batch - 2).

    Example:
        >>> same = torch.ones(4, 2)
        >>> float(decoupled_nt_xent(same, same, temperature=0.5))  # log(6)
        1.7917...
    """
    own, log_sum = _over_batch((first, second), temperature)
    return decoupled_cross_entropy(own[:, 0], log_sum)


def nt_logistic(
    queries: Float[Tensor, "queries dim"],
    positives: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: Temperature,
    excluded: Int[Tensor, "queries few"] | None = None,
    semi_hard_only: bool = False,
) -> Float[Tensor, ""]:
    """The temperature-scaled logistic loss (SimCLR, table 2); see ``logistic``.

    Args:
        queries: (queries, dim).
        positives: (queries, dim), each query's own key.
        negatives: (keys, dim), shared by all queries.
        temperature: scores are divided by it; gradients flow to a tensor.
        excluded: (queries, few), negatives that do not count for a query, -1 for none.
        semi_hard_only: each query learns from one negative only; see ``semi_hard``.

    Example:
        >>> q = torch.eye(2)
        >>> float(nt_logistic(q, q.flip(0), torch.zeros(3, 2), temperature=0.1))  # 2 log 2
        1.3862...
    """
    own = own_scores(queries, positives, temperature=temperature)
    others = all_scores(queries, negatives, temperature=temperature, excluded=excluded)
    return logistic(own, semi_hard(own, others) if semi_hard_only else others)


def triplet(
    queries: Float[Tensor, "queries dim"],
    positives: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    margin: float,
    temperature: Temperature = 1.0,
    excluded: Int[Tensor, "queries few"] | None = None,
    semi_hard_only: bool = False,
) -> Float[Tensor, ""]:
    """The margin triplet loss on similarities (SimCLR, table 2); see ``margin_triplet``.

    Args:
        queries: (queries, dim).
        positives: (queries, dim), each query's own key.
        negatives: (keys, dim), shared by all queries.
        margin: by how much the own key must score higher than a negative.
        temperature: scores are divided by it; the paper divides by none.
        excluded: (queries, few), negatives that do not count for a query, -1 for none.
        semi_hard_only: each query learns from one negative only; see ``semi_hard``.

    Example:
        >>> q = torch.eye(2)
        >>> float(triplet(q, q, torch.zeros(3, 2), margin=1.25))
        0.25
    """
    own = own_scores(queries, positives, temperature=temperature)
    others = all_scores(queries, negatives, temperature=temperature, excluded=excluded)
    return margin_triplet(own, semi_hard(own, others) if semi_hard_only else others, margin=margin)


def supervised_contrastive(
    views: Float[Tensor, "views dim"],
    labels: Int[Tensor, " views"],
    *,
    temperature: Temperature,
    queries: Int[Tensor, " own_views"] | None = None,
) -> Float[Tensor, ""]:
    """Supervised contrastive loss, the sum outside of the logarithm (SupCon, eq. 2).

    Mean over the views that share their class with another one, and over all those others, of
    -log( exp(q.k+/T) / sum over all other views of exp(q.k/T) ). Equal scores give log(views - 1).
    Where no view has a partner the loss is 0.

    Args:
        views: (views, dim).
        labels: (views,), the class of each.
        temperature: scores are divided by it; gradients flow to a tensor.
        queries: rows that are queries; all views when not given. The mean over equal parts of the
            rows is the loss of all.

    Example:
        >>> labels = torch.tensor([0, 0, 1, 1, 1, 2])
        >>> float(supervised_contrastive(torch.ones(6, 2), labels, temperature=0.5))  # log(5)
        1.6094...
    """
    itself = torch.arange(len(views), device=views.device)[:, None]
    positives, count = mean_positives(views, labels)
    partnered = (count > 0).sum().clamp(min=1)
    if queries is None:
        others = sum_up_among(views, temperature=temperature, excluded=itself)
        own = own_scores(views, positives, temperature=temperature)
    else:
        asking, itself, count = views[queries], itself[queries], count[queries]
        others = sum_up(asking, views, temperature=temperature, excluded=itself)
        own = own_scores(asking, positives[queries], temperature=temperature)
    losses = torch.where(count > 0, others.log_sum - own, 0.0)
    return losses.sum() / partnered * (len(views) / len(own))


def _over_batch(
    views: tuple[Tensor, ...], temperature: Temperature
) -> tuple[Float[Tensor, "rows positives"], Float[Tensor, " rows"]]:
    """Scores of each view with the other views of its image, and the log sum over the rest."""
    if len(views) < 2:
        raise ValueError(
            f"a batch is contrasted from 2 views of each image or more, not {len(views)}"
        )
    batch, stacked = len(views[0]), torch.cat(views)
    starts = batch * torch.arange(len(views), device=stacked.device)
    rows = torch.arange(len(stacked), device=stacked.device)[:, None]
    others = sum_up_among(stacked, temperature=temperature, excluded=rows % batch + starts)
    own = [
        own_scores(stacked, stacked.roll(turn * batch, dims=0), temperature=temperature)
        for turn in range(1, len(views))
    ]
    return torch.stack(own, dim=1), others.log_sum


def _counted(others: Float[Tensor, "queries keys"]) -> Int[Tensor, " queries"]:
    """How many negatives count for each query; 1 where none does, as it divides."""
    # Not "finite": NaN must come out as NaN.
    return (others != -math.inf).sum(dim=1).clamp(min=1)
