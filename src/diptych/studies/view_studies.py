"""Which changes of an image make good views: composition and strength (SimCLR, section 3)."""

from functools import partial
from typing import Final

from diptych.studies.cell_results import StudyResults
from diptych.studies.drawing import bars, heat_map
from diptych.studies.study import Budget, Cell, Claim, Study, best_of, better, fixed, rises

OPERATIONS: Final = {
    "crop": "crop(area=0.08..1)",
    "cutout": "cutout(1)",
    "color": "color(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2) + gray",
    "sobel": "sobel",
    "noise": "noise(1)",
    "blur": "blur(1, kernel=0.2)",
    "rotate": "quarter_turns",
}
"""The paper's seven, in its order."""


def _pair(first: str, second: str) -> str | None:
    """Name of the cell; None for a pair that ends with a crop, which must come first."""
    if first == second:
        return first
    return None if second == "crop" else f"{first}+{second}"


def _policy(first: str, second: str) -> str:
    texts = [OPERATIONS[name] for name in dict.fromkeys((first, second))]
    return " + ".join(texts if first == "crop" else ["center", *texts])


_PAIRS: Final = tuple(
    Cell(
        name,
        {"first": first, "second": second},
        {"views.policy": _policy(first, second), "views.second": "center"},
    )
    for first in OPERATIONS
    for second in OPERATIONS
    if (name := _pair(first, second)) is not None
)


def _composition_claims(results: StudyResults) -> tuple[Claim, ...]:
    alone = list(OPERATIONS)
    pairs = [cell.name for cell in _PAIRS if cell.name not in (*alone, "crop+color")]
    next_pair, single = best_of(results, pairs), best_of(results, alone)
    return (
        better("crop+color", "crop", "Crop and colour beat crop alone", "56 against 33",
               paper_points=23),
        better("crop+color", "color", "Crop and colour beat colour alone", "56 against 19",
               paper_points=37),
        better("crop+color", next_pair,
               f"Crop and colour are the best pair (the next here: {next_pair})", "by far"),
        better("crop+color", single,
               f"No operation alone is as good (the best here: {single})", "none"),
    )  # fmt: skip


COMPOSITION: Final = Study(
    name="composition",
    question="Which changes of an image, alone and in pairs, teach the most?",
    source="SimCLR (2002.05709), section 3.1 and figure 5",
    found=(
        "With operations on one branch only, a crop followed by colour distortion wins by far: "
        "about 56, against 33 for a crop alone and 19 for colour alone (linear top-1, ImageNet).",
        "No operation alone is enough.",
    ),
    grid=fixed(*_PAIRS),
    claims=_composition_claims,
    draw=partial(
        heat_map,
        table=[[_pair(first, second) for second in OPERATIONS] for first in OPERATIONS],
        names=list(OPERATIONS),
        row_label="first operation",
        column_label="second operation",
    ),
    base={"views.strength": 0.5},
    reference="crop",
    budget=Budget(epochs=4),
    differences=(
        "The paper crops every image first, as ImageNet's differ in size, and the other branch "
        "sees that crop; images here are all of one size, so the other branch sees the whole "
        "image.",
        "A crop comes first in our policies: pairs that end with one are left out. The other "
        "operations commute with a crop but for its resampling.",
        "Colour at half the strength (SimCLR, appendix B.9). Four epochs by default, as there are "
        "many cells.",
    ),
    caption="Means over seeds; alone on the diagonal.",
)

STRENGTHS: Final = {"1/8": 0.125, "1/4": 0.25, "1/2": 0.5, "1": 1.0}
_COLOR: Final = "crop + flip + color(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2) + gray"
_STRENGTH_CELLS: Final = [f"strength-{s:g}" for s in STRENGTHS.values()]

STRENGTH: Final = Study(
    name="strength",
    question="How strong should the distortion of colours be?",
    source="SimCLR (2002.05709), section 3.2 and table 1",
    found=(
        "Linear top-1 on ImageNet: strength 1/8 59.6, 1/4 61.0, 1/2 62.6, 1 63.2, 1 with blur "
        "64.5.",
    ),
    grid=fixed(
        *(
            Cell(f"strength-{s:g}", {"strength": s, "blur": "no"}, {"views.strength": s})
            for s in STRENGTHS.values()
        ),
        Cell(
            "strength-1-blur",
            {"strength": 1.0, "blur": "yes"},
            {"views.strength": 1.0, "views.policy": f"{_COLOR} + blur"},
        ),
    ),
    claims=fixed(
        rises(_STRENGTH_CELLS, list(STRENGTHS.values()), "Stronger colour distortion is better",
              "59.6 at 1/8, 61.0, 62.6, 63.2 at 1", per="the strength"),
        better("strength-1", "strength-0.125", "Strength 1 beats 1/8", "63.2 against 59.6",
               paper_points=3.6),
        better("strength-1-blur", "strength-1", "Blur adds to strength 1", "64.5 against 63.2",
               paper_points=1.3),
    ),
    draw=partial(
        bars,
        rows=[
            *zip(STRENGTHS, _STRENGTH_CELLS, strict=True),
            ("1, with blur", "strength-1-blur"),
        ],
        measures={"kNN accuracy": "knn", "linear classifier": "linear"},
        label_all=True,
        untrained="strength-1",
    ),
    base={"views.policy": _COLOR},
    reference="strength-1",
    budget=Budget(epochs=12),
    measures=("linear",),
    shown=("knn", "linear", "pretext", "effective_rank"),
    notes=(
        "SimCLR itself takes strength 1/2 and no blur for CIFAR-10 (appendix B.9). Views of 32 "
        "pixels are blurred by a kernel of 3 pixels.",
        "Twelve epochs by default: what is hard to match takes longer to learn from.",
    ),
)  # fmt: skip
