"""Plain sentences on what the curves of a run show: what is wrong, and what only looks so."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

LEAST_STEPS: Final = 500
"""Warm-up, the filling of a queue and the way of a twin take some hundred steps by themselves."""
COLLAPSED_RANK: Final = 2.0
AT_CHANCE: Final = 0.02  # of the chance level
SHORTCUT_ACCURACY: Final = 0.98
NO_ROOM: Final = 0.98
"""Of the classes right before training: what is left to gain is no more than a slip."""


class Symptom(NamedTuple):
    """One thing to say.

    Attributes:
        name: stable, for programs.
        alarming: whether something is wrong, or it only looks frightening.
        sentence: for people.
    """

    name: str
    alarming: bool
    sentence: str


def chance_accuracy(line: Mapping[str, Any]) -> float:
    """What guessing finds at a line of metrics; one key of the candidates in old lines."""
    return float(line.get("chance_accuracy", 1.0 / line["candidates"]))


def has_choice(line: Mapping[str, Any]) -> bool:
    """Whether queries could choose among keys at a line of metrics.

    At the first step of an empty queue, and in a batch of one class, there are only their own,
    which all find.
    """
    return chance_accuracy(line) < 1.0


def find_symptoms(
    metrics: Sequence[Mapping[str, Any]], *, dictionary_size: int | None
) -> list[Symptom]:
    """Reads the metrics so far, oldest first.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        dictionary_size: keys that a query meets once queue or bank is full; None for a batch.
    """
    if not metrics:
        return []
    last = metrics[-1]
    health = [line for line in metrics if "effective_rank" in line]
    found = []
    if dictionary_size is not None and last["candidates"] < dictionary_size + 1:
        found.append(
            Symptom(
                "dictionary_filling",
                False,
                f"The dictionary is filling ({last['candidates'] - 1:,} of {dictionary_size:,} "
                "keys): loss "
                "and chance level rise together until it is full. This is normal.",
            )
        )
    if health and _is_collapsed(health[-1]):
        found.append(
            Symptom(
                "collapse",
                True,
                f"The features have collapsed: their effective rank is "
                f"{health[-1]['effective_rank']:.1f}, so all images look alike to the encoder. Try "
                "a lower --optimizer.learning-rate or a longer --schedule.warmup-epochs.",
            )
        )
    elif last["epoch"] >= 1 and last["step"] >= LEAST_STEPS and _is_at_chance(last):
        found.append(
            Symptom(
                "at_chance",
                True,
                f"The loss ({last['loss']:.2f}) is still at chance ({last['chance']:.2f}): the "
                "encoder cannot tell one image from another. Try another "
                "--optimizer.learning-rate, or weaker views (--views.strength 0.5).",
            )
        )
    if _is_shortcut(last, health):
        found.append(
            Symptom(
                "shortcut",
                True,
                f"Nearly every query finds its key ({last['accuracy']:.0%}), yet kNN accuracy has "
                "not risen: the encoder may match views by a shortcut, such as colour or batch "
                "statistics. Try stronger views (--views.strength 2, or smaller crops).",
            )
        )
    return found


def _is_collapsed(line: Mapping[str, Any]) -> bool:
    """Of few images, which less their mean have one direction less, the rank is low anyway."""
    most = line.get("rank_images", math.inf) - 1
    return bool(line["effective_rank"] < min(COLLAPSED_RANK, most / 2))


def _is_at_chance(last: Mapping[str, Any]) -> bool:
    """Near the loss of equal scores; a loss that is 0 there says nothing."""
    return bool(last["chance"] > 0 and last["loss"] > (1 - AT_CHANCE) * last["chance"])


def _is_shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> bool:
    """Whether views are matched and classes are not; of a kNN accuracy that could have risen."""
    scores = [line["knn"] for line in health if "knn" in line]
    easy = last["accuracy"] >= SHORTCUT_ACCURACY and chance_accuracy(last) < 1 / 64
    return bool(easy and len(scores) >= 2 and scores[-1] <= scores[0] < NO_ROOM)
