"""The report's figures: curves and bars as SVG, the map of the features as a bitmap."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, Final

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from diptych.logging.metrics import has_choice, task_accuracy
from diptych.logging.times import named
from diptych.runtime.stopwatch import PARTS

INK: Final = "#262a33"
ACCENT: Final = "#c2571a"
SECOND: Final = "#2f6690"
FAINT: Final = "#9aa1ad"

_PART_COLORS: Final = {  # data blue, network warm, several processes green, the rest gray
    "data_wait": "#1d3f5c",
    "views": "#2f6690",
    "forward": "#c2571a",
    "backward": "#8f3d0f",
    "communication": "#2e7d4f",
    "optimizer": "#d98a4a",
    "momentum_encoder": "#b98a2f",
    "dictionary": "#7d6a2f",
    "measuring": "#5f6672",
    "checkpoint": "#7f8794",
    "other": "#b3b8c1",
}
_MAP_PIXELS: Final = 1080
_THUMBNAIL_PIXELS: Final = 30
_ONE_POINT: Final = 1e-6  # spread of unit vectors that is no more than rounding
_LEAST_SHARE: Final = 1e-4  # %, where a logarithmic axis ends
STYLE: Final[Any] = {
    "font.size": 10.0,
    "font.family": "sans-serif",
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "diptych",  # without one, ids are random and no two files are the same
}


def loss_curve(metrics: Sequence[Mapping[str, Any]]) -> str:
    """Loss beside its chance level, and the accuracy at the training task, by step; SVG."""
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = _two_axes()
        steps = [line["step"] for line in metrics]
        known = [line for line in metrics if "chance_loss" in line]
        if known:
            left.plot(*_series(known, "chance_loss"), color=FAINT, ls="--", label="chance")
        losses = [line["loss"] for line in metrics]
        left.plot(steps, losses, color=ACCENT, label="loss")
        unit = "loss (nats)" if known else "loss"  # a loss without a level of chance is no entropy
        left.set(xlabel="step", ylabel=unit, ylim=(min(0.0, *losses), None))
        left.legend(frameon=False)
        chosen = [line for line in metrics if has_choice(line)]
        task = task_accuracy(chosen[-1]) if chosen else None
        if task is None:
            right.remove()
        else:
            right.plot(*_series(chosen, task.name, 100), color=SECOND)
            right.set(xlabel="step", ylabel=f"{task.name.replace('_', ' ')} (%)", ylim=(0, 100))
        return svg(figure)


def health_curve(metrics: Sequence[Mapping[str, Any]]) -> str | None:
    """KNN accuracy or uniformity, and effective rank, over the steps; SVG. None without any."""
    measured = [line for line in metrics if "effective_rank" in line]
    if not measured:
        return None
    with matplotlib.rc_context(STYLE):
        figure, (left, right) = _two_axes()
        scored = [line for line in measured if "knn" in line]
        if scored:
            left.plot(*_series(scored, "knn", 100), color=ACCENT, marker="o", ms=3)
            left.set(xlabel="step", ylabel="kNN accuracy (%)")
        else:
            left.plot(*_series(measured, "uniformity"), color=ACCENT, marker="o", ms=3)
            left.set(xlabel="step", ylabel="uniformity (lower is better spread)")
        right.plot(*_series(measured, "effective_rank"), color=SECOND, marker="o", ms=3)
        right.set(xlabel="step", ylabel="effective rank of the features", ylim=(0, None))
        return svg(figure)


def spectrum_curve(geometry: Mapping[str, Any]) -> str:
    """Singular values of h and of g(h), before and after training; SVG.

    Args:
        geometry: of ``evaluation.json``.
    """
    shown = [name for name in ("h", "g(h)") if name in geometry["trained"]]
    with matplotlib.rc_context(STYLE):
        figure, both = _two_axes()
        for axes, name in zip(both, shown, strict=False):
            for when, color in (("untrained", FAINT), ("trained", ACCENT)):
                found = geometry[when][name]
                label = f"{when}, effective rank {found['effective_rank']:.1f}"
                values = [max(100 * share, _LEAST_SHARE) for share in found["spectrum"]]
                axes.plot(range(1, len(values) + 1), values, color=color, label=label)
            axes.set(
                xlabel=f"direction of {name}, of {found['dimensions']}",
                ylabel="share of all singular values (%)",
                yscale="log",
            )
            axes.legend(frameon=False)
        for axes in both[len(shown) :]:
            axes.set_axis_off()
        return svg(figure)


def transformation_bars(transformations: Mapping[str, Any]) -> str:
    """How well pixels and each layer of the trained network tell how an image was changed; SVG.

    Args:
        transformations: of ``evaluation.json``.
    """
    tasks = transformations["tasks"]
    layers = {"pixels": transformations["pixels"], **transformations["trained"]}
    colors = [FAINT, ACCENT, *[SECOND] * len(layers)]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9.4, 0.7 + 0.28 * len(layers) * len(tasks)), layout="constrained")
        axes = figure.subplots()
        thickness = 0.8 / len(layers)
        for number, (layer, found) in enumerate(layers.items()):
            values = np.array([[found[t][k] for k in ("value", "low", "high")] for t in tasks])
            places = np.arange(len(tasks)) + thickness * number
            faded = 1.0 if layer in ("pixels", "h", "g(h)") else 0.45
            reach = 100 * np.abs(values[:, 1:].T - values[:, 0])
            axes.barh(
                places, 100 * values[:, 0], thickness, color=colors[number], alpha=faded,
                xerr=reach, error_kw={"ecolor": INK, "elinewidth": 0.8}, label=layer,
            )  # fmt: skip
        for place, task in enumerate(tasks.values()):
            edges = (place - thickness / 2, place + 0.8 - thickness / 2)
            axes.vlines(100 * task["chance"], *edges, color=INK, lw=0.8, ls=":")
        middle = thickness * (len(layers) - 1) / 2
        axes.set_yticks(np.arange(len(tasks)) + middle, list(tasks))
        axes.invert_yaxis()
        axes.set(xlim=(0, 104), xlabel="told apart (%), dots: chance")
        axes.legend(frameon=False, bbox_to_anchor=(1.0, 1.0), loc="upper left")
        return svg(figure)


def time_bars(rows: Mapping[str, Mapping[str, float]]) -> str:
    """Where the time of a step went, a bar for each row; SVG.

    Args:
        rows: milliseconds by part, by the process that they are of.
    """
    parts = [part for part in PARTS if any(part in row for row in rows.values())]
    with matplotlib.rc_context(STYLE):
        height = 1.0 + 0.45 * len(rows) + 0.22 * -(-len(parts) // 3)
        figure = Figure(figsize=(4.4, height), layout="constrained")
        axes = figure.subplots()
        whole = max(sum(row.values()) for row in rows.values())
        lefts = np.zeros(len(rows))
        for part in parts:
            widths = np.array([row.get(part, 0.0) for row in rows.values()])
            axes.barh(list(rows), widths, 0.7, left=lefts, color=_PART_COLORS[part], label=part)
            for place, (left, width) in enumerate(zip(lefts, widths, strict=True)):
                if width > 0.09 * whole:
                    middle, share = left + width / 2, width / sum([*rows.values()][place].values())
                    axes.text(
                        middle, place, f"{share:.0%}", color="white", ha="center", va="center"
                    )
            lefts += widths
        axes.invert_yaxis()
        axes.set(xlim=(0, whole), xlabel="milliseconds a step")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(
            handles, map(named, labels), ncols=3, frameon=False, loc="outside lower center"
        )
        return svg(figure)


def feature_map(
    features: NDArray[np.float32],
    thumbnails: Sequence[Image.Image],
    labels: NDArray[np.int64] | None,
) -> Image.Image:
    """Images laid out in the plane so that similar features lie close (t-SNE, seed fixed).

    Args:
        features: (images, dim).
        thumbnails: one for each.
        labels: (images,), colours the frames; None for no frames.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    plane = _in_plane(features / np.maximum(lengths, 1e-12))
    span = np.ptp(plane, axis=0)
    places = (plane - plane.min(axis=0)) / np.where(span > 0, span, 1.0)
    frame = _THUMBNAIL_PIXELS + 4
    corners = (places * (_MAP_PIXELS - frame)).astype(int)
    sheet = Image.new("RGB", (_MAP_PIXELS, _MAP_PIXELS), "white")
    for index, corner in enumerate(corners.tolist()):
        label = -1 if labels is None else int(labels[index])
        color = "white" if label < 0 else class_color(label)
        card = Image.new("RGB", (frame, frame), color)
        card.paste(thumbnails[index].resize((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS)), (2, 2))
        sheet.paste(card, tuple(corner))
    return sheet


