"""What labels say of a run: its encoder beside what it began as and raw pixels.

An encoder is better or worse where the 95% interval of the difference, in pairs over the same test
images, is on one side of 0. All probes that were measured on the same images count.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from diptych.diagnostics.symptoms import NO_ROOM
from diptych.evaluation.subject import PIXELS, START, TRAINED, UNTRAINED

BASELINES: Final[Mapping[str, str]] = {
    START: "the start weights",
    UNTRAINED: "the untrained encoder",
    PIXELS: "raw pixels",
}
"""What a trained encoder has to be better than, and their names in a sentence."""

PROBES: Final[Mapping[str, str]] = {
    "knn": "By its {neighbours} nearest neighbours",
    "linear": "By a linear classifier on the frozen features",
    "linear_sgd": "By a linear classifier trained with crop and flip",
}
"""Any of these decides; what each is called at the begin of a sentence."""

SHORT: Final[Mapping[str, str]] = {
    "knn": "kNN",
    "linear": "the linear classifier",
    "linear_sgd": "the linear classifier by SGD",
}
METRICS: Final[Mapping[str, str]] = {"accuracy": "accuracy", "mean_per_class": "mean per class"}

_VIEWS: Final = (
    "Which operations of its views hide what tells these classes apart, `diptych evaluate RUN "
    "--protocol views` says; `diptych views PATH --labelled FOLDER` proposes views without them."
)
_UNEQUAL: Final = 1.2  # times the share that the largest of equal classes would have


class Gain(NamedTuple):
    """How much better the trained encoder is than another, with its 95% interval."""

    value: float
    low: float
    high: float

    @property
    def error(self) -> float:
        """Standard error."""
        # An interval of 95% is 2 x 1.96 standard errors wide.
        return (self.high - self.low) / 3.92

    @property
    def words(self) -> str:
        """In points."""
        return f"{100 * self.value:+.1f} points, 95% interval {self.range}"

    @property
    def range(self) -> str:
        """The interval in points."""
        return f"{100 * self.low:+.1f} to {100 * self.high:+.1f}"


class Figure(NamedTuple):
    """One figure of all encoders.

    Attributes:
        probe: by which it was measured, a name in ``PROBES``.
        metric: ``accuracy`` or ``mean_per_class``.
        values: by encoder.
        intervals: low and high by encoder; of older files there are none.
        gains: of the trained encoder over each other.
    """

    probe: str
    metric: str
    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    gains: Mapping[str, Gain]

    @property
    def rivals(self) -> list[str]:
        """The baselines that were measured."""
        return [name for name in BASELINES if name in self.gains]

    @property
    def best(self) -> str:
        """Of the trained encoder and the baselines, the one with the highest value."""
        return max([TRAINED, *self.rivals], key=self.values.__getitem__)

    def of(self, name: str) -> str:
        """The value of an encoder in percent."""
        return f"{self.values[name]:.1%}"

    @property
    def is_full(self) -> bool:
        """Whether a baseline leaves hardly anything to gain, and the trained encoder has it too."""
        most = max(self.values[name] for name in self.rivals)
        return min(most, self.values[TRAINED]) >= NO_ROOM

    @property
    def by(self) -> str:
        """By which figure, in words."""
        per_class = " (mean per class)" if self.metric == "mean_per_class" else ""
        return f"by {SHORT[self.probe]}{per_class}"


def probes_of(evaluation: Mapping[str, Any]) -> list[str]:
    """The probes that were measured, of those on the same images as the first."""
    found = [name for name in PROBES if name in evaluation]
    images = [settings_of(evaluation, name).get("images") for name in found]
    return [name for name, same in zip(found, images, strict=True) if same == images[0]]


def figure_of(evaluation: Mapping[str, Any], probe: str, metric: str) -> Figure | None:
    """One figure of a probe; None where an older file has none.

    Older files have no intervals: there the two accuracies count as independent proportions, which
    gives a larger error.
    """
    found = evaluation.get("details", {}).get(probe, {}).get("metrics", {}).get(metric, {})
    intervals, gains = found.get("intervals", {}), found.get("gains", {})
    if metric == "accuracy":
        values = evaluation[probe]
    else:
        values = {name: one["value"] for name, one in intervals.items()}
    if not values:
        return None
    count = settings_of(evaluation, probe)["test_images"]
    return Figure(
        probe,
        metric,
        values,
        {name: (one["low"], one["high"]) for name, one in intervals.items()},
        {
            name: Gain(**gains[name]) if name in gains else _independent(values, name, count)
            for name in values
            if name != TRAINED
        },
    )


def _independent(values: Mapping[str, float], baseline: str, count: int) -> Gain:
    ours, theirs = values[TRAINED], values[baseline]
    error = math.sqrt(sum(share * (1 - share) for share in (ours, theirs)) / count)
    gain = ours - theirs
    return Gain(gain, gain - 1.96 * error, gain + 1.96 * error)


class Comparison(NamedTuple):
    """The figures that decide, and the others that must not contradict them.

    Attributes:
        deciding: one for each probe: accuracy, or mean per class where one class has over half of
            the images, as accuracy is then high for an answer that is always the same.
        others: the same probes by the other metric, where that was measured.
        largest: share of the test images in the largest class; 0 where that is not known.
        classes: how many the test images are of; 0 where that is not known.
    """

    deciding: tuple[Figure, ...]
    others: tuple[Figure, ...]
    largest: float
    classes: int

    @property
    def is_unequal(self) -> bool:
        """Whether mean per class says something else than accuracy."""
        return self.classes > 0 and self.largest >= _UNEQUAL / self.classes

    @property
    def rivals(self) -> list[str]:
        """The baselines that were measured."""
        return self.deciding[0].rivals

    @property
    def accuracies(self) -> tuple[Figure, ...]:
        """The accuracy by each probe, whether it decides or not."""
        is_deciding = self.deciding[0].metric == "accuracy"
        return self.deciding if is_deciding else self.others

    def beats(self, name: str) -> bool:
        """Whether the trained encoder is better by every probe, and by no figure worse."""
        return all(figure.gains[name].low > 0 for figure in self.deciding) and not any(
            figure.gains[name].high < 0 for figure in self.others
        )

    def lost_to(self, name: str) -> list[Figure]:
        """The figures by which a baseline is better."""
        return [one for one in (*self.deciding, *self.others) if one.gains[name].high < 0]

    @property
    def wins(self) -> list[Figure]:
        """The deciding figures by which the trained encoder is better than every baseline."""
        return [
            one for one in self.deciding if all(one.gains[name].low > 0 for name in self.rivals)
        ]

    def won_from(self, name: str) -> list[Figure]:
        """The deciding figures by which the trained encoder is better."""
        return [figure for figure in self.deciding if figure.gains[name].low > 0]


def compare(evaluation: Mapping[str, Any]) -> Comparison | None:
    """The figures of an evaluation; None where no probe was measured."""
    probes = probes_of(evaluation)
    if not probes:
        return None
    settings = settings_of(evaluation, probes[0])
    largest = float(settings.get("largest_class", settings.get("chance", 0.0)))
    classes = int(settings.get("measured_classes", settings.get("classes", 0)))
    by_metric = {
        metric: tuple(
            figure
            for figure in (figure_of(evaluation, probe, metric) for probe in probes)
            if figure is not None
        )
        for metric in METRICS
    }
    accuracy, per_class = by_metric["accuracy"], by_metric["mean_per_class"]
    found = Comparison(accuracy, per_class, largest, classes)
    if found.is_unequal and largest > 0.5 and len(per_class) == len(accuracy):
        return found._replace(deciding=per_class, others=accuracy)
    # Mean per class of equal classes is accuracy to rounding: it decides nothing twice.
    return found if found.is_unequal else found._replace(others=())


def headline(comparison: Comparison) -> str:
    """Which of the encoder and its baselines serves best, and whether that is sure."""
    rivals = comparison.rivals
    if comparison.classes == 1:
        return (
            "Nothing can be told: all images that were measured on are of one class, so an answer "
            "that is always the same gets 100%. Give images of two classes or more by --test PATH."
        )
    if all(comparison.beats(name) for name in rivals):
        return _learned(comparison)
    losing = [name for name in rivals if comparison.lost_to(name)]
    if losing:
        return _lost(comparison, losing)
    if all(one.is_full for one in comparison.deciding):
        best = max(rivals, key=comparison.deciding[0].values.__getitem__)
        return (
            f"Nothing can be told: {BASELINES[best]} {_get(best)} these images right already. "
            "Measure on classes that are harder to tell apart."
        )
    unsure = [name for name in rivals if not comparison.beats(name)]
    if won := comparison.wins:
        others = joined([one.by for one in comparison.deciding if one not in won])
        return (
            f"The trained encoder is better than {listed(rivals)} "
            f"{joined([one.by for one in won])}; {others} it cannot be told apart from "
            f"{listed(unsure)}."
        )
    beaten = [name for name in rivals if name not in unsure]
    apart = f"cannot be told apart from {listed(unsure)}: measure on more test images"
    if beaten and unsure == [PIXELS]:
        return f"The trained encoder is better than {listed(beaten)}, but {apart}."
    better = f"is better than {listed(beaten)}, but " if beaten else ""
    return (
        f"No gain that can be told from chance: the trained encoder {better}{apart}, or train "
        "longer."
    )


def _learned(comparison: Comparison) -> str:
    gains = [one.gains[name] for one in comparison.deciding for name in comparison.rivals]
    by = " and ".join(figure.by for figure in comparison.deciding)
    rivals = listed(comparison.rivals)
    if all(gain.value > 4 * gain.error for gain in gains):
        return f"The encoder learned: {by} it is clearly better than {rivals}."
    return f"The encoder learned a little: {by} it is better than {rivals}."


def _lost(comparison: Comparison, losing: Sequence[str]) -> str:
    """Where a baseline is better than the trained encoder by some figure."""
    contradicted = [name for name in losing if comparison.won_from(name)]
    if len(contradicted) == len(losing):
        figures = [*comparison.deciding]
        figures += [one for one in comparison.others if one in comparison.lost_to(losing[0])]
        said = "; ".join(f"{one.by} {_named(one.best)} with {one.of(one.best)}" for one in figures)
        return f"The figures disagree on what serves best: {said}."
    sure = [name for name in losing if name not in contradicted]
    lost = {name: comparison.lost_to(name)[0] for name in sure}
    # Of those that are better, the one that is farthest ahead.
    best = max(sure, key=lambda name: -lost[name].gains[name].value)
    figure = lost[best]
    begin = f"{BASELINES[best].capitalize()} {_serve(best)} better than the trained encoder: "
    begin += f"{figure.of(best)} against {figure.of(TRAINED)} {figure.by}."
    if best == PIXELS:
        return f"{begin} Do not use this run as it is."
    if best == START:
        return f"{begin} Training made it worse: do not use this run as it is."
    return f"{begin} Training made the features worse for these classes."


def advice(comparison: Comparison, *, made_of_start: bool = False) -> str:
    """What to do next; empty where the trained encoder is the best.

    Args:
        comparison: of the encoder that the run keeps.
        made_of_start: whether that is the start, with more made of its features, so that training
            can have spoiled nothing.
    """
    open_to = [name for name in comparison.rivals if not comparison.beats(name)]
    if not open_to:
        return ""
    if comparison.wins and not any(map(comparison.lost_to, open_to)):
        return (
            "What to do next: use this encoder, as no baseline is better by any figure; to know "
            "more, measure on more test images, or train longer."
        )
    if START in open_to:
        if made_of_start and not comparison.lost_to(START):
            return (
                "What to do next: use this encoder or the start weights as they are, whichever is "
                "easier; to know which is better, measure on more test images."
            )
        return (
            "What to do next: take the start weights as they are, or train more gently from them: "
            f"a tenth of --optimizer.learning-rate and weaker crops. {_VIEWS}"
        )
    steps = "train longer (twice the --minutes or --epochs)"
    if START not in comparison.rivals:
        steps = f"begin from weights that know photographs (--weights FILE); {steps}"
    return (
        f"What to do next, in this order: {steps}; show more of an image (a larger "
        f"--views.side-pixels, and weaker crops: crop(area=0.5..1) in --views.policy). {_VIEWS}"
    )


def disagreement(comparison: Comparison) -> str:
    """A sentence where kNN and a linear classifier do not name the same as the best."""
    best = {figure.probe: figure for figure in comparison.deciding}
    if len({figure.best for figure in best.values()}) < 2:
        return ""
    said = ", ".join(
        f"{figure.by} {_named(figure.best)} {_is(figure.best)} best ({figure.of(figure.best)})"
        for figure in best.values()
    )
    return f"The probes do not agree: {said}. Choose by what you will use."


def on_unequal_classes(comparison: Comparison) -> str:
    """Mean per class in words, where one class is much larger than others; else empty."""
    if not comparison.is_unequal:
        return ""
    begin = "The classes are unequal"
    if comparison.largest > 0.5:
        begin += f": always answering the largest class gets {comparison.largest:.1%}"
    per_class = [
        one for one in (*comparison.deciding, *comparison.others) if one.metric == "mean_per_class"
    ]
    if not per_class:
        return f"{begin}."
    said = "; ".join(
        f"by {SHORT[one.probe]} {one.of(TRAINED)} with this encoder, "
        + ", ".join(f"{one.of(name)} with {BASELINES[name]}" for name in one.rivals)
        for one in per_class
    )
    return f"{begin}. Each class counted alike (mean per class), it is {said}."


def listed(names: Sequence[str]) -> str:
    """Names of baselines as a part of a sentence."""
    return joined([BASELINES[name] for name in names])


def joined(words: Sequence[str]) -> str:
    """Words as a list in a sentence.

    >>> joined(["one", "two", "three"])
    'one, two and three'
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _named(name: str) -> str:
    return "this encoder" if name == TRAINED else BASELINES[name]  # training made not all of them


