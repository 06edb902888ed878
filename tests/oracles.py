"""Independent answers in float64, written from the formulas with plain loops. Slow and obvious."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def nt_xent(first: Array, second: Array, temperature: float) -> float:
    """SimCLR, equation 1, summed over all ordered positive pairs."""
    views = [*first, *second]
    count = len(first)
    total = 0.0
    for i, query in enumerate(views):
        partner = (i + count) % (2 * count)
        scores = [float(np.dot(query, key)) / temperature for k, key in enumerate(views) if k != i]
        largest = max(scores)
        normaliser = largest + math.log(sum(math.exp(s - largest) for s in scores))
        total += normaliser - float(np.dot(query, views[partner])) / temperature
    return total / (2 * count)


def info_nce(queries: Array, positives: Array, negatives: Array, temperature: float) -> float:
    """MoCo, equation 1."""
    total = 0.0
    for query, positive in zip(queries, positives, strict=True):
        own = float(np.dot(query, positive)) / temperature
        scores = [own] + [float(np.dot(query, key)) / temperature for key in negatives]
        largest = max(scores)
        total += largest + math.log(sum(math.exp(s - largest) for s in scores)) - own
    return total / len(queries)


def lars_step(
    weight: Array,
    gradient: Array,
    velocity: Array,
    *,
    rate: float,
    momentum: float,
    decay: float,
    trust: float,
) -> tuple[Array, Array]:
    """You et al. 2017, algorithm 1: the new weight and velocity of one layer."""
    change = gradient + decay * weight
    length, stride = np.sqrt((weight**2).sum()), np.sqrt((change**2).sum())
    local = trust * length / stride if length > 0 and stride > 0 else 1.0
    velocity = momentum * velocity + rate * local * change
    return weight - velocity, velocity


def effective_rank(features: Array) -> float:
    """RankMe, equation 1, from the eigenvalues of the covariance instead of a decomposition."""
    centred = features - features.mean(axis=0)
    values = np.sqrt(np.clip(np.linalg.eigvalsh(centred.T @ centred), 0, None))
    shares = values / values.sum()
    return float(np.exp(-sum(s * math.log(s) for s in shares if s > 1e-12)))


def uniformity(vectors: Array) -> float:
    """Wang and Isola 2020, equation 3, over all pairs of different vectors."""
    potentials = [
        math.exp(-2.0 * float(((a - b) ** 2).sum()))
        for i, a in enumerate(vectors)
        for b in vectors[:i]
    ]
    return math.log(sum(potentials) / len(potentials))


def scores(query: Array, keys: Array, temperature: float, left_out: set[int]) -> list[float]:
    """Scores of a query with the keys that count."""
    kept = [key for column, key in enumerate(keys) if column not in left_out]
    return [float(np.dot(query, key)) / temperature for key in kept]


def log_sum_exp(values: list[float]) -> float:
    """Of nothing: -inf."""
    if not values:
        return -math.inf
    largest = max(values)
    return largest + math.log(sum(math.exp(value - largest) for value in values))


def supervised_contrastive(views: Array, labels: list[int], temperature: float) -> float:
    """SupCon, equation 2; views without another of their class are no queries."""
    losses = []
    for i, query in enumerate(views):
        partners = [p for p, label in enumerate(labels) if label == labels[i] and p != i]
        normaliser = log_sum_exp(scores(query, views, temperature, {i}))
        terms = [normaliser - float(np.dot(query, views[p])) / temperature for p in partners]
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


def decoupled_nt_xent(first: Array, second: Array, temperature: float) -> float:
    """DCL, equation 6, as a mean over images and views."""
    views, count = np.concatenate([first, second]), len(first)
    total = 0.0
    for i, query in enumerate(views):
        partner = (i + count) % (2 * count)
        normaliser = log_sum_exp(scores(query, views, temperature, {i, partner}))
        total += normaliser - float(np.dot(query, views[partner])) / temperature
    return total / (2 * count)


def hardest_below(own: float, others: list[float]) -> list[float]:
    """The largest of the others that is smaller than the own score, if there is one."""
    return sorted(score for score in others if score < own)[-1:]


def nt_logistic(
    queries: Array,
    positives: Array,
    negatives: Array,
    temperature: float,
    left_out: list[set[int]],
    semi_hard_only: bool,
) -> float:
    """SimCLR, table 2, NT-Logistic, with the mean over the negatives."""
    total = 0.0
    for query, positive, columns in zip(queries, positives, left_out, strict=True):
        own = float(np.dot(query, positive)) / temperature
        others = scores(query, negatives, temperature, columns)
        others = hardest_below(own, others) if semi_hard_only else others
        total -= math.log(1 / (1 + math.exp(-own)))
        for other in others:
            total -= math.log(1 / (1 + math.exp(other))) / len(others)
    return total / len(queries)


def triplet(
    queries: Array,
    positives: Array,
    negatives: Array,
    margin: float,
    left_out: list[set[int]],
    semi_hard_only: bool,
) -> float:
    """SimCLR, table 2, margin triplet, with the mean over the negatives."""
    total = 0.0
    for query, positive, columns in zip(queries, positives, left_out, strict=True):
        own = float(np.dot(query, positive))
        others = scores(query, negatives, 1.0, columns)
        others = hardest_below(own, others) if semi_hard_only else others
        for other in others:
            total += max(0.0, other - own + margin) / len(others)
    return total / len(queries)
