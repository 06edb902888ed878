"""What the head throws away: transformations that features know and projections do not.

SimCLR, section 4.2 and table 3.
"""

from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim
from diptych.studies.drawing import grouped_bars
from diptych.studies.study import Budget, Cell, Study

TASKS: Final = {
    "color": ("colour or gray", "99.3 against 97.4"),
    "rotation": ("rotation", "67.6 against 25.6"),
    "noise": ("original or corrupted", "99.5 against 59.6"),
    "sobel": ("original or Sobel", "96.6 against 56.3"),
}
"""By the first part of a measure's name: in words, and what the paper found of h and g(h)."""

_CELL: Final = "simclr"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return (Cell(_CELL, {"views": "crop, flip, colour, gray"}),)


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    return tuple(
        Claim(
            f"h knows more than g(h): {words}",
            paper,
            {(_CELL, f"{task}_h"): 1.0, (_CELL, f"{task}_g"): -1.0},
        )
        for task, (words, paper) in TASKS.items()
    )


def _draw(results: Results) -> Figure:
    groups = {
        words: {"h": (_CELL, f"{task}_h"), "g(h)": (_CELL, f"{task}_g")}
        for task, (words, _) in TASKS.items()
    }
    return grouped_bars(results, groups, y_label="transformation predicted (%)")


STUDY: Final = Study(
    name="invariance",
    question="What do features know that the head throws away?",
    source="SimCLR (2002.05709), section 4.2 and table 3",
    found=(
        "A linear classifier tells the applied transformation from h and from g(h): colour or gray "
        "99.3 / 97.4, rotation 67.6 / 25.6, original or corrupted 99.5 / 59.6, original or Sobel "
        "96.6 / 56.3 (%, ImageNet).",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    # h and g(h) are equally wide, as in the paper.
    base={"head.hidden_features": 64, "head.output_features": 64},
    reference=_CELL,
    budget=Budget(epochs=20),
    measures=("transformations",),
    shown=("knn", "pretext", *(f"{task}_{layer}" for task in TASKS for layer in ("h", "g"))),
    differences=("h and g(h) have 64 dimensions instead of 2,048. Twenty epochs.",),
    caption="Bars are one standard error over seeds.",
)
