"""What `diptych evaluate` and `diptych detect` measured: bar charts for the report, and tables."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from diptych.diagnostics.comparison import compare, probes_of
from diptych.errors import RunFolderError
from diptych.evaluation.split import split_words

NAMES: Final[Mapping[str, str]] = {
    "trained": "trained encoder",
    "start": "start weights",
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
"""Metrics as in ``evaluation.json``."""

_BACKBONES: Final[Mapping[str, tuple[str, str]]] = {
    "pretrained": ("trained", "on the trained ResNet"),
    "untrained": ("untrained", "on untrained ResNets"),
}
"""Backbones as in ``detection.json``: how they are drawn, and what they are called."""

_AVERAGE_PRECISIONS: Final[Mapping[str, str]] = {
    "mAP": "mAP, mean over overlaps of 0.5 to 0.95",
    "AP50": "AP50, overlap of half",
    "AP75": "AP75, overlap of three quarters",
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
class BarChart:
    """One figure of several encoders.

    Attributes:
        title: which figure.
        bars: of each encoder, the trained one first.
        chance: chance level; None where there is none.
        gain: what the trained encoder gains, with its interval; may be empty.
        images: on which images, in sentences; empty where all charts of the group have the same.
    """

    title: str
    bars: tuple[Bar, ...]
    chance: float | None = None
    gain: str = ""
    images: str = ""


@dataclass(frozen=True)
class ChartGroup:
    """Charts that answer one question.

    Attributes:
        title: the heading.
        text: how it was measured.
        charts: the figures.
    """

    title: str
    text: str
    charts: tuple[BarChart, ...]


def chart_groups(evaluation: Mapping[str, Any], kept: str = NAMES["trained"]) -> list[ChartGroup]:
    """Everything in ``evaluation.json`` that is a share, in the order of the page.

    Args:
        evaluation: what the file holds.
        kept: what the encoder of the run is called, see ``words_for_kept``.
    """
    of_kept = [_frozen(evaluation), _finetune(evaluation), *_transfer(evaluation)]
    # Layers are those of the last step, which the head was trained behind.
    found = [*(_with_kept(group, kept) for group in of_kept), *_transformations(evaluation)]
    return [group for group in found if group.charts]


def _with_kept(group: ChartGroup, kept: str) -> ChartGroup:
    """The same with other words for the encoder of the run."""
    charts = [
        replace(
            chart,
            bars=tuple(
                replace(bar, words=kept) if bar.words == NAMES["trained"] else bar
                for bar in chart.bars
            ),
        )
        for chart in group.charts
    ]
    return replace(group, charts=tuple(charts))


def tested_images(evaluation: Mapping[str, Any], protocol: str) -> str:
    """The images that a protocol measured on, as a part of a sentence."""
    return str(_detail(evaluation, protocol, "split").get("tested", "images not recorded"))


def geometry_images(evaluation: Mapping[str, Any]) -> str:
    """On which images the geometry was measured."""
    return split_words(evaluation.get("geometry", {}).get("split"))


def geometry_rows(evaluation: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Of each layer: name, alignment, uniformity, effective rank, spread, collapsed dimensions."""
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


def print_tables(
    console: Console, evaluation: Mapping[str, Any], kept: str = NAMES["trained"]
) -> None:
    """Prints one table for each group of results: encoders by figures, with 95% intervals.

    Args:
        console: to print on.
        evaluation: what ``evaluation.json`` holds.
        kept: as in ``chart_groups``.
    """
    for group in chart_groups(evaluation, kept):
        console.print(_table(group))
        console.print(group.text, highlight=False)
        for chart in group.charts:
            if chart.gain:
                console.print(f"  {chart.title}: {chart.gain}", highlight=False)
        for images in dict.fromkeys(chart.images for chart in group.charts if chart.images):
            titles = [chart.title for chart in group.charts if chart.images == images]
            console.print(f"  {'; '.join(titles)}: {images}", highlight=False)


