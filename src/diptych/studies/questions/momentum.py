"""How slowly the key encoder should follow (MoCo, section 4.1, ablation: momentum)."""

from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, best_of, better
from diptych.studies.drawing import bars
from diptych.studies.study import Cell, Study

MOMENTA: Final = (0.0, 0.9, 0.99, 0.999, 0.9999)


def _name(momentum: float) -> str:
    return f"m-{momentum:g}"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return tuple(
        Cell(_name(m), {"momentum": m}, {"method.key_encoder.momentum": m}) for m in MOMENTA
    )


def _claims(results: Results) -> tuple[Claim, ...]:
    slow = [_name(m) for m in MOMENTA[1:]]
    best = best_of(results, slow)
    return (
        better(best, "m-0", f"A slowly moving key encoder ({best}) beats a copy (m = 0)",
               "m = 0 fails to converge"),
        better("m-0.9", "m-0", "A copy (m = 0) is worse than m = 0.9 too",
               "55.2 against none"),
        better("m-0.99", "m-0.9", "Momentum 0.99 beats 0.9", "57.8 against 55.2"),
        better("m-0.999", "m-0.99", "Momentum 0.999 beats 0.99", "59.0 against 57.8"),
        better("m-0.999", "m-0.9999", "Momentum 0.999 beats 0.9999", "59.0 against 58.9"),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    rows = [(f"m = {m:g}", _name(m)) for m in MOMENTA]
    return bars(
        results,
        {
            "kNN accuracy": [(label, cell, "knn") for label, cell in rows],
            "queries that find their key": [(label, cell, "pretext") for label, cell in rows],
        },
        reference=("m-0.99", "untrained"),
    )


STUDY: Final = Study(
    name="momentum",
    question="How slowly should the key encoder follow the query encoder?",
    source="MoCo (1911.05722), section 4.1, ablation of the momentum",
    found=(
        "With a queue of 4,096 keys: m = 0.9 gives 55.2, 0.99 57.8, 0.999 59.0, 0.9999 58.9 "
        "(linear top-1, ImageNet).",
        "m = 0, a plain copy, does not converge.",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={"recipe": "moco_v2", "method.dictionary.queue.size": 4096},
    reference="m-0.99",
    shown=("knn", "pretext", "effective_rank"),
    notes=(
        "A momentum encoder forgets its start after about 1 / (1 - m) steps. This run has 470, "
        "the paper's a million: here m = 0.9999 keeps 95% of its random start to the end, so the "
        "best m is smaller, and the right end of the paper's table cannot show.",
    ),
)