def _in_plane(unit: NDArray[np.float32]) -> NDArray[np.float32]:
    """(images, 2), by t-SNE; one place for features that are equal to rounding.

    From equal features t-SNE computes NaN, and its tree of neighbours then recurses without end.
    """
    from sklearn.manifold import TSNE

    if np.ptp(unit, axis=0).max() < _ONE_POINT:
        return np.zeros((len(unit), 2), dtype=np.float32)
    # t-SNE refuses a perplexity that is not below the number of images.
    perplexity = min(30.0, (len(unit) - 1) / 3)
    found: NDArray[np.float32] = TSNE(
        init="pca", perplexity=perplexity, random_state=0
    ).fit_transform(unit)
    return found


def class_color(label: int) -> str:
    """A colour for a class: hues a golden angle apart, so that neighbours differ."""
    hue = (label * 137.508) % 360
    red, green, blue = matplotlib.colors.hsv_to_rgb((hue / 360, 0.75, 0.85))
    return f"#{int(255 * red):02x}{int(255 * green):02x}{int(255 * blue):02x}"


def data_uri(picture: Image.Image, *, lossless: bool = False) -> str:
    """A picture as text that a page can hold."""
    buffer = io.BytesIO()
    if lossless:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.save(buffer, "JPEG", quality=88)
    kind = "png" if lossless else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _series(
    lines: Sequence[Mapping[str, Any]], name: str, factor: float = 1.0
) -> tuple[list[int], list[float]]:
    return [line["step"] for line in lines], [factor * line[name] for line in lines]


def _two_axes(height: float = 2.9) -> tuple[Figure, tuple[Axes, Axes]]:
    figure = Figure(figsize=(9.4, height), layout="constrained")
    axes = figure.subplots(1, 2)
    return figure, (axes[0], axes[1])


def svg(figure: Figure, **options: Any) -> str:
    """A figure as text that stands in a page or in a file.

    Args:
        figure: drawn in ``STYLE``.
        options: of ``Figure.savefig``; a transparent background when not given.
    """
    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        # Without a date, so that equal figures give equal bytes.
        figure.savefig(
            buffer, format="svg", metadata={"Date": None}, **(options or {"transparent": True})
        )
    text = buffer.getvalue()
    # The XML declaration may stand at the beginning of a file only, not within a page.
    return text[text.index("<svg") :]
