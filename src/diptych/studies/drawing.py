"""The figures of the studies in the papers' forms: lines, bars, a heat map. Shares become %."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from diptych.report.figures import ACCENT, FAINT, INK, SECOND, STYLE
from diptych.studies.cell_results import StudyResults

COLORS: Final = (ACCENT, SECOND, "#4d8b3d", "#7b5ea7", "#b8952c", "#555b66")
KNN_LABEL: Final = "kNN accuracy (%)"
_MARKERS: Final = "osD^vP"


def lines(
    results: StudyResults,
    series: Mapping[str, Sequence[tuple[float, str]]],
    *,
    x_label: str,
    y_label: str = KNN_LABEL,
    measure: str = "knn",
    also: Mapping[str, str] | None = None,
    untrained: str | None = None,
) -> Figure:
    """A line for each series over a logarithmic axis, with one standard error at each point.

    Args:
        results: of the study.
        series: by name: positions, each with the cell that stands there.
        x_label: of the axis.
        y_label: of the axis.
        measure: on the vertical axis.
        also: a measure by its name in the legend: the same series again, dashed.
        untrained: a cell whose untrained encoder is a dotted line.
    """
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _new_figure(1)
        for index, (name, points) in enumerate(series.items()):
            _line(axes, results, points, measure, name, index)
            for other_name, other in (also or {}).items():
                _line(axes, results, points, other, f"{name}, {other_name}", index, style="--")
        axes.set_xscale("log", base=2)
        ticks = sorted({x for points in series.values() for x, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.set(xlabel=x_label, ylabel=y_label)
        if untrained is not None and results.values(untrained, "untrained"):
            mean, _ = _percent(results, untrained, "untrained")
            label = f"untrained encoder ({mean:.1f})"
            axes.axhline(mean, color=FAINT, lw=1.2, ls=":", label=label)
        _legend(axes)
        return figure


def bars(
    results: StudyResults,
    rows: Sequence[tuple[str, str]],
    measures: Mapping[str, str],
    *,
    label_all: bool = False,
    untrained: str | None = None,
) -> Figure:
    """Horizontal bars with one standard error at each, side by side for some measures.

    Args:
        results: of the study.
        rows: label and cell of each bar, from top to bottom.
        measures: by title.
        label_all: label the bars of every measure, not of the first only.
        untrained: a cell whose untrained encoder is a dotted line among the first bars.
    """
    with matplotlib.rc_context(STYLE):
        figure, all_axes = _new_figure(len(measures), height=0.9 + 0.36 * len(rows))
        for axes, (title, measure) in zip(all_axes, measures.items(), strict=True):
            labelled = label_all or axes is all_axes[0]
            _bars(axes, results, rows, measure, [label if labelled else "" for label, _ in rows])
            axes.set(title=title, xlabel="%")
        if untrained is not None and results.values(untrained, "untrained"):
            mean, _ = _percent(results, untrained, "untrained")
            all_axes[0].axvline(mean, color=INK, lw=0.9, ls=":")
        return figure


def grouped_bars(
    results: StudyResults,
    groups: Mapping[str, Mapping[str, tuple[str, str]]],
    *,
    y_label: str,
) -> Figure:
    """For each group some bars side by side, of the same names in every group.

    Args:
        results: of the study.
        groups: by label: by the bar's name its cell and measure.
        y_label: of the axis.
    """
    with matplotlib.rc_context(STYLE):
        figure, (axes,) = _new_figure(1)
        names = list(next(iter(groups.values())))
        width = 0.8 / len(names)
        for index, name in enumerate(names):
            found = [_percent(results, *bars[name]) for bars in groups.values()]
            places = [g + (index - (len(names) - 1) / 2) * width for g in range(len(groups))]
            heights = [mean for mean, _ in found]
            color = COLORS[index % len(COLORS)]
            drawn = axes.bar(
                places, heights, width * 0.92, label=name, color=color,
                yerr=[error for _, error in found], ecolor=INK, capsize=2,
            )  # fmt: skip
            axes.bar_label(drawn, [f"{h:.1f}" if h else "" for h in heights], padding=2, size=8)
        axes.set_xticks(range(len(groups)), list(groups))
        axes.set(ylabel=y_label)
        _legend(axes)
        return figure


def heat_map(
    results: StudyResults,
    table: Sequence[Sequence[str | None]],
    *,
    names: Sequence[str],
    row_label: str,
    column_label: str,
) -> Figure:
    """KNN accuracy as a number and a shade for each cell; the last column is the mean of the row.

    Args:
        results: of the study.
        table: names of cells, rows first; None where there is none.
        names: of the rows and of the columns.
        row_label: of the axis.
        column_label: of the axis.
    """
    values = [[_knn_or_nan(results, cell) for cell in row] for row in table]
    shown = [[*row, _mean(row)] for row in values]
    with matplotlib.rc_context({**STYLE, "axes.spines.left": False, "axes.spines.bottom": False}):
        figure, (axes,) = _new_figure(
            1, height=0.62 * len(names) + 1.0, width=0.92 * len(names) + 3.0
        )
        image = axes.imshow(shown, cmap="viridis", aspect="auto")
        low, high = (end or 0.0 for end in image.get_clim())
        for y, row in enumerate(shown):
            for x, value in enumerate(row):
                if math.isfinite(value):
                    color = "white" if value - low < 0.6 * (high - low) else "black"
                    axes.text(x, y, f"{value:.1f}", ha="center", va="center", color=color)
        axes.set_xticks(range(len(names) + 1), [*names, "average"])
        axes.set_yticks(range(len(names)), list(names))
        axes.tick_params(length=0)
        axes.set(xlabel=column_label, ylabel=row_label)
        figure.colorbar(image, ax=axes, label=KNN_LABEL)
        return figure


def png(figure: Figure) -> bytes:
    """A figure as a bitmap, for where no SVG is shown."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        # Without the name and version of matplotlib, so that equal results give equal bytes.
        figure.savefig(buffer, format="png", dpi=150, facecolor="white", metadata={"Software": ""})
    return buffer.getvalue()


