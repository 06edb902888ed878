"""StudyResults that no run gave, and a study so small that its runs take a second."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from diptych.studies.cell_results import CellResult, StudyResults
from diptych.studies.drawing import bars
from diptych.studies.study import Budget, Cell, Claim, Study, better


def result(cell: str, seed: int, **measures: float) -> CellResult:
    return CellResult(
        study="made-up",
        cell=cell,
        seed=seed,
        place={"width": 16.0, "kind": cell},
        measures=measures,
        command=f'diptych pretrain "a, b" --seed {seed}',
        seconds=1.5,
    )


def results(**values: Sequence[float]) -> StudyResults:
    """KNN accuracies of each cell, by seed."""
    return StudyResults(
        [result(cell, seed, knn=v) for cell, all_ in values.items() for seed, v in enumerate(all_)]
    )


def _grid(epochs: int) -> tuple[Cell, ...]:
    return (
        Cell("crop", {"view": "crop"}, {"views.policy": "crop"}),
        Cell("still", {"view": "still"}, {"views.policy": "center", "training.epochs": 2 * epochs}),
    )


def _claims(found: StudyResults) -> tuple[Claim, ...]:
    return (better("crop", "still", "Crops beat nothing", "of course"),)


def _draw(found: StudyResults) -> Figure:
    return bars(found, [("crop", "crop"), ("still", "still")], {"kNN": "knn"})


TINY = Study(
    name="tiny",
    question="Does a crop <teach> anything?",
    source="nobody",
    found=("It does.",),
    grid=_grid,
    claims=_claims,
    draw=_draw,
    base={
        "encoder.width": 4,
        "encoder.stage_blocks": (1, 1),
        "views.side_pixels": 16,
        "training.batch_size": 16,
        "probe.images": 32,
        "probe.log_every_steps": 1,
    },
    reference="crop",
    budget=Budget(images=None, epochs=1),
)
