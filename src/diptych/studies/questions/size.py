"""Depth by width of the encoder, beside supervised runs (SimCLR, section 4.1, figure 7)."""

import math
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, rises
from diptych.studies.drawing import lines
from diptych.studies.study import Cell, Study

WIDTHS: Final = (8, 16, 32)
DEPTHS: Final = (1, 2)
"""Residual blocks in each of three stages."""


def _name(depth: int, width: int) -> str:
    return f"blocks-{depth}-width-{width}"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return tuple(
        Cell(
            _name(depth, width),
            {"blocks": depth, "width": width},
            {"encoder.width": width, "encoder.stage_blocks": (depth,) * 3},
        )
        for depth in DEPTHS
        for width in WIDTHS
    )


def _slope(measure: str, finding: str, paper: str) -> Claim:
    """Over both depths together, by doublings of the width."""
    names = [_name(depth, width) for depth in DEPTHS for width in WIDTHS]
    doublings = [math.log2(width) for _ in DEPTHS for width in WIDTHS]
    return rises(names, doublings, finding, paper, per="per doubling of the width", measure=measure)


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    ours = _slope("linear", "Wider is better without labels", "at every size")
    theirs = _slope("supervised", "", "")
    deeper = {(_name(DEPTHS[-1], w), "linear"): 1 / len(WIDTHS) for w in WIDTHS}
    deeper |= {(_name(DEPTHS[0], w), "linear"): -1 / len(WIDTHS) for w in WIDTHS}
    gap = dict(ours.weights) | {group: -w for group, w in theirs.weights.items()}
    return (
        ours,
        Claim("Deeper is better without labels, over all widths", "at every size", deeper),
        Claim("Learning without labels gains more from width than learning with them",
              "the gap to supervised learning shrinks with size", gap, ours.per),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    series = {
        f"{depth} block{'s' * (depth > 1)} a stage": [
            (float(width), _name(depth, width)) for width in WIDTHS
        ]
        for depth in DEPTHS
    }
    return lines(
        results,
        series,
        x_label="channels of the first stage",
        y_label="accuracy (%)",
        measure="linear",
        base=2,
        also={"supervised": "supervised"},
    )


STUDY: Final = Study(
    name="size",
    question="Does learning without labels gain more from a larger encoder?",
    source="SimCLR (2002.05709), section 4.1 and figure 7",
    found=("Unsupervised learning gains more from depth and width than supervised learning does.",),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={},
    reference=_name(1, 16),
    measures=("linear", "supervised"),
    shown=("knn", "linear", "supervised", "pretext"),
    differences=(
        "Small ResNets of 1 or 2 blocks in each of three stages, 8 to 32 channels in the first, "
        "instead of ResNet-18 to ResNet-152 with 1x to 4x the width. The supervised runs have the "
        "same network, images and epochs.",
    ),
    caption="Linear classifiers on frozen features; dashed, supervised runs. Bars are one standard "
    "error over seeds.",
)
