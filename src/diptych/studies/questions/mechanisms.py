"""Three dictionaries against their size (MoCo, section 4.1, figure 3)."""

import math
from collections.abc import Sequence
from typing import Final

from matplotlib.figure import Figure

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim, better, rises
from diptych.studies.drawing import lines
from diptych.studies.study import Cell, Study

SIZES: Final = (2, 8, 32, 128, 512, 2048)
LARGEST_SHARE: Final = 512
"""Of 10,000 images as large a share as 65,536 of ImageNet's, the paper's largest: 5%. Findings are
compared up to here."""
END_TO_END: Final = (32, 128, 512)
"""Where it is the batch: beyond, a run of this length has too few steps."""
_REFERENCE: Final = f"queue-{LARGEST_SHARE}"


def _grid(epochs: int) -> tuple[Cell, ...]:
    del epochs
    return (
        *(_cell("end-to-end", k, _end_to_end(k)) for k in END_TO_END),
        *(_cell("bank", k, _bank(k)) for k in SIZES),
        *(_cell("queue", k, {"method.dictionary.queue.size": k}) for k in SIZES),
    )


def _cell(mechanism: str, k: int, settings: dict[str, object]) -> Cell:
    return Cell(f"{mechanism}-{k}", {"mechanism": mechanism, "K": k}, settings)


def _end_to_end(k: int) -> dict[str, object]:
    return {
        "training.batch_size": k,
        "method.dictionary.kind": "batch",
        "method.dictionary.batch.both_views": False,
        "method.key_encoder.kind": "shared",
    }


def _bank(k: int) -> dict[str, object]:
    return {
        "norm.kind": "batch",
        "method.dictionary.kind": "bank",
        "method.dictionary.bank.negatives": k,
        "method.key_encoder.kind": "shared",
    }


def _claims(results: Results) -> tuple[Claim, ...]:
    del results
    compared = [k for k in SIZES if k <= LARGEST_SHARE]
    return (
        _grows("queue", compared, "The queue improves with its size", "at every step to 65,536"),
        _grows("bank", compared, "The bank improves with its size", "at every step to 65,536"),
        _grows("end-to-end", END_TO_END, "End-to-end improves with its batch", "up to 1,024"),
        better(f"queue-{LARGEST_SHARE}", f"bank-{LARGEST_SHARE}",
               f"The queue beats the bank at K = {LARGEST_SHARE}", "by 2.6 points at 65,536"),
        Claim(f"Queue and end-to-end are about equal at K = {END_TO_END[-1]}",
              "about equal at 1,024",
              {(f"{one}-{END_TO_END[-1]}", "knn"): sign
               for one, sign in (("queue", 1.0), ("end-to-end", -1.0))},
              tolerance=1.5),
    )  # fmt: skip


def _grows(mechanism: str, sizes: Sequence[int], finding: str, paper: str) -> Claim:
    cells, doublings = [f"{mechanism}-{k}" for k in sizes], [math.log2(k) for k in sizes]
    return rises(cells, doublings, finding, paper, per="per doubling of K")


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
        reference=(_REFERENCE, "untrained"),
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
    reference=_REFERENCE,
    differences=(
        "MoCo v2's head and schedule instead of v1's; momentum 0.99 instead of 0.999, "
        "as the run is short.",
        "K from 2 to 2,048 of 10,000 images. The paper's K, 256 to 65,536 of 1.28 million, is "
        "0.02% to 5% of the images, here 2 to 512; findings are compared up to there. K = 2,048 "
        "lies beyond: a fifth of all images, and those are of ten classes only, so that a tenth of "
        "the keys are of the query's own class.",
    ),
    notes=(
        "End-to-end, K is the batch: with 10,000 images a batch of 512 takes 19 steps in an epoch, "
        "one of 32 takes 312. Here larger batches mean fewer steps, which the paper's thousands "
        "of steps an epoch hide.",
    ),
)
