"""How strong colour distortion should be (SimCLR, section 3.2, table 1)."""

import math
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, better, rises
from diptych.studies.drawing import bars
from diptych.studies.study import Budget, Cell, Study

STRENGTHS: Final = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0}
_POLICY: Final = "crop + flip + color(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2) + gray"
_BLURRED: Final = "strength-1-blur"


def _name(strength: float) -> str:
    return f"strength-{strength:g}"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return (
        *(
            Cell(_name(s), {"strength": s, "blur": "no"}, {"views.strength": s})
            for s in STRENGTHS.values()
        ),
        Cell(
            _BLURRED,
            {"strength": 1.0, "blur": "yes"},
            {"views.strength": 1.0, "views.policy": f"{_POLICY} + blur"},
        ),
    )


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    cells = [_name(s) for s in STRENGTHS.values()]
    return (
        rises(cells, [math.log2(s) for s in STRENGTHS.values()],
              "Stronger colour distortion is better", "59.6 at 1/8, 61.0, 62.6, 63.2 at 1",
              per="per doubling of the strength"),
        better(_name(1.0), _name(0.125), "Strength 1 beats 1/8", "63.2 against 59.6"),
        better(_BLURRED, _name(1.0), "Blur adds to strength 1", "64.5 against 63.2"),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    rows = [(text, _name(s)) for text, s in STRENGTHS.items()] + [("1, with blur", _BLURRED)]
    return bars(
        results,
        {
            "kNN accuracy": [(label, cell, "knn") for label, cell in rows],
            "linear classifier": [(label, cell, "linear") for label, cell in rows],
        },
        reference=(_name(1.0), "untrained"),
    )


STUDY: Final = Study(
    name="strength",
    question="How strong should the distortion of colours be?",
    source="SimCLR (2002.05709), section 3.2 and table 1",
    found=(
        "Linear top-1 on ImageNet: strength 1/8 59.6, 1/4 61.0, 1/2 62.6, 1 63.2, 1 with blur "
        "64.5.",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={"views.policy": _POLICY},
    reference=_name(1.0),
    budget=Budget(epochs=12),
    measures=("linear",),
    shown=("knn", "linear", "pretext", "effective_rank"),
    notes=(
        "SimCLR itself takes strength 1/2 and no blur for CIFAR-10 (appendix B.9). Views of 32 "
        "pixels are blurred by a kernel of 3 pixels.",
        "Twelve epochs: what is hard to match takes longer to learn from.",
    ),
)