def _is_plural(name: str) -> bool:
    return name in (START, PIXELS)


def _serve(name: str) -> str:
    return "serve" if _is_plural(name) else "serves"


def _get(name: str) -> str:
    return "get" if _is_plural(name) else "gets"


def _is(name: str) -> str:
    return "are" if _is_plural(name) else "is"


def settings_of(evaluation: Mapping[str, Any], probe: str) -> Mapping[str, Any]:
    """How a probe was measured."""
    found = evaluation.get("details", {}).get(probe, {}).get("settings")
    return dict(found or evaluation["protocol"])


class Cell(NamedTuple):
    """A figure of one encoder in the table of a verdict.

    Attributes:
        value: in percent.
        range: its interval; empty where none is known.
        best: whether no other encoder of the table has more.
    """

    value: str
    range: str
    best: bool


class ResultTable(NamedTuple):
    """What decides a verdict.

    Attributes:
        columns: names of the figures.
        rows: the name of an encoder and a cell for each figure.
        largest: what always answering the largest class gets, where classes are unequal.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    largest: str


_ROWS: Final = {
    TRAINED: "trained encoder",
    START: "start weights",
    UNTRAINED: "untrained encoder",
    PIXELS: "raw pixels",
}
_COLUMNS: Final = {"knn": "kNN", "linear": "linear", "linear_sgd": "linear by SGD"}


def result_table(
    evaluation: Mapping[str, Any] | None, kept: str = _ROWS[TRAINED]
) -> ResultTable | None:
    """The encoder and its baselines by each figure; None without labels.

    Mean per class is among them where that was measured.

    Args:
        evaluation: ``evaluation.json``.
        kept: what the encoder of the run is called.
    """
    comparison = None if evaluation is None else compare(evaluation)
    if evaluation is None or comparison is None:
        return None
    asked = [(probe, metric) for metric in METRICS for probe in probes_of(evaluation)]
    found = [figure_of(evaluation, probe, metric) for probe, metric in asked]
    figures = [one for one in found if one is not None]
    names = [name for name in _ROWS if name in figures[0].values]
    columns = tuple(
        _COLUMNS[one.probe] + (", mean per class" if one.metric == "mean_per_class" else "")
        for one in figures
    )
    words = _ROWS | {TRAINED: kept}
    rows = tuple((words[name], tuple(_cell(one, name) for one in figures)) for name in names)
    largest = f"{comparison.largest:.1%}" if comparison.is_unequal else ""
    return ResultTable(columns, rows, largest)


def _cell(figure: Figure, name: str) -> Cell:
    low, high = figure.intervals.get(name, (None, None))
    known = low is not None and high is not None
    reach = f"{100 * low:.1f} to {100 * high:.1f}" if known else ""  # type: ignore[operator]
    best = figure.values[name] == figure.values[figure.best]
    return Cell(figure.of(name), reach, best)