def _line(
    axes: Axes,
    results: StudyResults,
    points: Sequence[tuple[float, str]],
    measure: str,
    name: str,
    index: int,
    style: str = "-",
) -> None:
    there = [(x, *_percent(results, cell, measure)) for x, cell in points
             if results.values(cell, measure)]  # fmt: skip
    if not there:
        return
    xs, means, errors = zip(*there, strict=True)
    color, marker = COLORS[index % len(COLORS)], _MARKERS[index % len(_MARKERS)]
    axes.errorbar(
        xs, means, yerr=errors, label=name, color=color, marker=marker, ls=style, ms=5, capsize=3
    )


def _bars(
    axes: Axes,
    results: StudyResults,
    rows: Sequence[tuple[str, str]],
    measure: str,
    labels: Sequence[str],
) -> None:
    found = [_percent(results, cell, measure) for _, cell in rows]
    axes.barh(
        range(len(rows)), [mean for mean, _ in found], xerr=[error for _, error in found],
        color=SECOND, ecolor=INK, capsize=2, height=0.65,
    )  # fmt: skip
    ends = [max(0.0, mean + error) for mean, error in found]
    for row, (end, (mean, _)) in enumerate(zip(ends, found, strict=True)):
        # On the right even of a bar to the left, where the axis and the labels are.
        axes.annotate(
            f"{mean:.1f}", (end, row), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    lowest = min([0.0, *(mean - error for mean, error in found)])
    highest = max(ends, default=0.0)
    room = 0.18 * (highest - lowest) or 1.0
    axes.set_xlim(1.1 * lowest, highest + room)


def _percent(results: StudyResults, cell: str, measure: str) -> tuple[float, float]:
    """Mean and standard error in per cent; zeros where there is none."""
    return 100 * (results.mean(cell, measure) or 0.0), 100 * (results.error(cell, measure) or 0.0)


def _knn_or_nan(results: StudyResults, cell: str | None) -> float:
    mean = None if cell is None else results.mean(cell)
    return math.nan if mean is None else 100 * mean


def _mean(row: Sequence[float]) -> float:
    there = [value for value in row if math.isfinite(value)]
    return sum(there) / len(there) if there else math.nan


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False)


def _new_figure(
    count: int, height: float = 3.8, width: float | None = None
) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width or (7.0 if count == 1 else 10.0), height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)
    return figure, list(axes[0])
