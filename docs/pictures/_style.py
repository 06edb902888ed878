"""How the pictures of the concepts look: one width, few lines, colours that all can tell apart."""

from collections.abc import Sequence
from typing import Any, Final

import matplotlib
from matplotlib.figure import Figure

BLUE: Final = "#0072b2"
ORANGE: Final = "#e69f00"
GREEN: Final = "#009e73"
RED: Final = "#d55e00"
PINK: Final = "#cc79a7"
GRAY: Final = "#9a9a9a"
LIGHT: Final = "#e6e6e6"
COLORS: Final = (BLUE, ORANGE, GREEN, RED, PINK)
"""Of Okabe and Ito."""


def panels(count: int, *, height: float = 3.0, widths: Sequence[float] | None = None) -> Any:
    """A figure of the page's width, and its axes side by side."""
    matplotlib.rcParams.update({"font.size": 9, "font.family": "DejaVu Sans"})
    figure = Figure(figsize=(8, height), layout="constrained")
    axes = figure.subplots(1, count, width_ratios=widths, squeeze=False)[0]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.title.set_size(10)
    return figure, list(axes)
