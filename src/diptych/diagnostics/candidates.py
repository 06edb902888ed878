"""Which encoder a run may keep, by what rule one is chosen, and the file that says so.

The encoder of the last step and, of a run that began from weights, the start and averages of both
(WiSE-FT, 2109.01903); each as it is, with its features whitened, and with those of an intermediate
layer beside them.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from diptych.errors import RunFolderError
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder

START: Final = "start"
LAST: Final = "last"
SHARES: Final = {START: 0.0, "average 0.5": 0.5, LAST: 1.0}
"""The weights that are compared: their names, with the share of the last weights in each."""

WHITENED: Final = ", whitened"
"""Ends the name of a candidate whose features are whitened."""

INTERMEDIATE: Final = ", with an intermediate layer, whitened"
"""Ends the name of a candidate that has features of an intermediate layer too, all whitened."""

ENDS: Final = ("", WHITENED, INTERMEDIATE)
"""What is made of the features of the same weights; the last one not of every network."""

NAMES: Final = tuple(name + end for name in SHARES for end in ENDS)
"""Of all candidates."""

NEIGHBOURS_KEPT: Final = 0.45
"""Share of an image's ten nearest neighbours by the start that an encoder must keep, where there
are no labels to judge by. With fewer, what the start knew was lost as often as not."""

FEWEST_IMAGES: Final = 100
"""By which that can be told: of 23 images any ten are 45% of the others."""

LINEAR_LOSS: Final = 0.005
"""Of the linear classifier's accuracy, that is the most a candidate may lose on the start."""

_FORMAT: Final = 1


@dataclass(frozen=True)
class Candidate:
    """An encoder that may be kept.

    Attributes:
        name: of ``NAMES``.
        trained_share: share of the last weights in it, 0 for the start.
        neighbours_kept: share of the ten nearest neighbours of an image that are as by the first
            candidate.
        knn, linear: accuracies, a mean over cuts (each class counted alike where one has more than
            half of the images); None without labels.
        gain: of the mean of both accuracies over that of the first candidate.
        standard_error: of the gain, over the images judged on.
    """

    name: str
    trained_share: float
    neighbours_kept: float
    knn: float | None = None
    linear: float | None = None
    gain: float | None = None
    standard_error: float | None = None

    @property
    def accuracy(self) -> float:
        """The mean of both accuracies; 0 without labels."""
        # Rounded, so that sums in another order are equal.
        return round(((self.knn or 0.0) + (self.linear or 0.0)) / 2, 9)


@dataclass(frozen=True)
class Choice:
    """What ``candidates.json`` holds.

    Attributes:
        chosen: the name of the encoder that is kept.
        why: in a sentence.
        images: on which images, in a sentence or two.
        candidates: all that were compared; the first one is the start, or without one the last.
        weights: a checksum of the start and the last encoder, which all of this follows from.
    """

    chosen: str
    why: str
    images: str
    candidates: tuple[Candidate, ...]
    weights: str


def choose_with_labels(candidates: Sequence[Candidate]) -> str:
    """The least trained of the best by the mean of both accuracies, if better than the first.

    Better is more than one standard error of the difference, so that of a few images chance does
    not decide; and without loss by the linear classifier. As good as the best is what lies within
    its standard error (the one-standard-error rule: Breiman et al. 1984, section 3.4.3).

    Where none is clearly better, the weights are the first one's, and its features are whitened if
    that was better at all: on other images it mostly is, so that little need be shown. What a
    network gives that began from good weights must keep its linear accuracy.
    """
    first = candidates[0]
    better = [
        one
        for one in candidates
        if (one.gain or 0.0) > (one.standard_error or 0.0) and _keeps_linear(one, first)
    ]
    if not better:
        made = _most_made(first, candidates)
        harmless = first.name == LAST or _keeps_linear(made, first)
        return made.name if (made.gain or 0.0) > 0 and harmless else first.name
    best = max(better, key=_accuracy)
    least = best.accuracy - (best.standard_error or 0.0)
    near = [one for one in better if one.accuracy >= least]
    return max(near, key=lambda one: (-one.trained_share, one.accuracy)).name


def _most_made(first: Candidate, candidates: Sequence[Candidate]) -> Candidate:
    """Of the first one's weights the last candidate: whitened, with another layer if it may be."""
    weights = weights_of(first.name)
    return [one for one in candidates if weights_of(one.name) == weights][-1]


def _keeps_linear(one: Candidate, first: Candidate) -> bool:
    return (one.linear or 0.0) >= (first.linear or 0.0) - LINEAR_LOSS


def _accuracy(one: Candidate) -> float:
    return one.accuracy


def choose_without_labels(candidates: Sequence[Candidate], images: int) -> str:
    """The one that was trained most, of those that keep enough of the neighbours.

    With features of an intermediate layer where there are some, and whitened. That by itself moves
    neighbours, so they are counted before it.

    Args:
        candidates: the first one is the start, or without one the last.
        images: that they were compared on. Of few, ten neighbours are a large part of all, and the
            same for any encoder, so that the first one is kept.
    """
    near = [
        one for one in candidates if one.neighbours_kept >= NEIGHBOURS_KEPT and one.name in SHARES
    ]
    if images < FEWEST_IMAGES:
        near = near[:1]
    return _most_made(max(near, key=lambda one: one.trained_share), candidates).name


