"""Operations alone and in ordered pairs, on one branch only (SimCLR, section 3.1, figure 5)."""

from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, best_of, better
from diptych.studies.drawing import heat_map
from diptych.studies.study import Budget, Cell, Study

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
    """Name of the cell; None for a pair that there is not: a crop comes first."""
    if first == second:
        return first
    return None if second == "crop" else f"{first}+{second}"


def _policy(first: str, second: str) -> str:
    texts = [OPERATIONS[name] for name in dict.fromkeys((first, second))]
    return " + ".join(texts if first == "crop" else ["center", *texts])


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    found = []
    for first in OPERATIONS:
        for second in OPERATIONS:
            name = _pair(first, second)
            if name is not None:
                place = {"first": first, "second": second}
                policies = {"views.policy": _policy(first, second), "views.second": "center"}
                found.append(Cell(name, place, policies))
    return tuple(found)


def _claims(results: Results) -> tuple[Claim, ...]:
    alone = list(OPERATIONS)
    pairs = [cell.name for cell in _grid(1) if cell.name not in (*alone, "crop+color")]
    next_pair, single = best_of(results, pairs), best_of(results, alone)
    return (
        better("crop+color", "crop", "Crop and colour beat crop alone", "56 against 33"),
        better("crop+color", "color", "Crop and colour beat colour alone", "56 against 19"),
        better("crop+color", next_pair,
               f"Crop and colour are the best pair (the next here: {next_pair})", "by far"),
        better("crop+color", single,
               f"No operation alone is as good (the best here: {single})", "none"),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    names = list(OPERATIONS)
    return heat_map(
        results,
        [[_pair(first, second) for second in names] for first in names],
        rows=names,
        columns=names,
        row_label="first operation",
        column_label="second operation",
    )


STUDY: Final = Study(
    name="composition",
    question="Which changes of an image, alone and in pairs, teach the most?",
    source="SimCLR (2002.05709), section 3.1 and figure 5",
    found=(
        "With operations on one branch only, a crop followed by colour distortion wins by far: "
        "about 56, against 33 for a crop alone and 19 for colour alone (linear top-1, ImageNet).",
        "No operation alone is enough.",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={"views.strength": 0.5},
    reference="crop",
    budget=Budget(epochs=4),
    differences=(
        "The paper crops every image first, as ImageNet's differ in size, and the other branch "
        "sees that crop; images here are all of one size, so the other branch sees the whole "
        "image.",
        "A crop comes first in our policies: pairs that end with one are left out. The other "
        "operations commute with a crop but for its resampling.",
        "Colour at half the strength (SimCLR, appendix B.9). Four epochs, so that 43 cells with "
        "three seeds fit into an hour.",
    ),
    caption="Means over seeds; alone on the diagonal.",
)
