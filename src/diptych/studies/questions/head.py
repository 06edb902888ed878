"""What stands between features and loss: nothing, a linear layer, an MLP (SimCLR, section 4.2)."""

import math
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, better, rises
from diptych.studies.drawing import lines
from diptych.studies.study import Cell, Study

WIDTHS: Final = (16, 64, 256)
KINDS: Final = {"linear": 1, "mlp": 2}
_MIDDLE: Final = 64


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    none = Cell("none", {"head": "none", "width": 64}, {"head.layers": 0})
    return (
        none,
        *(
            Cell(
                f"{kind}-{width}",
                {"head": kind, "width": width},
                {"head.layers": layers, "head.output_features": width},
            )
            for kind, layers in KINDS.items()
            for width in WIDTHS
        ),
    )


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    mlp, linear = f"mlp-{_MIDDLE}", f"linear-{_MIDDLE}"
    doublings = [math.log2(width) for width in WIDTHS]
    groups = {(f"mlp-{w}", "knn"): 1 / len(WIDTHS) for w in WIDTHS}
    groups |= {(f"linear-{w}", "knn"): -1 / len(WIDTHS) for w in WIDTHS}
    width = rises([f"mlp-{w}" for w in WIDTHS], doublings, "", "", per="per doubling of the width")
    return (
        better(mlp, "none", "An MLP head beats none", "more than 10 points"),
        better(linear, "none", "A linear head beats none",
               "some 7 points, by the other two figures"),
        Claim("An MLP head beats a linear one, over all widths", "about 3 points", groups),
        Claim("The MLP's output width hardly matters", "hardly any difference", width.weights,
              width.per, tolerance=0.5),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    series = {
        "MLP": [(float(w), f"mlp-{w}") for w in WIDTHS],
        "linear": [(float(w), f"linear-{w}") for w in WIDTHS],
        "none (the features, 64 wide)": [(64.0, "none")],
    }
    return lines(
        results,
        series,
        x_label="width of the projection",
        base=2,
        reference=(f"mlp-{_MIDDLE}", "untrained"),
    )


STUDY: Final = Study(
    name="head",
    question="What should stand between the features and the loss?",
    source="SimCLR (2002.05709), section 4.2 and figure 8",
    found=(
        "An MLP head beats a linear one by about 3 points, and none by more than 10 (linear top-1 "
        "of the features before the head, ImageNet).",
        "The width of its output hardly matters.",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={},
    reference=f"mlp-{_MIDDLE}",
    shown=("knn", "linear", "pretext", "effective_rank"),
    measures=("linear",),
    differences=("Widths 16 to 256 instead of 32 to 2048; the features are 64 wide, not 2048.",),
)
