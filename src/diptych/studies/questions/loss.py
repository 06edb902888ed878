"""Five losses, each at the better of two learning rates (SimCLR, section 5.1, table 4)."""

from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, best_of, better
from diptych.studies.drawing import bars
from diptych.studies.study import Cell, Study

LOSSES: Final = {
    "nt-xent": ("NT-Xent", {"method.loss.kind": "info_nce", "method.loss.temperature": 0.2}),
    "nt-logistic": (
        "NT-Logistic",
        {"method.loss.kind": "nt_logistic", "method.loss.temperature": 0.2},
    ),
    # The paper's margin loss divides by no temperature.
    "margin": (
        "margin",
        {
            "method.loss.kind": "triplet",
            "method.loss.temperature": 1.0,
            "method.loss.triplet.margin": 0.8,
        },
    ),
}
_SEMI_HARD: Final = ("nt-logistic", "margin")
RATES: Final = (0.24, 0.96)


def _variants() -> dict[str, tuple[str, dict[str, object]]]:
    """All five: label and settings by name."""
    found: dict[str, tuple[str, dict[str, object]]] = {
        name: (label, dict(settings)) for name, (label, settings) in LOSSES.items()
    }
    for name in _SEMI_HARD:
        label, settings = found[name]
        found[f"{name}-semi-hard"] = (
            f"{label}, semi-hard",
            {**settings, "method.loss.semi_hard": True},
        )
    return found


def _name(loss: str, rate: float) -> str:
    return f"{loss}-rate-{rate:g}"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return tuple(
        Cell(
            _name(loss, rate),
            {"loss": label, "learning rate": rate},
            {**settings, "optimizer.learning_rate": rate},
        )
        for loss, (label, settings) in _variants().items()
        for rate in RATES
    )


def _best(results: Results, loss: str) -> str:
    return best_of(results, [_name(loss, rate) for rate in RATES])


def _claims(results: Results) -> tuple[Claim, ...]:
    best = {loss: _best(results, loss) for loss in _variants()}
    others = [loss for loss in best if loss != "nt-xent"]
    paper = {
        "nt-logistic": "63.9 against 51.6",
        "margin": "63.9 against 50.9",
        "nt-logistic-semi-hard": "63.9 against 57.9",
        "margin-semi-hard": "63.9 against 57.5",
    }
    labels = {loss: label for loss, (label, _) in _variants().items()}
    return (
        *(better(best["nt-xent"], best[loss], f"NT-Xent beats {labels[loss]}", paper[loss])
          for loss in others),
        better(best["nt-logistic-semi-hard"], best["nt-logistic"],
               "Semi-hard negatives help NT-Logistic", "57.9 against 51.6"),
        better(best["margin-semi-hard"], best["margin"],
               "Semi-hard negatives help the margin loss", "57.5 against 50.9"),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    rows = [(label, _best(results, loss)) for loss, (label, _) in _variants().items()]
    return bars(
        results,
        {"kNN accuracy, better learning rate": [(label, cell, "knn") for label, cell in rows]},
        reference=(_name("nt-xent", RATES[0]), "untrained"),
    )


STUDY: Final = Study(
    name="loss",
    question="Which loss learns the best features?",
    source="SimCLR (2002.05709), section 5.1 and table 4",
    found=(
        "Linear top-1 on ImageNet: margin 50.9, NT-Logistic 51.6, margin with semi-hard negatives "
        "57.5, NT-Logistic with them 57.9, NT-Xent 63.9.",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={},
    reference=_name("nt-xent", RATES[0]),
    differences=(
        "Temperature 0.2 of both NT losses, margin 0.8 of cosines; of the learning rate the better "
        "of two by kNN on the test images, the same choice for each loss. The paper tunes more.",
    ),
)
