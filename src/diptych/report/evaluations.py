"""All evaluations of a run as groups of bars with intervals, for the page and the terminal."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from diptych.errors import RunFolderError
from diptych.evaluation.split import split_words

NAMES: Final[Mapping[str, str]] = {
    "trained": "trained encoder",
    "untrained": "untrained encoder",
    "pixels": "raw pixels",
    "supervised": "trained on the labels",
}
"""What the encoders are called; others go by their path."""

_METRICS: Final[Mapping[str, str]] = {
    "accuracy": "accuracy",
    "mean_per_class": "mean per class",
    "auc": "ROC AUC",
    "f1": "F1",
}


@dataclass(frozen=True)
class Bar:
    """One figure of one encoder.

    Attributes:
        key: of the encoder, as in ``evaluation.json``.
        words: its name.
        value: a share.
        low, high: of its interval; None where none is known.
    """

    key: str
    words: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def text(self) -> str:
        """The figure in percent."""
        return f"{self.value:.1%}"

    @property
    def range(self) -> str:
        """The interval in percent, or nothing."""
        if self.low is None or self.high is None:
            return ""
        return f"{100 * self.low:.1f} to {100 * self.high:.1f}"


@dataclass(frozen=True)
class Panel:
    """Bars of the same figure.

    Attributes:
        title: which figure.
        bars: of each encoder, the trained one first.
        chance: share that is right without looking; None where there is no such thing.
        images: on which images, in sentences; empty where all panels of the group have the same.
        gain: a sentence on what the trained encoder gains, with its interval.
    """

    title: str
    bars: tuple[Bar, ...]
    chance: float | None = None
    gain: str = ""
    images: str = ""


@dataclass(frozen=True)
class Group:
    """Panels that answer one question.

    Attributes:
        title: the question.
        text: how it was asked.
        panels: the answers.
    """

    title: str
    text: str
    panels: tuple[Panel, ...]


def groups_of(evaluation: Mapping[str, Any]) -> list[Group]:
    """Everything in ``evaluation.json`` that is a share, in the order in which one asks."""
    found = [
        _frozen(evaluation),
        _finetune(evaluation),
        *_transfer(evaluation),
        *_transformations(evaluation),
    ]
    return [group for group in found if group.panels]


def tested_images(evaluation: Mapping[str, Any], protocol: str) -> str:
    """The images that a protocol measured on, as a part of a sentence."""
    split = evaluation.get("details", {}).get(protocol, {}).get("split")
    return "images not recorded" if split is None else str(split["tested"])


def geometry_images(evaluation: Mapping[str, Any]) -> str:
    """On which images the geometry was measured."""
    return split_words(evaluation.get("geometry", {}).get("split"))


def geometry_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """How the features of each layer lie: layer, alignment, uniformity, rank, spread, collapsed."""
    rows: list[tuple[str, ...]] = []
    for encoder in ("trained", "untrained"):
        for layer, one in evaluation.get("geometry", {}).get(encoder, {}).items():
            alignment = "" if one["alignment"] is None else f"{one['alignment']:.2f}"
            rows.append(
                (
                    f"{layer}, {encoder}",
                    alignment,
                    f"{one['uniformity']:.2f}",
                    f"{one['effective_rank']:.1f} of {one['dimensions']}",
                    f"{one['spread']:.2f}",
                    f"{one['collapsed_share']:.0%}",
                )
            )
    return rows


def _frozen(evaluation: Mapping[str, Any]) -> Group:
    shared = evaluation.get("protocol", {})
    titles = {
        "knn": f"{_neighbours(evaluation, 'knn')} nearest neighbours",
        "linear": "linear classifier",
        "linear_sgd": "linear classifier by SGD, crop and flip",
        "knn_leave_one_out": f"{_neighbours(evaluation, 'knn_leave_one_out')} nearest neighbours, "
        "each image by all others",
    }
    panels = []
    for name, title in titles.items():
        if name in evaluation:
            metric = _detail(evaluation, name, "metrics", "accuracy")
            settings = _settings(evaluation, name) or shared
            panel = _panel(title, evaluation[name], metric, settings.get("chance"))
            panels.append(replace(panel, images=_images(evaluation, name)))
    return _with_images("How good the frozen features are", "The encoder is frozen.", panels)


def _neighbours(evaluation: Mapping[str, Any], protocol: str) -> int:
    settings = _settings(evaluation, protocol) or evaluation.get("protocol", {})
    return int(settings.get("knn_neighbours", 20))


def _finetune(evaluation: Mapping[str, Any]) -> Group:
    panels = []
    for share, values in evaluation.get("finetune", {}).items():
        detail = _detail(evaluation, "finetune", "shares", share)
        chance = _settings(evaluation, "finetune").get("chance")
        title = f"{_percent(float(share))}: {detail['images']:,} images"
        panel = _panel(title, values, detail, chance)
        panels.append(replace(panel, images=_images(evaluation, "finetune")))
    seeds = _settings(evaluation, "finetune").get("seeds", 1)
    text = (
        "Encoder and classifier learn together from a share of the labels, the same of each class. "
        "The untrained encoder shows what labels alone can do, with a schedule of its own, which "
        "serves it best on a fifth of its labels. "
    )
    text += (
        f"Means of {seeds} seeds, with the interval over seeds."
        if seeds > 1
        else "One seed: how much another would change is not known."
    )
    return _with_images("Fine-tuning on few labels", text, panels)


def _transfer(evaluation: Mapping[str, Any]) -> list[Group]:
    groups = []
    for path in evaluation.get("transfer", {}):
        task = _detail(evaluation, "transfer", "tasks", path)
        panels = [
            _panel(_METRICS[metric], _values(detail), detail, None)
            for metric, detail in task.get("metrics", {}).items()
        ]
        kind = "labels, several to an image" if task.get("multilabel") else "classes"
        text = (
            f"A linear classifier on the frozen features, {task.get('labels', 0)} {kind}. "
            f"{split_words(task.get('split'))}"
        )
        groups.append(Group(f"Transfer to {path}", text, tuple(panels)))
    return groups


def _transformations(evaluation: Mapping[str, Any]) -> list[Group]:
    """What each layer tells of how an image was changed; the trained network's layers as bars."""
    found = evaluation.get("transformations", {})
    trained, untrained = found.get("trained", {}), found.get("untrained", {})
    panels = []
    for task, about in found.get("tasks", {}).items():
        bars = [
            _bar("trained" if layer == "h" else "layer", layer, values[task])
            for layer, values in trained.items()
            if task in values
        ]
        bars += [
            _bar("untrained", "h, untrained", values[task])
            for layer, values in untrained.items()
            if layer == "h" and task in values
        ]
        if task in found.get("pixels", {}):
            bars.append(_bar("pixels", NAMES["pixels"], found["pixels"][task]))
        panels.append(Panel(task, tuple(bars), about.get("chance")))
    text = (
        "A linear classifier has to say how an image was changed, from h (the encoder's features) "
        "and from what the head makes of them. What h tells and g(h) does not, the head threw "
        f"away. {split_words(found.get('split'))}"
    )
    return [Group("What the head throws away", text, tuple(panels))]


