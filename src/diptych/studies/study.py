"""What a study is: a question, a grid of cells, and the paper's findings as comparisons of cells.

A comparison is a weighted sum of cells' means: one cell less another, a slope over several, or one
alone where the finding is that it is nothing. Its interval is the t interval at 95%, the wider of
two: with one standard deviation over seeds for all cells of a study, as three seeds of one cell say
little about their own; and with each cell's own, as one may vary more than the others. Two measures
of one cell are of the same runs, and are compared run by run.
"""

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from diptych.studies.cell_results import StudyResults

if TYPE_CHECKING:
    from matplotlib.figure import Figure


T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

CONFIDENCE: Final = 0.95
DOTTED: Final = "Dotted: the untrained encoder."
"""In the caption of a figure that has it."""

CellMeasure = tuple[str, str]
"""A cell and a measure."""

ClaimOutcome = Literal["agree", "smaller", "undecided", "disagree", "unmeasured"]


@dataclass(frozen=True)
class Claim:
    """A finding, as it should show in the grid.

    Attributes:
        finding: how a sentence begins.
        paper: the paper's figure, as "by about 3 points".
        weights: of the groups; positive where the finding says more.
        per: what the comparison is in, after "points".
        tolerance: in points; given where the finding is that there is no difference to speak of.
        paper_points: the paper's figure in points, where it is a number of the same comparison.
    """

    finding: str
    paper: str
    weights: Mapping[CellMeasure, float]
    per: str = ""
    tolerance: float | None = None
    paper_points: float | None = None


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

    def steps(self, batch_size: int) -> int | None:
        """Steps in an epoch; None where it is not known of how many images."""
        return None if self.images is None else self.images // batch_size


ForBudget = str | Callable[[Budget], str]
"""A sentence or a name that is the same for any budget, or made for the one that was asked for."""


def for_budget(text: ForBudget, budget: Budget) -> str:
    """What it says for a budget."""
    return text if isinstance(text, str) else text(budget)


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
        reference: the cell whose untrained encoder is measured too, one of the grid's.
        base: settings of all cells, over ``BASE``.
        budget: what a cell learns from unless the command line says otherwise.
        measures: what is measured of a run besides kNN, pretext accuracy and effective rank; names
            in ``run_cells.EXTRA``.
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
    reference: ForBudget
    base: Mapping[str, Any] = field(default_factory=dict)
    budget: Budget = field(default_factory=Budget)
    measures: tuple[str, ...] = ()
    shown: tuple[str, ...] = ("knn", "pretext")
    differences: tuple[ForBudget, ...] = ()
    notes: tuple[ForBudget, ...] = ()
    caption: str = f"Bars are one standard error over seeds. {DOTTED}"


def fixed(*parts: T) -> Callable[[object], tuple[T, ...]]:
    """A grid that is the same for all epochs, or claims that are the same for all results."""
    return lambda _: parts


class Difference(NamedTuple):
    """A comparison in points (hundredths), with its interval.

    Attributes:
        value: the difference.
        low: lower end; -inf where nothing is known of the spread.
        high: upper end.
    """

    value: float
    low: float
    high: float


