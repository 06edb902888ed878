"""Losses as pure functions, a mean over queries in nats, and the table of those that train a run.

A query q should score high with its positive key k+ and low with all others. A logit is a dot
product divided by the temperature; for cosines the caller hands in vectors of length one. Below, s+
is the logit with the positive key, s- one with a negative.

The first part takes logits and is a line or two each; the second takes vectors and is what to call
from outside. Where no negative counts for a query it adds nothing to the sum over negatives. The
table ``LOSSES`` at the end says what each loss needs.
"""

import math
from collections.abc import Mapping
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from diptych.config.method import LossConfig
from diptych.config.run import OWN, RunConfig
from diptych.errors import ConfigError
from diptych.methods.logits import (
    Temperature,
    in_batch_logsumexp,
    mean_positives,
    negative_logits,
    negatives_logsumexp,
    positive_logits,
    semi_hard,
)
from diptych.methods.objective import Loss

# Beyond this exponent log(1 + e^x) is x in float64 too; the default, 20, is good for float32 only.
SOFTPLUS_LINEAR_FROM = 40.0


def cross_entropy(
    positive: Float[Tensor, " queries"], logsumexp: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """Mean of -log( e^s+ / (e^s+ + sum e^s-) ), the negatives given by their log sum exp.

    It is softplus(logsumexp - s+), exact also where the loss is close to zero. Equal logits give
    log(1 + negatives).

    Example:
        >>> float(cross_entropy(torch.tensor([2.0]), torch.tensor([2.0])))  # log 2
        0.6931...
    """
    return functional.softplus(logsumexp - positive, threshold=SOFTPLUS_LINEAR_FROM).mean()


def cross_entropy_of_many(
    positives: Float[Tensor, "queries positives"], logsumexp: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """Mean over queries and their positives of -log( e^s+ / (sum of all e^s+ + sum of e^s-) ).

    With one positive it is ``cross_entropy``.

    Example:
        >>> float(cross_entropy_of_many(torch.zeros(1, 2), torch.tensor([0.0])))  # log 3
        1.0986...
    """
    candidates = torch.cat([positives, logsumexp[:, None]], dim=1)
    return -functional.log_softmax(candidates, dim=1)[:, :-1].mean()


def decoupled_cross_entropy(
    positive: Float[Tensor, " queries"], logsumexp: Float[Tensor, " queries"]
) -> Float[Tensor, ""]:
    """Mean of -log( e^s+ / sum e^s- ): the positive is not in the denominator (DCL, eq. 6).

    It may be negative. Equal logits give log(negatives). A query without negatives adds nothing.

    Example:
        >>> float(decoupled_cross_entropy(torch.tensor([2.0]), torch.tensor([3.0])))
        1.0
    """
    # Chosen, not multiplied by a mask: 0 times -inf is NaN.
    return torch.where(logsumexp == -math.inf, 0.0, logsumexp - positive).mean()


def logistic(
    positive: Float[Tensor, " queries"], negatives: Float[Tensor, "queries keys"]
) -> Float[Tensor, ""]:
    """Mean of -log sigmoid(s+) - mean of log sigmoid(-s-) (NT-Logistic; SimCLR, table 2).

    The inner mean is over the negatives that count, whose logit is not -inf. Logits of zero give
    2 log 2.

    Example:
        >>> float(logistic(torch.zeros(1), torch.tensor([[0.0, -math.inf]])))
        1.3862...
    """
    attraction = functional.softplus(-positive, threshold=SOFTPLUS_LINEAR_FROM)
    repulsion = functional.softplus(negatives, threshold=SOFTPLUS_LINEAR_FROM)  # of -inf: 0
    return (attraction + repulsion.sum(dim=1) / _counted(negatives)).mean()


def margin_triplet(
    positive: Float[Tensor, " queries"], negatives: Float[Tensor, "queries keys"], *, margin: float
) -> Float[Tensor, ""]:
    """Mean of max(0, s- - s+ + margin) (margin triplet; SimCLR, table 2).

    The mean is over the negatives that count, whose logit is not -inf, and then over queries. Equal
    logits give the margin.

    Example:
        >>> float(margin_triplet(torch.ones(1), torch.tensor([[0.75, -1.0]]), margin=0.5))
        0.125
    """
    violation = functional.relu(negatives - positive[:, None] + margin)  # of -inf: 0
    return (violation.sum(dim=1) / _counted(negatives)).mean()


def info_nce(
    queries: Float[Tensor, "queries dim"],
    positives: Float[Tensor, "queries dim"],
    negatives: Float[Tensor, "keys dim"],
    *,
    temperature: Temperature,
    excluded: Int[Tensor, "queries few"] | None = None,
) -> Float[Tensor, ""]:
    """InfoNCE against a dictionary (CPC, eq. 4; MoCo, eq. 1).

    Mean over queries of -log( exp(q.k+/T) / (exp(q.k+/T) + sum_k exp(q.k/T)) ). Equal logits give
    log(1 + keys).

    Args:
        queries: (queries, dim).
        positives: (queries, dim), each query's positive key.
        negatives: (keys, dim), shared by all queries.
        temperature: dot products are divided by it; gradients flow to a tensor.
        excluded: (queries, few), negatives that do not count for a query, -1 for none.

    Example:
        >>> q = torch.eye(2)
        >>> float(info_nce(q, q, torch.zeros(3, 2), temperature=1.0))  # log(e + 3) - 1
        0.7436...
    """
    positive = positive_logits(queries, positives, temperature=temperature)
    summed = negatives_logsumexp(queries, negatives, temperature=temperature, excluded=excluded)
    return cross_entropy(positive, summed.logsumexp)


def nt_xent(*views: Float[Tensor, "batch dim"], temperature: Temperature) -> Float[Tensor, ""]:
    """The normalised temperature-scaled cross-entropy over a batch (SimCLR, eq. 1).

    Every view is a query once; its keys are the other views of its image, its negatives all views
    of the other images. Mean over all views, and over the keys of each, of
    -log( exp(q.k+/T) / sum over all other views of exp(q.k/T) ); for more than two views that is
    SupCon's eq. 2 with images for classes. Equal logits give log(views x batch - 1). Gradients flow
    to queries and keys.

    Args:
        views: two or more of (batch, dim); row i belongs to image i in each.
        temperature: dot products are divided by it; gradients flow to a tensor.

    Example:
        >>> same = torch.ones(4, 2)
        >>> float(nt_xent(same, same, temperature=0.5))  # log(7)
        1.9459...
    """
    positives, logsumexp = _over_batch(views, temperature)
    if len(views) > 2:
        return cross_entropy_of_many(positives, logsumexp)
    return cross_entropy(positives[:, 0], logsumexp)


def decoupled_nt_xent(
    first: Float[Tensor, "batch dim"],
    second: Float[Tensor, "batch dim"],
    *,
    temperature: Temperature,
) -> Float[Tensor, ""]:
    """NT-Xent without the positive key in the denominator (DCL, eq. 6).

    Mean over the 2 x batch views of log( sum over views of other images of exp(q.k/T) ) - q.k+/T.
    Equal logits give log(2 x batch - 2).

    Example:
        >>> same = torch.ones(4, 2)
        >>> float(decoupled_nt_xent(same, same, temperature=0.5))  # log(6)
        1.7917...
    """
    positives, logsumexp = _over_batch((first, second), temperature)
    return decoupled_cross_entropy(positives[:, 0], logsumexp)


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

    Arguments are those of ``info_nce``; with ``semi_hard_only`` each query learns from one negative
    only, see ``semi_hard``.

    Example:
        >>> q = torch.eye(2)
        >>> float(nt_logistic(q, q.flip(0), torch.zeros(3, 2), temperature=0.1))  # 2 log 2
        1.3862...
    """
    positive = positive_logits(queries, positives, temperature=temperature)
    negative = negative_logits(queries, negatives, temperature=temperature, excluded=excluded)
    return logistic(positive, semi_hard(positive, negative) if semi_hard_only else negative)


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

    Arguments are those of ``nt_logistic``, and ``margin``, by which the positive logit must exceed
    a negative one. The paper divides by no temperature.

    Example:
        >>> q = torch.eye(2)
        >>> float(triplet(q, q, torch.zeros(3, 2), margin=1.25))
        0.25
    """
    positive = positive_logits(queries, positives, temperature=temperature)
    negative = negative_logits(queries, negatives, temperature=temperature, excluded=excluded)
    learned = semi_hard(positive, negative) if semi_hard_only else negative
    return margin_triplet(positive, learned, margin=margin)


def supervised_contrastive(
    views: Float[Tensor, "views dim"],
    labels: Int[Tensor, " views"],
    *,
    temperature: Temperature,
    queries: Int[Tensor, " own_views"] | None = None,
) -> Float[Tensor, ""]:
    """Supervised contrastive loss, the sum outside of the logarithm (SupCon, eq. 2).

    Mean over the views that share their class with another one, and over all those others, of
    -log( exp(q.k+/T) / sum over all other views of exp(q.k/T) ). Equal logits give log(views - 1).
    Where no view has a partner the loss is 0.

    Args:
        views: (views, dim).
        labels: (views,), the class of each.
        temperature: dot products are divided by it; gradients flow to a tensor.
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
        summed = in_batch_logsumexp(views, temperature=temperature, excluded=itself)
        positive = positive_logits(views, positives, temperature=temperature)
    else:
        asking, itself, count = views[queries], itself[queries], count[queries]
        summed = negatives_logsumexp(asking, views, temperature=temperature, excluded=itself)
        positive = positive_logits(asking, positives[queries], temperature=temperature)
    losses = torch.where(count > 0, summed.logsumexp - positive, 0.0)
    # By the partnered of all rows, not of this part: then the mean over processes is the whole.
    return losses.sum() / partnered * (len(views) / len(positive))


def _over_batch(
    views: tuple[Tensor, ...], temperature: Temperature
) -> tuple[Float[Tensor, "rows positives"], Float[Tensor, " rows"]]:
    """Logits of each view with the other views of its image, and the log sum exp of the rest."""
    if len(views) < 2:
        raise ValueError(
            f"a batch is contrasted from 2 views of each image or more, not {len(views)}"
        )
    batch, stacked = len(views[0]), torch.cat(views)
    starts = batch * torch.arange(len(views), device=stacked.device)
    rows = torch.arange(len(stacked), device=stacked.device)[:, None]
    # All views of the own image are left out; the losses add its positives themselves.
    summed = in_batch_logsumexp(stacked, temperature=temperature, excluded=rows % batch + starts)
    positives = [
        positive_logits(stacked, stacked.roll(turn * batch, dims=0), temperature=temperature)
        for turn in range(1, len(views))
    ]
    return torch.stack(positives, dim=1), summed.logsumexp


def _counted(negatives: Float[Tensor, "queries keys"]) -> Int[Tensor, " queries"]:
    """How many negatives count for each query; 1 where none does, as it divides."""
    # Not "isfinite": a logit that is NaN must count, so that the loss is NaN.
    return (negatives != -math.inf).sum(dim=1).clamp(min=1)


def _log_of_candidates(candidates: int, settings: LossConfig) -> float:
    return math.log(max(1, candidates))


LOSSES: Final[Mapping[str, Loss]] = {
    "info_nce": Loss(
        lambda positive, logsumexp, _: cross_entropy(positive, logsumexp),
        _log_of_candidates,
        supervised_contrastive,
    ),
    "decoupled": Loss(
        lambda positive, logsumexp, _: decoupled_cross_entropy(positive, logsumexp),
        # The positive is not in the denominator.
        lambda candidates, _: math.log(max(1, candidates - 1)),
    ),
    # Semi-hard negatives lie below the positive, so at chance there are none.
    "nt_logistic": Loss(
        lambda positive, negatives, _: logistic(positive, negatives),
        lambda _, settings: (1 if settings.semi_hard else 2) * math.log(2),
        needs_all_logits=True,
    ),
    "triplet": Loss(
        lambda positive, negatives, settings: margin_triplet(
            positive, negatives, margin=settings.triplet.margin
        ),
        lambda _, settings: 0.0 if settings.semi_hard else settings.triplet.margin,
        needs_all_logits=True,
    ),
    "supervised": Loss(None, _log_of_candidates, supervised_contrastive, needs_labels=True),
}
"""By ``method.loss.kind``."""


def find_loss(kind: str) -> Loss:
    """The loss that ``method.loss.kind`` names.

    Raises:
        ConfigError: there is none of that name; says which there are.
    """
    if kind == OWN:
        raise ConfigError(
            "method.loss.kind = 'own' is a loss that was given in Python and is not at hand here; "
            "diptych.pretrain takes it as loss=LOSS."
        )
    if kind not in LOSSES:
        raise ConfigError(f"method.loss.kind must be one of {', '.join(LOSSES)}; got {kind!r}.")
    return LOSSES[kind]


def require_fitting_loss(config: RunConfig, loss: Loss | None = None) -> Loss:
    """The loss of a config, or one given in its place, if it goes with the other settings.

    Raises:
        ConfigError: names the settings, and says which would go together.
    """
    method, settings = config.method, config.method.loss
    kind = settings.kind if loss is None else "of your own"
    loss = find_loss(settings.kind) if loss is None else loss
    views_are_keys = (
        method.dictionary.kind == "batch"
        and method.dictionary.batch.both_views
        and method.key_encoder.kind == "shared"
    )
    several = method.views > 2 or config.views.small_views > 0
    if (loss.needs_labels or loss.one_positive is None) and not views_are_keys:
        raise ConfigError(
            f"method.loss.kind = {kind!r} goes with the dictionary 'batch' and both_views; got "
            f"{method.dictionary.kind!r}."
        )
    if loss.many_positives is None and (loss.needs_labels or (views_are_keys and several)):
        names = " and ".join(name for name, one in LOSSES.items() if one.many_positives)
        raise ConfigError(
            "more than two views that are keys of each other go with the losses "
            f"{names}; got {kind!r}."
        )
    if settings.semi_hard and not loss.needs_all_logits:
        names = " and ".join(name for name, one in LOSSES.items() if one.needs_all_logits)
        raise ConfigError(f"method.loss.semi_hard goes with the kinds {names}; got {kind!r}.")
    if loss.needs_labels and config.images.group_by is not None:
        raise ConfigError(
            f"images.group_by and method.loss.kind = {kind!r} both say which images are keys of "
            f"each other; leave one of them out; got {config.images.group_by!r}."
        )
    if loss.one_positive is None and config.images.group_within is not None:
        raise ConfigError(
            f"method.loss.kind = {kind!r} makes all images of a group in a batch positives of each "
            f"other, near or not: leave out images.group_within; got {config.images.group_within}."
        )
    return loss
