"""Batch size by length of training, with the learning rate scaled or not.

SimCLR, section 5.2 and figure 9; MoCo, section 4.1.
"""

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, better, rises
from diptych.studies.drawing import lines
from diptych.studies.study import BASE, Budget, Cell, Study

SIZES: Final = (64, 128, 256, 512)
LENGTHS: Final = (0.5, 1.0, 2.0)
"""Of training, as multiples of the study's epochs."""
_RATE: Final = 0.24
_UNSCALED: Final = 128
"""The batch whose rate the runs keep that do not scale it."""


def _epochs(epochs: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys(max(1, round(epochs * length)) for length in LENGTHS))


def _name(size: int, epochs: int, scaling: str = "linear") -> str:
    return f"batch-{size}-epochs-{epochs}" + ("" if scaling == "linear" else "-unscaled")


def _grid(epochs: int) -> tuple[Cell, ...]:
    """Every batch for every length; with the rate not scaled, for the middle length only."""
    lengths = _epochs(epochs)
    return (
        *(_cell(size, length, "linear") for length in lengths for size in SIZES),
        *(_cell(size, _middle(lengths), "none") for size in SIZES if size != _UNSCALED),
    )


def _cell(size: int, epochs: int, scaling: str) -> Cell:
    return Cell(
        _name(size, epochs, scaling),
        {"batch": size, "epochs": epochs, "learning rate": scaling},
        {"training.batch_size": size, "training.epochs": epochs, **_rate(scaling)},
    )


def _middle(lengths: Sequence[int]) -> int:
    return lengths[len(lengths) // 2]


def _rate(scaling: str) -> dict[str, object]:
    if scaling == "linear":
        return {"optimizer.learning_rate": _RATE, "optimizer.scaling": "linear"}
    return {"optimizer.learning_rate": _RATE * _UNSCALED / 256, "optimizer.scaling": "none"}


def _lengths(results: Results) -> list[int]:
    """The epochs that results are there for, the shortest first."""
    found = {int(one.place["epochs"]) for one in results.all if "epochs" in one.place}
    return sorted(found) or list(_epochs(Budget().epochs))


def _claims(results: Results) -> tuple[Claim, ...]:
    lengths = _lengths(results)
    short, long, middle = lengths[0], lengths[-1], _middle(lengths)
    doublings = [math.log2(size) for size in SIZES]
    per = "per doubling of the batch"
    slopes = {
        epochs: rises([_name(size, epochs) for size in SIZES], doublings,
                      f"Larger batches are better in {epochs} epochs",
                      "clearly so in 100 epochs", per=per)
        for epochs in lengths
    }  # fmt: skip
    gap = dict(slopes[short].weights) | {g: -w for g, w in slopes[long].weights.items()}
    return (
        slopes[short],
        Claim(f"They help more in {short} epochs than in {long}", "the gap closes with length",
              gap, per),
        better(_name(SIZES[-1], middle), _name(SIZES[-1], middle, "none"),
               f"A batch of {SIZES[-1]} needs its learning rate scaled",
               "about 2 points lost without (MoCo, end-to-end, batch 1,024)"),
        better(_name(_UNSCALED, long), _name(_UNSCALED, short), "Longer training is better",
               "at every batch"),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    lengths = _lengths(results)
    series = {
        f"{epochs} epochs": [(float(size), _name(size, epochs)) for size in SIZES]
        for epochs in lengths
    }
    middle = _middle(lengths)
    series[f"{middle} epochs, rate not scaled"] = [
        (float(s), _name(s, middle, "linear" if s == _UNSCALED else "none")) for s in SIZES
    ]
    return lines(
        results,
        series,
        x_label="batch size",
        base=2,
        reference=(_name(_UNSCALED, middle), "untrained"),
    )


STUDY: Final = Study(
    name="batch",
    question="How large should a batch be, and does its learning rate have to grow with it?",
    source="SimCLR (2002.05709), section 5.2 and figure 9; MoCo (1911.05722), section 4.1",
    found=(
        "Larger batches help most in short training; with length the gap closes.",
        "Without linear scaling of the learning rate a large batch loses about 2 points (MoCo, "
        "end-to-end).",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={"recipe": BASE["recipe"]},
    reference=_name(_UNSCALED, Budget().epochs),
    differences=(
        "Batches of 64 to 512 instead of 256 to 8,192, SGD instead of LARS; the unscaled learning "
        f"rate is that of a batch of {_UNSCALED}.",
    ),
    notes=(
        "With 10,000 images a batch of 512 takes 19 steps in an epoch: in so few steps a larger "
        "batch means less learning, which the papers' 300 steps an epoch hide.",
    ),
)
