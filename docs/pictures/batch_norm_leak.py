"""Groups of images that share statistics, and what the study of shuffling measured."""

import csv
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Final

from _style import BLUE, COLORS, GRAY, RED, panels

from diptych.methods.contrastive import shuffled_order

TABLE: Final = Path(__file__).parents[1] / "studies" / "shuffle" / "table.csv"
CELLS: Final = {
    "split-8": ("groups of 8", RED),
    "shuffle-8": ("shuffled", BLUE),
    "split-4": ("groups of 4", RED),
    "shuffle-4": ("shuffled", BLUE),
    "batch": ("whole batch", GRAY),
    "layer": ("layer norm", GRAY),
}
IMAGES: Final = 16
GROUP: Final = 4


def draw() -> Any:
    """Left: in which group each image is normalised. Right: leak accuracy of trained networks."""
    figure, (groups, leak) = panels(2, height=2.9, widths=(3, 2))
    order = shuffled_order(0, 0, IMAGES).tolist()
    rows = {"queries": range(IMAGES), "keys": range(IMAGES), "keys, shuffled": order}
    for line, (name, images) in enumerate(rows.items()):
        for place, image in enumerate(images):
            x = place + 0.6 * (place // GROUP)
            groups.scatter(
                x, -line, s=200, marker="s", color=COLORS[image // GROUP], edgecolors="w"
            )
            groups.text(x, -line, image, ha="center", va="center", color="white", fontsize=8)
        groups.text(-1.2, -line, name, ha="right", va="center")
    groups.set(xlim=(-5.5, 18.5), ylim=(-2.6, 0.8), xticks=[], yticks=[])
    groups.set_title("which images are normalised together")
    groups.spines[:].set_visible(False)
    with TABLE.open() as file:
        found = list(csv.DictReader(file))
    for place, (cell, (_, color)) in enumerate(CELLS.items()):
        shares = [100 * float(row["leak"]) for row in found if row["cell"] == cell]
        error = stdev(shares) / len(shares) ** 0.5
        leak.barh(-place, mean(shares), xerr=error, color=color, height=0.7)
    leak.set(title="leak accuracy, %", yticks=range(0, -len(CELLS), -1))
    leak.set_yticklabels([name for name, _ in CELLS.values()])
    leak.tick_params("y", length=0)
    leak.axvline(0, color="black", lw=0.8)
    leak.spines["left"].set_visible(False)
    return figure
