"""Plain sentences on what the curves of a run show: what is wrong, and what only looks so."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

COLLAPSED_RANK: Final = 2.0
AT_CHANCE: Final = 0.02  # of the chance level
SHORTCUT_ACCURACY: Final = 0.98


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


def has_choice(line: Mapping[str, Any]) -> bool:
    """Whether queries could choose among keys at a line of metrics.

    At the first step of an empty queue there is their own only, which all find.
    """
    return bool(line["candidates"] > 1)


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
    if health and health[-1]["effective_rank"] < COLLAPSED_RANK:
        found.append(
            Symptom(
                "collapse",
                True,
                f"The features have collapsed: their effective rank is "
                f"{health[-1]['effective_rank']:.1f}, so all images look alike to the encoder. Try "
                "a lower --optimizer.learning-rate or a longer --schedule.warmup-epochs.",
            )
        )
    elif last["epoch"] >= 1 and _is_at_chance(last):
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


def _is_at_chance(last: Mapping[str, Any]) -> bool:
    """Near the loss of equal scores; a loss that is 0 there says nothing."""
    return bool(last["chance"] > 0 and last["loss"] > (1 - AT_CHANCE) * last["chance"])


def _is_shortcut(last: Mapping[str, Any], health: Sequence[Mapping[str, Any]]) -> bool:
    scores = [line["knn"] for line in health if "knn" in line]
    easy = last["accuracy"] >= SHORTCUT_ACCURACY and last["candidates"] > 64
    return bool(easy and len(scores) >= 2 and scores[-1] <= scores[0])