def _table(group: ChartGroup) -> Table:
    chances = {chart.chance for chart in group.charts if chart.chance is not None}
    chance = f" (largest class: {min(chances):.1%})" if len(chances) == 1 else ""
    table = Table(title=group.title + chance, title_justify="left", caption_justify="left")
    table.add_column("")
    for chart in group.charts:
        table.add_column(chart.title, justify="right")
    rows = dict.fromkeys(bar.words for chart in group.charts for bar in chart.bars)
    for words in rows:
        cells = []
        for chart in group.charts:
            bar = next((bar for bar in chart.bars if bar.words == words), None)
            interval = f" ({bar.range})" if bar is not None and bar.range else ""
            cells.append("" if bar is None else bar.text + interval)
        table.add_row(words, *cells)
    return table


def _frozen(evaluation: Mapping[str, Any]) -> ChartGroup:
    shared = evaluation.get("protocol", {})
    titles = {
        "knn": f"{_neighbours(evaluation, 'knn')} nearest neighbours",
        "linear": "linear classifier",
        "linear_sgd": "linear classifier by SGD, crop and flip",
        "knn_leave_one_out": f"{_neighbours(evaluation, 'knn_leave_one_out')} nearest neighbours, "
        "each image by all others",
    }
    others = [name for name in evaluation if name not in titles and _is_chart(evaluation[name])]
    comparison = compare(evaluation)
    per_class_of = probes_of(evaluation) if comparison and comparison.is_unequal else []
    charts = []
    for name, title in (titles | {name: name.replace("_", " ") for name in others}).items():
        if name in evaluation:
            metric = _detail(evaluation, name, "metrics", "accuracy")
            settings = _settings(evaluation, name) or shared
            chart = _chart(title, evaluation[name], metric, settings.get("chance"))
            charts.append(replace(chart, images=_images(evaluation, name)))
            per_class = _detail(evaluation, name, "metrics", "mean_per_class")
            if name in per_class_of and per_class:
                chart = _chart(f"{title}, mean per class", _values(per_class), per_class, None)
                charts.append(replace(chart, images=_images(evaluation, name)))
    return _with_images("How good the frozen features are", "The encoder is frozen.", charts)


def _is_chart(found: Any) -> bool:
    """Whether it is what a protocol that is not known here gave: a share for each encoder."""
    return isinstance(found, Mapping) and isinstance(found.get("trained"), float)


def _neighbours(evaluation: Mapping[str, Any], protocol: str) -> int:
    settings = _settings(evaluation, protocol) or evaluation.get("protocol", {})
    return int(settings.get("knn_neighbours", 20))


def _finetune(evaluation: Mapping[str, Any]) -> ChartGroup:
    charts = []
    for share, values in evaluation.get("finetune", {}).items():
        detail = _detail(evaluation, "finetune", "shares", share)
        chance = _settings(evaluation, "finetune").get("chance")
        labels = "all labels" if float(share) == 1 else f"{100 * float(share):.4g}% of the labels"
        title = f"{labels}: {detail['images']:,} images"
        chart = _chart(title, values, detail, chance)
        charts.append(replace(chart, images=_images(evaluation, "finetune")))
    seeds = _settings(evaluation, "finetune").get("seeds", 1)
    text = (
        "Encoder and classifier learn together from a share of the labels, the same of each class. "
        "The untrained encoder shows what labels alone can do, with the schedule that did best on "
        "a fifth of its labels. "
    )
    text += (
        f"Means of {seeds} seeds, with the interval over seeds and test images."
        if seeds > 1
        else "One seed: how far another seed would differ is not known."
    )
    return _with_images("Fine-tuning on few labels", text, charts)


def _transfer(evaluation: Mapping[str, Any]) -> list[ChartGroup]:
    groups = []
    for path in evaluation.get("transfer", {}):
        task = _detail(evaluation, "transfer", "tasks", path)
        charts = [
            _chart(_METRICS[metric], values, detail, None)
            for metric, detail in task.get("metrics", {}).items()
            if (values := _values(detail))
        ]
        kind = "labels, several to an image" if task.get("multilabel") else "classes"
        text = (
            f"A linear classifier on the frozen features, {task.get('labels', 0)} {kind}. "
            f"{split_words(task.get('split'))}"
        )
        groups.append(ChartGroup(f"Transfer to {path}", text, tuple(charts)))
    return groups


def _transformations(evaluation: Mapping[str, Any]) -> list[ChartGroup]:
    """How well each layer of the trained network tells how an image was changed."""
    found = evaluation.get("transformations", {})
    trained, untrained = found.get("trained", {}), found.get("untrained", {})
    charts = []
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
        charts.append(BarChart(task, tuple(bars), about.get("chance")))
    text = (
        "A linear classifier has to say how an image was changed, from h (the encoder's features) "
        "and from the layers of the head. What can be told from h but not from g(h), the head "
        f"threw away. {split_words(found.get('split'))}"
    )
    return [ChartGroup("What the head throws away", text, tuple(charts))]


