"""Whether a method with prototypes, as SwAV and DINO, still tells images apart by them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from diptych.logging.progress import Symptom

SAME_PROTOTYPE: Final = 0.5
"""Share of pairs of different images that name the same prototype, above which few are in use."""
LEAST_DIVERGENCE: Final = 0.01
"""Of the loss from the entropy of its targets, as a share of the loss at chance."""
_LINES: Final = 3  # in which it must be seen, after the first
ABOVE_CHANCE: Final = 2.0
"""Times more often than different images do the views of one image name the same prototype."""


def collapsed_prototypes(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Both ways to collapse (DINO, section 5.3): to one prototype, or to all alike for all images.

    Nothing is left to learn where predictions equal targets. Images that are told apart get there
    too, where there are few kinds of them: then the views of one agree more than other images do.

    In the first steps of a run few prototypes may be named for a while, so it takes some lines.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
    """
    words = [_collapse_in_words(line) for line in metrics[-_LINES:]]
    if len(metrics) <= _LINES or not all(words):
        return []
    return [
        Symptom(
            "prototypes_collapsed",
            True,
            f"The prototypes no longer tell images apart: {words[-1]}. What prevents that is "
            "centring and a low teacher's temperature (DINO), or Sinkhorn iterations and a low "
            "method.swav.epsilon (SwAV); or the learning rate is too high.",
        )
    ]


def _collapse_in_words(line: Mapping[str, Any]) -> str:
    """What is wrong in one line; empty if nothing is."""
    if "prototype_agreement" not in line:
        return ""
    agreement, chance = line["prototype_agreement"], line["chance_prototype_agreement"]
    if chance > SAME_PROTOTYPE:
        return f"{chance:.0%} of pairs of different images name the same"
    left = line["target_divergence"]
    if agreement < ABOVE_CHANCE * chance and left < LEAST_DIVERGENCE * line["chance_loss"]:
        return (
            "all images get nearly the same distribution over prototypes (the loss is only "
            f"{left:.3f} above the entropy of its targets)"
        )
    return ""
