"""What a study is: a question, a grid of cells, and how the answer is read off their results."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from diptych.studies.cell_results import Results
from diptych.studies.claims import Claim

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Settings = Mapping[str, Any]
"""Settings of a run by their dotted names."""

BASE: Final[Settings] = {
    "recipe": "simclr",
    "scale": "tiny",
    "images.cache": "file",  # decoded once for all cells of all studies
    "encoder.width": 16,
    # The studies measure by themselves, on all held-out images.
    "probe.health_every_epochs": 1000,
    "probe.images": 256,
}
"""What all cells of all studies share, unless a study or a cell says otherwise."""


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
        place: where it stands in the grid, by the names of the axes.
        settings: over the study's base.
    """

    name: str
    place: Mapping[str, str | float]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A question to many runs.

    Attributes:
        name: as the command line has it.
        question: what is asked, one sentence.
        source: paper with section or figure.
        found: what the paper found, sentences.
        grid: the cells for a number of epochs, in the order of the table.
        claims: the paper's findings as comparisons of cells.
        draw: the figure, in the paper's form.
        base: settings of all cells, over ``BASE``.
        budget: what a cell learns from where nothing else is asked for.
        measures: what is measured of a run besides kNN, pretext accuracy and effective rank; names
            in ``measures.EXTRA``.
        shown: measures in the page's table.
        reference: the cell whose untrained encoder is measured too.
        differences: how this differs from the paper's setting, sentences.
        notes: what one should know to read the result, sentences.
        caption: of the figure.
    """

    name: str
    question: str
    source: str
    found: tuple[str, ...]
    grid: Callable[[int], tuple[Cell, ...]]
    claims: Callable[[Results], tuple[Claim, ...]]
    draw: Callable[[Results], "Figure"]
    base: Settings
    reference: str
    budget: Budget = field(default_factory=Budget)
    measures: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("knn", "pretext")
    differences: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    caption: str = "Bars are one standard error over seeds. Dotted: the untrained encoder."
