"""A run in words: what it learned, how sure that is, what to try next."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from diptych.evaluation.conclusions import conclusions, decisive_probe, headline
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
    probe = None if evaluation is None else decisive_probe(evaluation)
    if evaluation is None or probe is None:
        unsure = (
            "Something is wrong with this run."
            if alarms
            else "Training looks healthy; without labels, how useful the features are is not known."
        )
        sentences.append(
            "To measure the features, give labelled images: diptych evaluate RUN --train PATH "
            "--test PATH."
        )
        return Verdict(unsure, (*alarms, *sentences))
    explained = conclusions(evaluation, probe)
    return Verdict(headline(evaluation, probe), (explained[0], *alarms, *explained[1:], *sentences))


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
