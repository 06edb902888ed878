"""Whether to compare directions or lengths too, and how sharply (SimCLR, section 5.1, table 5)."""

from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, best_of, better
from diptych.studies.drawing import bars
from diptych.studies.study import Cell, Study

COSINE: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
DOT: Final = (1.0, 10.0, 100.0)


def _name(similarity: str, temperature: float) -> str:
    return f"{'l2' if similarity == 'cosine' else 'no-l2'}-{temperature:g}"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return tuple(
        Cell(
            _name(similarity, t),
            {"l2 norm": "yes" if similarity == "cosine" else "no", "temperature": t},
            {"method.loss.similarity": similarity, "method.loss.temperature": t},
        )
        for similarity, temperatures in (("cosine", COSINE), ("dot", DOT))
        for t in temperatures
    )


def _claims(results: Results) -> tuple[Claim, ...]:
    cosine, dot = ([_name(s, t) for t in ts] for s, ts in (("cosine", COSINE), ("dot", DOT)))
    best, best_dot = best_of(results, cosine), best_of(results, dot)
    middle = best_of(results, cosine[1:-1])
    surest = best_of(results, dot, "pretext")
    return (
        better(best, best_dot, f"With l2 norm ({best}) beats without ({best_dot})",
               "64.4 against 57.2"),
        better(middle, cosine[0], f"A middle temperature ({middle}) beats the lowest",
               "64.4 at 0.1 against 59.7 at 0.05"),
        better(middle, cosine[-1], f"A middle temperature ({middle}) beats the highest",
               "64.4 at 0.1 against 58.0 at 1"),
        better(surest, best, "Without l2 norm more queries find their key",
               "contrastive accuracy 92.1 without", measure="pretext"),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    rows = [(f"l2 norm, T = {t:g}", _name("cosine", t)) for t in COSINE]
    rows += [(f"no l2 norm, T = {t:g}", _name("dot", t)) for t in DOT]
    return bars(
        results,
        {
            "kNN accuracy": [(label, cell, "knn") for label, cell in rows],
            "queries that find their key": [("", cell, "pretext") for _, cell in rows],
        },
        reference=(_name("cosine", 0.2), "untrained"),
    )


STUDY: Final = Study(
    name="temperature",
    question="Compare directions only, and how sharply?",
    source="SimCLR (2002.05709), section 5.1 and table 5",
    found=(
        "With l2 norm: T = 0.05 59.7, 0.1 64.4, 0.5 60.7, 1 58.0; without: 57.2 (T = 10) and 57.0 "
        "(T = 100), though there the contrastive accuracy is higher (91.7 and 92.1; linear top-1, "
        "ImageNet).",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={},
    reference=_name("cosine", 0.2),
    shown=("knn", "pretext", "effective_rank"),
)
