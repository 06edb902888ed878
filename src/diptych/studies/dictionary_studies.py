"""How keys are kept and encoded: the dictionary, the momentum, batch norm (MoCo)."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from diptych.config.recipes import recipe_config
from diptych.studies.cell_results import StudyResults
from diptych.studies.drawing import bars, lines
from diptych.studies.study import Budget, Cell, Claim, Study, best_of, better, fixed, rises

SIZES: Final = (2, 8, 32, 128, 512, 2048)
LARGEST_SHARE: Final = 512
"""Of 10,000 images as large a share as 65,536 of ImageNet's, the paper's largest: 5%. Findings are
compared up to here."""
END_TO_END: Final = (32, 128, 512)
"""Batches of the end-to-end mechanism: with larger ones a run of this length has too few steps."""
_COMPARED: Final = [k for k in SIZES if k <= LARGEST_SHARE]


def _end_to_end(k: int) -> dict[str, Any]:
    return {
        "training.batch_size": k,
        "method.dictionary.kind": "batch",
        # Keys are the other views alone, so that K is the batch as in the paper.
        "method.dictionary.batch.both_views": False,
        "method.key_encoder.kind": "shared",
    }


def _bank(k: int) -> dict[str, Any]:
    return {
        # Keys of an earlier epoch cannot leak, so there is nothing to shuffle for.
        "norm.kind": "batch",
        "method.dictionary.kind": "bank",
        "method.dictionary.bank.negatives": k,
        "method.key_encoder.kind": "shared",
    }


def _queue(k: int) -> dict[str, Any]:
    return {"method.dictionary.queue.size": k}


_MECHANISMS: Final[Mapping[str, tuple[tuple[int, ...], Callable[[int], dict[str, Any]]]]] = {
    "end-to-end": (END_TO_END, _end_to_end),
    "bank": (SIZES, _bank),
    "queue": (SIZES, _queue),
}


def _cells(mechanism: str, sizes: tuple[int, ...] | list[int]) -> list[str]:
    return [f"{mechanism}-{k}" for k in sizes]


def _shares(budget: Budget) -> str:
    """What K is of all images, here and in the paper."""
    of, here, beyond = "", "", ""
    if budget.images is not None:
        of = f" of {budget.images:,} images"
        here = f", here {LARGEST_SHARE / budget.images:.0%} of them"
        beyond = f": {SIZES[-1] / budget.images:.0%} of all images"
    return (
        f"K from {SIZES[0]} to {SIZES[-1]:,}{of}. The paper's K, 256 to 65,536 of 1.28 million, is "
        f"0.02% to 5% of the images; findings are compared up to K = {LARGEST_SHARE}{here}. "
        f"K = {SIZES[-1]:,} lies beyond{beyond}. Of images of few classes, many of the keys are of "
        "the query's own class."
    )


def _batches(budget: Budget) -> str:
    small, large = END_TO_END[0], END_TO_END[-1]
    few, many = budget.steps(large), budget.steps(small)
    steps = "."
    if few is not None and many is not None:
        steps = (
            f": with {budget.images:,} images a batch of {large} takes {few:,} steps in an epoch, "
            f"one of {small} takes {many:,}."
        )
    return (
        f"End-to-end, K is the batch{steps} Here larger batches mean fewer steps, which the "
        "paper's thousands of steps an epoch hide."
    )


def _filling(budget: Budget) -> str:
    return (
        f"The first epoch of a bank only fills it, so that it learns in {budget.epochs - 1} of "
        f"{budget.epochs}."
    )


MECHANISMS: Final = Study(
    name="mechanisms",
    question="How should the keys be kept, and how many?",
    source="MoCo (1911.05722), section 4.1 and figure 3",
    found=(
        "End-to-end, memory bank and queue all improve with the number of keys K (linear top-1, "
        "ImageNet).",
        "End-to-end stops at K = 1,024, the largest batch, and is about equal to the queue there.",
        "The bank stays about 2.6 points under the queue at K = 65,536 (58.0 against 60.6).",
    ),
    grid=fixed(
        *(
            Cell(f"{mechanism}-{k}", {"mechanism": mechanism, "K": k}, settings(k))
            for mechanism, (sizes, settings) in _MECHANISMS.items()
            for k in sizes
        )
    ),
    claims=fixed(
        *(
            rises(
                _cells(mechanism, sizes), sizes, f"{words} improves with its {what}", paper, per="K"
            )
            for mechanism, sizes, words, what, paper in (
                ("queue", _COMPARED, "The queue", "size", "at every step to 65,536"),
                ("bank", _COMPARED, "The bank", "size", "at every step to 65,536"),
                ("end-to-end", END_TO_END, "End-to-end", "batch", "up to 1,024"),
            )
        ),
        better(
            f"queue-{LARGEST_SHARE}",
            f"bank-{LARGEST_SHARE}",
            f"The queue beats the bank at K = {LARGEST_SHARE}",
            "by 2.6 points at 65,536",
            paper_points=2.6,
        ),
        better(
            f"queue-{END_TO_END[-1]}",
            f"end-to-end-{END_TO_END[-1]}",
            f"Queue and end-to-end are about equal at K = {END_TO_END[-1]}",
            "about equal at 1,024",
            tolerance=1.5,
        ),
    ),
    draw=partial(
        lines,
        series={
            mechanism: list(zip(sizes, _cells(mechanism, sizes), strict=True))
            for mechanism, (sizes, _) in _MECHANISMS.items()
        },
        x_label="K, negatives of a query",
        untrained=f"queue-{LARGEST_SHARE}",
    ),
    base={"recipe": "moco_v2"},
    reference=f"queue-{LARGEST_SHARE}",
    differences=(
        "MoCo v2's head and schedule instead of v1's; momentum 0.99 instead of 0.999, "
        "as the run is short.",
        _shares,
    ),
    notes=(_batches, _filling),
)

MOMENTA: Final = (0.0, 0.9, 0.99, 0.999, 0.9999)
_LITTLE: Final = 0.1  # of the random start, which no longer decides


def _momentum_claims(results: StudyResults) -> tuple[Claim, ...]:
    best = best_of(results, [f"m-{m:g}" for m in MOMENTA[1:]])
    return (
        better(best, "m-0", f"A slowly moving key encoder ({best}) beats a copy (m = 0)",
               "m = 0 fails to converge"),
        better("m-0.9", "m-0", "A copy (m = 0) is worse than m = 0.9 too", "55.2 against none"),
        better("m-0.99", "m-0.9", "Momentum 0.99 beats 0.9", "57.8 against 55.2",
               paper_points=2.6),
        better("m-0.999", "m-0.99", "Momentum 0.999 beats 0.99", "59.0 against 57.8",
               paper_points=1.2),
        better("m-0.999", "m-0.9999", "Momentum 0.999 beats 0.9999", "59.0 against 58.9",
               paper_points=0.1),
    )  # fmt: skip


def _forgetting(budget: Budget) -> str:
    """How much of its start the slowest key encoder still has at the end."""
    slowest = MOMENTA[-1]
    text = "A momentum encoder forgets its start after about 1 / (1 - m) steps"
    steps = budget.steps(recipe_config("moco_v2", "tiny").training.batch_size)
    if steps is None:
        return f"{text}, and the paper's run has a million."
    kept = slowest ** (budget.epochs * steps)
    text += f". This run has {budget.epochs * steps:,}, the paper's a million: here m = {slowest:g}"
    text += f" keeps {kept:.0%} of its random start to the end"
    if kept < _LITTLE:
        return f"{text}."
    return f"{text}, so the best m is smaller, and the right end of the paper's table cannot show."


MOMENTUM: Final = Study(
    name="momentum",
    question="How slowly should the key encoder follow the query encoder?",
    source="MoCo (1911.05722), section 4.1, ablation of the momentum",
    found=(
        "With a queue of 4,096 keys: m = 0.9 gives 55.2, 0.99 57.8, 0.999 59.0, 0.9999 58.9 "
        "(linear top-1, ImageNet).",
        "m = 0, a plain copy, does not converge.",
    ),
    grid=fixed(
        *(Cell(f"m-{m:g}", {"momentum": m}, {"method.key_encoder.momentum": m}) for m in MOMENTA)
    ),
    claims=_momentum_claims,
    draw=partial(
        bars,
        rows=[(f"m = {m:g}", f"m-{m:g}") for m in MOMENTA],
        measures={"kNN accuracy": "knn", "pretext accuracy": "pretext"},
        label_all=True,
        untrained="m-0.99",
    ),
    base={"recipe": "moco_v2", "method.dictionary.queue.size": 4096},
    reference="m-0.99",
    shown=("knn", "pretext", "effective_rank"),
    notes=(
        _forgetting,
        "Known of m = 0 and 0.9: on 10,000 images of CIFAR-10 in six epochs both hardly learn "
        "(kNN accuracy 27.3 to 30.9 and 29.7 to 31.9 by seed, untrained 28.0): that a copy is "
        "worse is seen as a mean over nine seeds, by a difference far smaller than the paper's.",
    ),
)

GROUPS: Final = (8, 4)
_NORMS: Final = {
    "batch": "whole batch",
    **{
        f"{kind}-{g}": f"groups of {g}, {words}"
        for g in GROUPS
        for kind, words in (("split", "not shuffled"), ("shuffle", "shuffled"))
    },
    "layer": "layer norm",
    "group": "group norm",
}


def _norm_cell(name: str) -> Cell:
    kind, _, group = name.partition("-")
    size = {"norm.images_per_group": int(group)} if group else {}
    return Cell(name, {"norm": kind, "images": group}, {"norm.kind": kind, **size})


def _shuffle_claims(g: int) -> tuple[Claim, ...]:
    split, shuffle = f"split-{g}", f"shuffle-{g}"
    without = f"Without shuffling, groups of {g}:"
    return (
        better(split, shuffle, f"{without} the pretext accuracy is higher",
               "pretext accuracy shoots up", measure="pretext"),
        better(split, shuffle, f"{without} the leak accuracy is higher",
               "batch statistics leak", measure="leak"),
        Claim(f"Shuffled, groups of {g}: the leak accuracy is about zero",
              "shuffling removes the leak", {(shuffle, "leak"): 1.0}, tolerance=1.0),
        better(shuffle, split, f"{without} kNN accuracy falls", "it falls"),
    )  # fmt: skip


SHUFFLE: Final = Study(
    name="shuffle",
    question="Does batch norm tell the queries which key is theirs, and does shuffling prevent it?",
    source="MoCo (1911.05722), section 3.3",
    found=(
        "Where a query and its key share batch statistics the pretext accuracy shoots up and kNN "
        "accuracy falls; shuffling the keys over the devices prevents it.",
    ),
    grid=fixed(*map(_norm_cell, _NORMS)),
    claims=fixed(*(claim for g in GROUPS for claim in _shuffle_claims(g))),
    draw=partial(
        bars,
        rows=[(label, cell) for cell, label in _NORMS.items()],
        measures={
            "pretext accuracy": "pretext",
            "leak accuracy": "leak",
            "kNN accuracy": "knn",
        },
    ),
    base={"recipe": "moco_v2"},
    reference="batch",
    budget=Budget(epochs=10),
    measures=("leak",),
    shown=("knn", "pretext", "leak"),
    differences=(
        "Groups of 8 and of 4 images of one batch stand for the paper's 8 devices with 32 images "
        "each: the smaller a group, the more its statistics tell.",
        "Layer and group norm are not in the paper's comparison; in one process norm.kind = 'sync' "
        "is the whole batch. Ten epochs by default, as an encoder takes time to learn to use a "
        "leak.",
    ),
    notes=(
        "Leak accuracy: the share of queries that match their key among some 2,000 keys encoded in "
        "the groups of training, less the share that match it when the keys are encoded in other "
        "groups.",
        "Known of kNN accuracy that does not fall: on 5,000 images of CIFAR-10 it does not in 20 "
        "epochs either, with a leak accuracy of 7.3% by groups of 4 (40.8 ± 0.2 not shuffled, 39.7 "
        "± 0.4 shuffled). The pretext accuracy is then 8.7 ± 0.4 against 5.3 ± 0.5: the leak gives "
        "some points, where the paper's shoots up, and takes the place of little else. Conjecture: "
        "a shuffled key is normalised with three other images than its query, and what that blurs "
        "costs more than such a leak.",
    ),
    caption="Bars are one standard error over seeds.",
)