def weights_of(name: str) -> str:
    """The name of a candidate's weights.

    >>> weights_of("last, whitened")
    'last'
    """
    return name.partition(",")[0]


def words_for_kept(choice: Choice | None, evaluation: Mapping[str, Any] | None) -> str:
    """What the encoder of a run is called in its tables: training has not made all of them.

    Args:
        choice: of which encoder is kept; None where nothing was chosen.
        evaluation: ``evaluation.json``; see ``is_of_kept``.
    """
    if choice is None or not is_of_kept(evaluation) or weights_of(choice.chosen) != START:
        return "trained encoder"
    return "kept: start weights" + choice.chosen.removeprefix(START)


def is_of_kept(
    evaluation: Mapping[str, Any] | None, protocols: Sequence[str] | None = None
) -> bool:
    """Whether the encoder was measured that the run keeps: without layers of the head behind it.

    A head was trained behind the encoder of the last step, with which it is measured.

    Args:
        evaluation: ``evaluation.json``, if there is one.
        protocols: that are asked about; all that were measured when not given.
    """
    details = (evaluation or {}).get("details", {})
    asked = details if protocols is None else protocols
    settings = [details.get(name, {}).get("settings") or {} for name in asked]
    if not settings:  # measured by an earlier version
        settings = [(evaluation or {}).get("protocol", {})]
    return not any(one.get("head_layers") for one in settings)


def read_choice(folder: RunFolder) -> Choice | None:
    """What ``candidates.json`` of a run holds; None where nothing was chosen.

    Raises:
        RunFolderError: it is not what was written.
    """
    if not folder.candidates.exists():
        return None
    try:
        content = json.loads(folder.candidates.read_bytes())
        if content.pop("format") != _FORMAT or content["chosen"] not in NAMES:
            raise ValueError(f"wanted format {_FORMAT} and one of {', '.join(NAMES)}")
        found = tuple(_candidate_in(one) for one in content.pop("candidates"))
        if not all(isinstance(one, str) for one in content.values()):
            raise ValueError("wanted texts beside the candidates")
        choice = Choice(candidates=found, **content)
        if choice.chosen not in [one.name for one in found]:
            raise ValueError(f"{choice.chosen} is not among the candidates")
        return choice
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(
            f"{folder.candidates} is damaged: {error}. Remove it; `diptych pretrain --resume --out "
            f"{folder.path}` then chooses again."
        ) from error


def _candidate_in(value: dict[str, Any]) -> Candidate:
    one = Candidate(**value)
    figures = [one.knn, one.linear, one.gain, one.standard_error]
    judged = [figure for figure in figures if figure is not None]
    numbers = [one.trained_share, one.neighbours_kept, *judged]
    if one.name not in NAMES or not all(isinstance(number, float | int) for number in numbers):
        raise ValueError(f"wanted numbers of one of {', '.join(NAMES)}")
    if len(judged) not in (0, len(figures)):
        raise ValueError("wanted all accuracies of a candidate, or none")
    return one


def write_choice(folder: RunFolder, choice: Choice) -> None:
    """Writes ``candidates.json``.

    Raises:
        OSError: it cannot be written.
    """
    text = json.dumps({"format": _FORMAT, **asdict(choice)}, indent=1) + "\n"
    atomic_write(folder.candidates, text.encode())


def why_chosen(chosen: str, candidates: Sequence[Candidate]) -> str:
    """A sentence on the one that is kept, with its figures."""
    named = {candidate.name: candidate for candidate in candidates}
    one, first = named[chosen], candidates[0].name
    if one.knn is None or one.linear is None or one.gain is None:
        if first != START:
            return f"Kept is {_in_words(chosen)}, by which views of an image differ less."
        # Before whitening, as the rule has it.
        kept = named[weights_of(chosen)].neighbours_kept
        return (
            f"Kept is {_in_words(chosen)}: before whitening {kept:.0%} of the nearest neighbours "
            f"are as by the start, and {NEIGHBOURS_KEPT:.0%} are wanted."
        )
    accuracy = f"kNN {one.knn:.1%}, linear {one.linear:.1%}"
    if chosen == first:
        return f"Kept is {_in_words(first)}: no other is clearly better ({accuracy})."
    may_be_kept = [other for other in candidates if _keeps_linear(other, candidates[0])]
    best = max(may_be_kept, key=_accuracy).name
    near = "" if best == chosen else f" {best.capitalize()} is better by less than can be told."
    if one.gain <= (one.standard_error or 0.0):
        near = " That may be chance: whitened features are kept where they are no worse."
    return (
        f"Kept is {_in_words(chosen)}: {accuracy}, in the mean {100 * one.gain:+.1f} points on "
        f"{_in_words(first)} (standard error {100 * (one.standard_error or 0.0):.1f}); "
        f"{one.neighbours_kept:.0%} of the nearest neighbours are the same.{near}"
    )


def _in_words(name: str) -> str:
    weights = weights_of(name)
    share = SHARES[weights]
    found = {START: "the start", LAST: "the encoder of the last step"}.get(
        weights,
        f"an average of weights, {share:.0%} of the last step and {1 - share:.0%} of the start",
    )
    return found + {
        WHITENED: ", with its features whitened",
        INTERMEDIATE: ", with features of an intermediate layer beside its own, whitened",
    }.get(name.removeprefix(weights), "")
