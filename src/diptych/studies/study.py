"""What a study is: a question, a grid of cells, and how the answer is read off their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeVar

from diptych.studies.cell_results import StudyResults
from diptych.studies.claims import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

T = TypeVar("T")

BASE: Final[Mapping[str, Any]] = {
    "recipe": "simclr",
    "scale": "tiny",
    "images.cache": "file",  # decoded once for all cells of all studies
    "encoder.width": 16,
    # A study measures every run itself, on all held-out images.
    "probe.health_every_epochs": 1000,
    "probe.images": 256,
}
"""Settings of all cells, by dotted names, unless a study or a cell says otherwise."""


@dataclass(frozen=True)
class Budget:
    """How much a cell may learn from.

    Attributes:
        images: to learn from; None for all there are.
        epochs: passes over them.
    """

    images: int | None = 10_000
    epochs: int = 6


@dataclass(frozen=True)
class Cell:
    """One point of a grid.

    Attributes:
        name: readable, unique in the study, and the name of its folder.
        place: its coordinates in the grid, by the names of the axes.
        settings: over the study's base, by dotted names.
    """

    name: str
    place: Mapping[str, str | float]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question that many runs answer.

    Attributes:
        name: as the command line has it.
        question: what is asked, one sentence.
        source: paper with section or figure.
        found: what the paper found, sentences.
        grid: the cells for a number of epochs, in the order of the table.
        claims: the paper's findings as comparisons of cells.
        draw: the figure, in the paper's form.
        reference: the cell whose untrained encoder is measured too.
        base: settings of all cells, over ``BASE``.
        budget: what a cell learns from unless the command line says otherwise.
        measures: what is measured of a run besides kNN, pretext accuracy and effective rank; names
            in ``cell_run.EXTRA``.
        shown: measures in the page's table.
        differences: how this differs from the paper's setting, sentences.
        notes: what one should know to read the result, sentences.
        caption: of the figure.
    """

    name: str
    question: str
    source: str
    found: tuple[str, ...]
    grid: Callable[[int], tuple[Cell, ...]]
    claims: Callable[[StudyResults], tuple[Claim, ...]]
    draw: Callable[[StudyResults], "Figure"]
    reference: str
    base: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    measures: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("knn", "pretext")
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    caption: str = "Bars are one standard error over seeds. Dotted: the untrained encoder."


def fixed(*parts: T) -> Callable[[object], tuple[T, ...]]:
    """A grid that is the same for all epochs, or claims that are the same for all results."""
    return lambda _: parts