def _images(evaluation: Mapping[str, Any], protocol: str) -> str:
    """On which images a protocol measured."""
    return split_words(evaluation.get("details", {}).get(protocol, {}).get("split"))


def _with_images(title: str, text: str, panels: list[Panel]) -> Group:
    """Panels on the same images have that said once; others each by itself."""
    if len({panel.images for panel in panels}) != 1:
        return Group(title, text, tuple(panels))
    alike = tuple(replace(panel, images="") for panel in panels)
    return Group(title, f"{text} {panels[0].images}", alike)


def _panel(
    title: str, values: Mapping[str, float], detail: Mapping[str, Any], chance: float | None
) -> Panel:
    intervals = detail.get("intervals", {})
    bars = tuple(
        _bar(name, NAMES.get(name, name), intervals.get(name, {"value": value}))
        for name, value in values.items()
    )
    return Panel(title, bars, chance, _gain(detail.get("gains", {})))


def _bar(key: str, words: str, interval: Any) -> Bar:
    if not isinstance(interval, Mapping):
        interval = {"value": interval}
    low, high = interval.get("low"), interval.get("high")
    return Bar(key, words, interval["value"], low, high)


def _gain(gains: Mapping[str, Mapping[str, float]]) -> str:
    """What the trained encoder gains over the untrained one, in points."""
    gain = gains.get("untrained")
    if gain is None:
        return ""
    sentence = f"{100 * gain['value']:+.1f} points over the untrained encoder"
    if gain["low"] is None:
        return sentence
    return f"{sentence} ({100 * gain['low']:+.1f} to {100 * gain['high']:+.1f})"


def _percent(share: float) -> str:
    return "all labels" if share == 1 else f"{100 * share:.4g}% of the labels"


def _values(detail: Mapping[str, Any]) -> dict[str, float]:
    return {name: one["value"] for name, one in detail.get("intervals", {}).items()}


def _settings(evaluation: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    return _detail(evaluation, protocol, "settings")


def _detail(evaluation: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A table below ``details``; an empty one in a file of before there were any."""
    found: Any = evaluation.get("details", {})
    for name in path:
        found = found.get(name, {})
    return dict(found)


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
        _detection_panel(_FIGURES.get(name, f"mAP of {name}"), name, found)
        for name, difference in found["difference"].items()
        if difference["value"] is not None
    ]
    return Group(f"Finding objects: {Path(protocol['data']).name}", text, tuple(panels))


def _detection_panel(title: str, name: str, found: Mapping[str, Any]) -> Panel:
    bars = []
    for backbone, (key, words) in _ROWS.items():
        figure = found["backbones"][backbone]["figures"][name]
        bars.append(Bar(key, words, figure["value"], figure["low"], figure["high"]))
    difference = found["difference"][name]
    value, low, high = (100 * difference[key] for key in ("value", "low", "high"))
    gain = f"{value:+.1f} points over untrained ResNets ({low:+.1f} to {high:+.1f})"
    return Panel(title, tuple(bars), gain=gain)
