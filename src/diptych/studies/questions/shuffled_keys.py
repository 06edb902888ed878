"""What batch norm tells the queries, and what mends it (MoCo, section 3.3)."""

from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, better
from diptych.studies.drawing import bars
from diptych.studies.study import Budget, Cell, Study

GROUPS: Final = (8, 4)
_LABELS: Final = {
    "batch": "whole batch",
    **{f"{kind}-{g}": f"groups of {g}, {words}" for g in GROUPS
       for kind, words in (("split", "not shuffled"), ("shuffle", "shuffled"))},
    "layer": "layer norm",
    "group": "group norm",
}  # fmt: skip


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    found = []
    for name in _LABELS:
        kind, _, group = name.partition("-")
        size = {"norm.images_per_group": int(group)} if group else {}
        found.append(Cell(name, {"norm": kind, "images": group}, {"norm.kind": kind, **size}))
    return tuple(found)


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    found = []
    for g in GROUPS:
        split, shuffle = f"split-{g}", f"shuffle-{g}"
        found += [
            better(split, shuffle,
                   f"Without shuffling, groups of {g}: more queries find their key",
                   "pretext accuracy shoots up", measure="pretext"),
            better(split, shuffle,
                   f"Without shuffling, groups of {g}: more of them find it by its company alone",
                   "batch statistics leak", measure="leak"),
            Claim(f"Shuffled, groups of {g}: hardly any query finds its key by its company",
                  "shuffling removes the leak", {(shuffle, "leak"): 1.0}, tolerance=1.0),
            better(shuffle, split,
                   f"Without shuffling, groups of {g}: kNN accuracy falls", "it falls"),
        ]  # fmt: skip
    return tuple(found)


def _draw(results: Results) -> Figure:
    titles = {
        "queries that find their key": "pretext",
        "... by its company alone": "leak",
        "kNN accuracy": "knn",
    }
    return bars(
        results,
        {
            title: [(label if measure == "pretext" else "", cell, measure)
                    for cell, label in _LABELS.items()]
            for title, measure in titles.items()
        },
    )  # fmt: skip


STUDY: Final = Study(
    name="shuffle",
    question="Does batch norm tell the queries which key is theirs, and what mends it?",
    source="MoCo (1911.05722), section 3.3",
    found=(
        "Where a query and its key share batch statistics the pretext accuracy shoots up and kNN "
        "accuracy falls; shuffling the keys over the devices mends it.",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={"recipe": "moco_v2"},
    reference="batch",
    budget=Budget(epochs=10),
    measures=("leak",),
    shown=("knn", "pretext", "leak"),
    differences=(
        "Groups of 8 and of 4 images of one batch stand for the paper's 8 devices with 32 images "
        "each: the smaller a group, the more its statistics tell.",
        "Layer and group norm are not in the paper's comparison; in one process norm.kind = 'sync' "
        "is the whole batch. Ten epochs, as a leak needs time to be found.",
    ),
    notes=(
        "By its company alone: queries that find their key among some 2,000 encoded in the groups "
        "of training, less those that find it when keys are encoded in other company.",
    ),
    caption="Bars are one standard error over seeds.",
)
