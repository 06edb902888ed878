"""A run in words: what it learned, how sure that is, what to try next."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diptych.evaluation.symptoms import find_symptoms


class Verdict(NamedTuple):
    """A headline and a few sentences that explain it."""

    headline: str
    sentences: tuple[str, ...]


def judge(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
) -> Verdict:
    """Says what the figures of a run mean.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        evaluation: ``evaluation.json``, or None without labels.
    """
    sentences = [*_about_training(metrics)]
    alarms = [s.sentence for s in find_symptoms(metrics, dictionary_size=None) if s.alarming]
    if evaluation is None:
        headline = (
            "Something is wrong with this run."
            if alarms
            else "Training looks healthy; without labels, how useful the features are is not known."
        )
        sentences.append(
            "To measure the features, give labelled images: diptych evaluate RUN --train PATH "
            "--test PATH."
        )
        return Verdict(headline, (*alarms, *sentences))
    headline, explanation = _about_accuracy(evaluation)
    return Verdict(headline, (explanation, *alarms, *sentences))


def _about_accuracy(evaluation: Mapping[str, Any]) -> tuple[str, str]:
    knn, linear = evaluation["knn"], evaluation["linear"]
    protocol = evaluation["protocol"]
    gain, count = knn["trained"] - knn["untrained"], protocol["test_images"]
    # Two independent proportions; the pairing of the images makes the true error smaller.
    error = math.sqrt(sum(knn[k] * (1 - knn[k]) for k in ("trained", "untrained")) / count)
    if gain > 4 * error:
        headline = "The encoder learned: its features are clearly better than before training."
    elif gain > 2 * error:
        headline = "The encoder learned a little: its features are better than before training."
    elif gain > -2 * error:
        headline = "No gain that can be told from chance: train longer, or on more images."
    else:
        headline = "Training made the features worse for these classes."
    rival = "raw pixels" if knn["pixels"] > knn["untrained"] else "the untrained encoder"
    explanation = (
        f"By its {protocol['knn_neighbours']} nearest neighbours, {knn['trained']:.1%} of "
        f"{count:,} test images get the right class, against {knn['untrained']:.1%} with the "
        "untrained encoder and "
        f"{knn['pixels']:.1%} with raw pixels ({gain * 100:+.1f} points over the untrained one, "
        f"give or take {200 * error:.1f}). A linear classifier on the frozen features reaches "
        f"{linear['trained']:.1%}."
    )
    if knn["trained"] < max(knn["pixels"], knn["untrained"]):
        explanation += f" At present {rival} would serve better."
    return headline, explanation


def _about_loss(last: Mapping[str, Any]) -> str:
    begin = f"The loss ended at {last['loss']:.2f} nats, where guessing among "
    if "classes" in last:  # a student's
        return begin + (
            f"{last['classes']:.0f} classes gives {last['chance']:.2f}; on {last['accuracy']:.0%} "
            "of the views student and teacher name the same class."
        )
    return begin + (
        f"{last['candidates']:,} candidates gives {last['chance']:.2f}; {last['accuracy']:.0%} of "
        "the queries found their own key first."
    )


def _about_training(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    if not metrics:
        return []
    last = metrics[-1]
    sentences = [_about_loss(last)]
    ranks = [line["effective_rank"] for line in metrics if "effective_rank" in line]
    if len(ranks) >= 2:
        sentences.append(
            f"The features use about {ranks[-1]:.0f} directions ({ranks[0]:.0f} at the first "
            "measurement)."
        )
    halfway = metrics[len(metrics) // 2]
    scores = [(line["step"], line["knn"]) for line in metrics if "knn" in line]
    late = [score for step, score in scores if step >= halfway["step"]]
    if len(late) >= 3 and late[-1] - late[0] > 0.01:
        sentences.append("kNN accuracy was still rising at the end: a longer run should gain more.")
    return sentences