class Judgement(NamedTuple):
    """A claim beside our numbers.

    Attributes:
        claim: the paper's finding.
        outcome: what our numbers say of it; ``smaller`` where they leave open whether there is any
            difference, and leave out one as large as the paper's.
        estimate: our difference; None where it was not measured.
        lacking: measures that runs of its cells do not have yet.
    """

    claim: Claim
    outcome: ClaimOutcome
    estimate: Difference | None
    lacking: tuple[str, ...] = ()

    @property
    def is_below_paper(self) -> bool:
        """Whether the interval leaves out the paper's figure, as it lies below it."""
        paper = self.claim.paper_points
        return self.estimate is not None and paper is not None and self.estimate.high < paper

    def sentence(self) -> str:
        """What it comes to, in words and figures."""
        claim = self.claim
        if self.estimate is None:
            text = f"{claim.finding} (the paper: {claim.paper}): not measured."
            if not self.lacking:
                return text
            return f"{text} It waits for what the same command adds: {', '.join(self.lacking)}."
        value, low, high = self.estimate
        points = f"points{f' {claim.per}' if claim.per else ''}"
        ours = f"{value:+.1f} {points}"
        if math.isfinite(low):
            ours += f", {CONFIDENCE:.0%} interval {low:+.1f} to {high:+.1f}"
        return f"{claim.finding} (the paper: {claim.paper}). Here: {ours}. {self._words()}"

    def _words(self) -> str:
        assert self.estimate is not None
        _, low, high = self.estimate
        within, paper = self.claim.tolerance, self.claim.paper_points
        if self.outcome == "agree":
            if within is not None:
                return f"This agrees: the whole interval lies within {_points(within)}."
            less = ""
            if paper is not None and self.is_below_paper:
                less = f", by less than the paper's {_points(paper)}"
            return f"This agrees, beyond the interval{less}."
        if self.outcome == "disagree":
            return "This contradicts it, beyond the interval."
        if self.outcome == "smaller":
            assert paper is not None
            return (
                f"A difference as large as the paper's {_points(paper)} is ruled out; the interval "
                "includes zero."
            )
        if not math.isfinite(low):
            return "Not decided: one seed gives no interval."
        if within is not None and not low <= 0 <= high:
            return (
                f"There is a difference, of {low:+.1f} to {high:+.1f} points; whether it is below "
                f"{_points(within)} is not decided."
            )
        ends = [] if within is None else [_points(within)]
        ends += [] if paper is None else [f"the paper's {_points(paper)}"]
        # Where the paper has no number, how much there may be at most still tells something.
        most = "" if ends else f"; more than {max(high, 0.0):.1f} points are ruled out"
        return f"Not decided: the interval includes {' and '.join(['zero', *ends])}{most}."


def better(
    one: str | Sequence[str],
    other: str | Sequence[str],
    finding: str,
    paper: str,
    *,
    measure: str = "knn",
    tolerance: float | None = None,
    paper_points: float | None = None,
) -> Claim:
    """One cell, or the mean of some, has more of a measure than another.

    With a tolerance: it has as much.
    """
    ones, others = ((c,) if isinstance(c, str) else c for c in (one, other))
    weights = {(cell, measure): 1 / len(ones) for cell in ones}
    weights |= {(cell, measure): -1 / len(others) for cell in others}
    return Claim(finding, paper, weights, tolerance=tolerance, paper_points=paper_points)


def rises(
    cells: Sequence[str],
    sizes: Sequence[float],
    finding: str,
    paper: str,
    *,
    per: str,
    measure: str = "knn",
    tolerance: float | None = None,
) -> Claim:
    """The measure rises with a size, by the slope of a straight line through the cells.

    With a tolerance: it stays the same.
    """
    doublings = [math.log2(size) for size in sizes]
    middle = statistics.fmean(doublings)
    length = sum((x - middle) ** 2 for x in doublings)
    weights = {
        (cell, measure): (x - middle) / length for cell, x in zip(cells, doublings, strict=True)
    }
    return Claim(finding, paper, weights, f"per doubling of {per}", tolerance)


def rises_more(
    steep: Claim, flat: Claim, finding: str, paper: str, *, paper_points: float | None = None
) -> Claim:
    """One slope is steeper than another, or one difference larger, of other cells or measures."""
    # No group is in both claims: one weight would replace the other.
    weights = dict(steep.weights) | {group: -weight for group, weight in flat.weights.items()}
    return Claim(finding, paper, weights, steep.per, paper_points=paper_points)


def best_of(results: StudyResults, cells: Sequence[str], measure: str = "knn") -> str:
    """The cell with the highest mean; the first where none has results.

    A comparison with the best of many is harder on the finding than one with a cell named before.
    """
    return max(cells, key=lambda cell: _mean_or_least(results, cell, measure))


def judge_claim(claim: Claim, results: StudyResults) -> Judgement:
    """Whether our results agree with a finding, contradict it, or leave it open."""
    estimate = difference_in_points(results, claim.weights)
    if estimate is None:
        lacking = dict.fromkeys(
            measure
            for cell, measure in claim.weights
            if not results.values(cell, measure) and any(not r.failed for r in results.of(cell))
        )
        return Judgement(claim, "unmeasured", None, tuple(lacking))
    return Judgement(claim, _outcome(estimate, claim), estimate)