def _images(evaluation: Mapping[str, Any], protocol: str) -> str:
    """On which images a protocol measured."""
    return split_words(evaluation.get("details", {}).get(protocol, {}).get("split"))


def _with_images(title: str, text: str, charts: list[BarChart]) -> ChartGroup:
    """One line for charts on the same images; else one line for each chart."""
    if len({chart.images for chart in charts}) != 1:
        return ChartGroup(title, text, tuple(charts))
    alike = tuple(replace(chart, images="") for chart in charts)
    return ChartGroup(title, f"{text} {charts[0].images}", alike)


def _chart(
    title: str, values: Mapping[str, float], detail: Mapping[str, Any], chance: float | None
) -> BarChart:
    intervals = detail.get("intervals", {})
    bars = tuple(
        _bar(name, NAMES.get(name, name), intervals.get(name, {"value": value}))
        for name, value in values.items()
    )
    gain = _gain(detail.get("gains", {}).get("untrained"), "the untrained encoder")
    return BarChart(title, bars, chance, gain)


def _bar(key: str, words: str, interval: Any) -> Bar:
    if not isinstance(interval, Mapping):
        interval = {"value": interval}
    low, high = interval.get("low"), interval.get("high")
    return Bar(key, words, interval["value"], low, high)


def _gain(gain: Mapping[str, float | None] | None, over: str) -> str:
    """A difference in points with its interval; nothing where none was measured."""
    if gain is None or gain["value"] is None:
        return ""
    sentence = f"{100 * gain['value']:+.1f} points over {over}"
    low, high = gain["low"], gain["high"]
    if low is None or high is None:
        return sentence
    return f"{sentence} ({100 * low:+.1f} to {100 * high:+.1f})"


def _values(detail: Mapping[str, Any]) -> dict[str, float]:
    """By encoder, where the figure is defined: an ROC curve is not of test images of one class."""
    found = {name: one["value"] for name, one in detail.get("intervals", {}).items()}
    return {name: value for name, value in found.items() if value is not None}


def _settings(evaluation: Mapping[str, Any], protocol: str) -> Mapping[str, Any]:
    return _detail(evaluation, protocol, "settings")


def _detail(evaluation: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """A table below ``details``; an empty one where an older file has none."""
    found: Any = evaluation.get("details", {})
    for name in path:
        found = found.get(name, {})
    return dict(found)


def read_detection(path: Path) -> dict[str, Any] | None:
    """What ``diptych detect`` wrote; None where it has not been run.

    Raises:
        RunFolderError: the file is damaged.
    """
    if not path.is_file():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_bytes())
        detection_group(found)  # damaged files are named here, not amid the page
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(
            f"{path} is not what `diptych detect` writes ({error!r}). Delete it, and give the "
            "command again: detectors that are done are kept."
        ) from error
    return found


def detection_group(found: Mapping[str, Any]) -> ChartGroup:
    """Average precision by overlap and by class, of both backbones."""
    protocol = found["protocol"]
    seeds = protocol["seeds"]
    text = (
        f"A Faster R-CNN with a feature pyramid, fine-tuned for {protocol['epochs']} epochs; only "
        "the weights that the ResNet begins with differ. "
        f"{split_words(found.get('split'))} "
        f"{f'Means of {seeds} seeds.' if seeds > 1 else 'One seed.'} COCO's average precision."
    )
    charts = [
        _detection_chart(_AVERAGE_PRECISIONS.get(name, f"mAP of {name}"), name, found)
        for name, difference in found["difference"].items()
        if difference["value"] is not None
    ]
    return ChartGroup(f"Object detection: {Path(protocol['data']).name}", text, tuple(charts))


def _detection_chart(title: str, name: str, found: Mapping[str, Any]) -> BarChart:
    bars = tuple(
        _bar(key, words, found["backbones"][backbone]["figures"][name])
        for backbone, (key, words) in _BACKBONES.items()
    )
    return BarChart(title, bars, gain=_gain(found["difference"][name], "untrained ResNets"))
