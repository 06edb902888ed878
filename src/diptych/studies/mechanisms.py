"""Three dictionaries against their size (MoCo, section 4.1, figure 3)."""

import math
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.claims import Claim, better, rises
from diptych.studies.drawing import lines
from diptych.studies.results import Results
from diptych.studies.study import Cell, Study

SIZES: Final = (128, 256, 512, 1024, 2048, 4096)
END_TO_END: Final = (128, 256, 512)
"""Where it is the batch: beyond, a run of this length has too few steps."""
_LARGEST: Final = SIZES[-1]


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return (
        *(_cell("end-to-end", k, _end_to_end(k)) for k in END_TO_END),
        *(_cell("bank", k, _bank(k)) for k in SIZES),
        *(_cell("queue", k, {"method.dictionary.queue_size": k}) for k in SIZES),
    )


def _cell(mechanism: str, k: int, settings: dict[str, object]) -> Cell:
    return Cell(f"{mechanism}-{k}", {"mechanism": mechanism, "K": k}, settings)


def _end_to_end(k: int) -> dict[str, object]:
    return {
        "training.batch_size": k,
        "method.dictionary.kind": "batch",
        "method.dictionary.both_views": False,
        "method.key_encoder.kind": "shared",
    }


def _bank(k: int) -> dict[str, object]:
    return {
        "norm.kind": "batch",
        "method.dictionary.kind": "bank",
        "method.dictionary.bank_negatives": k,
        "method.key_encoder.kind": "shared",
    }


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    doublings = [math.log2(k) for k in SIZES]
    per = "per doubling of K"
    return (
        rises([f"queue-{k}" for k in SIZES], doublings,
              "The queue improves with its size", "at every step up to 65,536", per=per),
        rises([f"bank-{k}" for k in SIZES], doublings,
              "The bank improves with its size", "at every step up to 65,536", per=per),
        rises([f"end-to-end-{k}" for k in END_TO_END], doublings[: len(END_TO_END)],
              "End-to-end improves with its batch", "up to 1,024, the largest", per=per),
        better(f"queue-{_LARGEST}", f"bank-{_LARGEST}",
               f"The queue beats the bank at K = {_LARGEST:,}", "by 2.6 points at 65,536"),
        Claim(f"Queue and end-to-end are about equal at K = {END_TO_END[-1]}",
              "about equal at 1,024",
              {(f"{one}-{END_TO_END[-1]}", "knn"): sign
               for one, sign in (("queue", 1.0), ("end-to-end", -1.0))},
              tolerance=1.5),
    )  # fmt: skip


def _draw(results: Results) -> Figure:
    series = {
        name: [(float(k), f"{name}-{k}") for k in sizes]
        for name, sizes in (("end-to-end", END_TO_END), ("bank", SIZES), ("queue", SIZES))
    }
    return lines(
        results,
        series,
        x_label="K, negatives of a query",
        base=2,
        reference=(f"queue-{_LARGEST}", "untrained"),
    )


STUDY: Final = Study(
    name="mechanisms",
    question="How should the keys be kept, and how many?",
    source="MoCo (1911.05722), section 4.1 and figure 3",
    found=(
        "End-to-end, memory bank and queue all improve with the number of keys K (linear top-1, "
        "ImageNet).",
        "End-to-end stops at K = 1,024, the largest batch, and is about equal to the queue there.",
        "The bank stays about 2.6 points under the queue at K = 65,536 (58.0 against 60.6).",
    ),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={"recipe": "moco_v2"},
    reference=f"queue-{_LARGEST}",
    differences=(
        "MoCo v2's head and schedule instead of v1's; momentum 0.99 of the twin instead of 0.999, "
        "as the run is short.",
        "K from 128 to 4,096; the set has 10,000 images, so a larger K would hold most of it.",
    ),
)