def difference_in_points(
    results: StudyResults, weights: Mapping[CellMeasure, float]
) -> Difference | None:
    """A comparison with its interval, in points; None where a group has no values.

    The wider of two intervals: with one standard deviation for all cells, of each measure, and
    Welch's, with one for each cell, where all have two seeds. Their degrees of freedom are
    Satterthwaite's. Measures of one cell are compared within each run.
    """
    if len({cell for cell, _ in weights}) == 1 and len(weights) > 1:
        return _within_runs(results, weights)
    value, pooled, own = 0.0, dict[str, float](), dict[CellMeasure, float]()
    freedoms, own_freedoms = dict[str, int](), dict[CellMeasure, int]()
    for (cell, measure), weight in weights.items():
        values = results.values(cell, measure)
        if not values:
            return None
        value += 100 * weight * statistics.fmean(values)
        spread, freedoms[measure] = pooled_variance(results, measure)
        # A point is a hundredth, and variances are squares.
        share = 1e4 * weight**2 / len(values)
        pooled[measure] = pooled.get(measure, 0.0) + share * spread
        if len(values) > 1:
            own[cell, measure] = share * statistics.variance(values)
            own_freedoms[cell, measure] = len(values) - 1
    if min(freedoms.values()) == 0:
        return Difference(value, -math.inf, math.inf)
    half = _half_width(pooled, freedoms)
    if len(own) == len(weights):
        half = max(half, _half_width(own, own_freedoms))
    return Difference(value, value - half, value + half)


def _within_runs(results: StudyResults, weights: Mapping[CellMeasure, float]) -> Difference | None:
    from scipy.stats import t

    ((cell, _), *_) = weights
    values = [
        100 * sum(weight * run.measures[measure] for (_, measure), weight in weights.items())
        for run in results.of(cell)
        if all(measure in run.measures for _, measure in weights)
    ]
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Difference(mean, -math.inf, math.inf)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(values) - 1)) * error
    return Difference(mean, mean - half, mean + half)


def pooled_variance(results: StudyResults, measure: str) -> tuple[float, int]:
    """Variance over seeds, common to all cells of a study, and its degrees of freedom."""
    squares, freedom = 0.0, 0
    for cell in results.cells:
        values = results.values(cell, measure)
        if len(values) > 1:
            squares += (len(values) - 1) * statistics.variance(values)
            freedom += len(values) - 1
    return (squares / freedom if freedom else 0.0), freedom


def _points(number: float) -> str:
    return f"{number:g} point" if number == 1 else f"{number:g} points"


def _half_width(variances: Mapping[K, float], freedoms: Mapping[K, int]) -> float:
    """Of the interval of a sum with these variances, each with its degrees of freedom."""
    from scipy.stats import t

    total = sum(variances.values())
    # Where all seeds agree, the formula below would divide 0 by 0.
    if total == 0.0:
        return 0.0
    freedom = total**2 / sum(variances[k] ** 2 / freedoms[k] for k in variances)
    return float(t.ppf(0.5 + CONFIDENCE / 2, freedom)) * math.sqrt(total)


def _outcome(estimate: Difference, claim: Claim) -> ClaimOutcome:
    tolerance, paper = claim.tolerance, claim.paper_points
    if tolerance is None:
        if estimate.low > 0:
            return "agree"
        if estimate.high < 0:
            return "disagree"
        return "smaller" if paper is not None and estimate.high < paper else "undecided"
    # Equality shows only by an interval that fits inside. One that merely includes zero may be wide
    # for want of seeds.
    if -tolerance < estimate.low and estimate.high < tolerance:
        return "agree"
    outside = estimate.low > tolerance or estimate.high < -tolerance
    return "disagree" if outside else "undecided"


def _mean_or_least(results: StudyResults, cell: str, measure: str) -> float:
    mean = results.mean(cell, measure)
    return -math.inf if mean is None else mean
