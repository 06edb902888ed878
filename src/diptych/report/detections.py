"""Detection transfer as bars with intervals, for the page."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from diptych.errors import RunFolderError
from diptych.evaluation.split import split_words
from diptych.report.results import Bar, Group, Panel

_ROWS: Final[Mapping[str, tuple[str, str]]] = {
    "pretrained": ("trained", "on the trained ResNet"),
    "untrained": ("untrained", "on untrained ResNets"),
}
"""Backbones as in ``detection.json``: how they are drawn, and what they are called."""

_FIGURES: Final[Mapping[str, str]] = {
    "mAP": "mAP, mean over overlaps of 0.5 to 0.95",
    "AP50": "AP50, overlap of half",
    "AP75": "AP75, overlap of three quarters",
}


def read_detection(path: Path) -> dict[str, Any] | None:
    """What ``diptych detect`` wrote; None where it has not been run.

    Raises:
        RunFolderError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        detection_group(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is not what `diptych detect` writes ({error!r}). Delete it, and give the "
            "command again: detectors that are done are kept."
        ) from error
    return found


def detection_group(found: Mapping[str, Any]) -> Group:
    """Average precision by overlap and by class, of both backbones."""
    protocol = found["protocol"]
    seeds = protocol["seeds"]
    text = (
        f"A Faster R-CNN with a feature pyramid, fine-tuned for {protocol['epochs']} epochs; the "
        "same but for the weights that the ResNet begins with. "
        f"{split_words(found.get('split'))} "
        f"{f'Means of {seeds} seeds.' if seeds > 1 else 'One seed.'} COCO's average precision."
    )
    panels = [
        _panel(_FIGURES.get(name, f"mAP of {name}"), name, found)
        for name, difference in found["difference"].items()
        if difference["value"] is not None
    ]
    return Group(f"Finding objects: {Path(protocol['data']).name}", text, tuple(panels))


def _panel(title: str, name: str, found: Mapping[str, Any]) -> Panel:
    bars = []
    for backbone, (key, words) in _ROWS.items():
        figure = found["backbones"][backbone]["figures"][name]
        bars.append(Bar(key, words, figure["value"], figure["low"], figure["high"]))
    difference = found["difference"][name]
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    gain = f"{value:+.1f} points over untrained ResNets ({low:+.1f} to {high:+.1f})"
    return Panel(title, tuple(bars), gain=gain)
