"""Whether a method with prototypes, as SwAV and DINO, still tells images apart by them."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from diptych.logging.progress import Symptom

NAMED_BY_ALL: Final = 1.5
"""Prototypes that are named in a batch; below, nearly all images name the same."""
LEAST_DIVERGENCE: Final = 0.01
"""Of the loss from the entropy of its targets, as a share of the loss at chance."""


def collapsed_prototypes(metrics: Sequence[Mapping[str, Any]]) -> list[Symptom]:
    """Both ways to collapse (DINO, section 5.3): to one prototype, or to all alike for all images.

    Where predictions equal targets for all images there is nothing left to learn, and a target
    that is the same for all images is the only way to get there.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
    """
    if len(metrics) < 2 or "named_prototypes" not in metrics[-1]:
        return []
    last = metrics[-1]
    if last["named_prototypes"] < NAMED_BY_ALL:
        what = f"in effect {last['named_prototypes']:.1f} prototypes are named by all images"
    elif last["target_divergence"] < LEAST_DIVERGENCE * last["chance_loss"]:
        what = (
            "all images get nearly the same distribution over prototypes (the loss is only "
            f"{last['target_divergence']:.3f} above the entropy of its targets)"
        )
    else:
        return []
    return [
        Symptom(
            "prototypes_collapsed",
            True,
            f"The prototypes no longer tell images apart: {what}. What prevents that is centring "
            "and a low teacher's temperature (DINO), or Sinkhorn iterations and a low "
            "method.swav.epsilon (SwAV); or the learning rate is too high.",
        )
    ]
