"""A run in words: what it learned, how sure that is, what to try next."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from diptych.diagnostics.candidates import START, Choice, is_of_kept, weights_of
from diptych.diagnostics.comparison import (
    BASELINES,
    PROBES,
    Comparison,
    Figure,
    Gain,
    advice,
    compare,
    disagreement,
    headline,
    joined,
    listed,
    on_unequal_classes,
    probes_of,
    settings_of,
)
from diptych.diagnostics.course import course_of
from diptych.diagnostics.symptoms import find_symptoms
from diptych.evaluation.operations.of_run import words_on_views
from diptych.evaluation.subject import SUPERVISED, TRAINED, UNTRAINED
from diptych.logging.metrics import has_choice, task_accuracy

_UNKNOWN: Final = "Without labels, how useful the features are is not known."


class Verdict(NamedTuple):
    """A headline and a few sentences that explain it."""

    headline: str
    sentences: tuple[str, ...]


def judge(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    choice: Choice | None = None,
) -> Verdict:
    """Says what the figures of a run mean.

    With labels the accuracies decide. Without, the course of training does, see ``course_of``.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        evaluation: ``evaluation.json``, or None without labels.
        choice: which encoder was kept, of a run that compared some. It is told of first, as what
            is called trained may be the start, or an average of its weights.
    """
    found = _of_figures(metrics, evaluation, choice)
    return found if choice is None else found._replace(sentences=(choice.why, *found.sentences))


def judge_encoder(evaluation: Mapping[str, Any]) -> Verdict:
    """The same of an encoder by itself: nothing is known of its training, nor said of it.

    Args:
        evaluation: ``evaluation.json``.
    """
    comparison = compare(evaluation)
    if comparison is None:
        known = without_probe(evaluation)
        return Verdict("Measured without kNN and linear classifier.", tuple(known))
    first, *more = _in_figures(evaluation, comparison)
    if comparison.classes == 1:
        first, more = headline(comparison), [first, *more]
    about = [*more, on_unequal_classes(comparison), disagreement(comparison)]
    about += [*_against_others(comparison.accuracies[0]), *without_probe(evaluation)]
    return Verdict(first, tuple(sentence for sentence in about if sentence))


def _of_figures(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    choice: Choice | None,
) -> Verdict:
    alarming = [s for s in find_symptoms(metrics, dictionary_size=None) if s.alarming]
    alarms = [symptom.sentence for symptom in alarming]
    comparison = None if evaluation is None else compare(evaluation)
    if evaluation is not None and comparison is not None:
        # Accuracy says what was lost; neighbours may change for the better too.
        alarms = [symptom.sentence for symptom in alarming if symptom.name != "start_lost"]
        kept = _kept(evaluation, comparison, choice)
        first, *more = conclusions(evaluation, comparison, kept)
        head = headline_of(evaluation, comparison, kept)
        more += [*words_on_views(evaluation), *_about_training(metrics)]
        return Verdict(head, (first, *alarms, *more))
    return _by_training_alone(metrics, evaluation, alarms)


def _by_training_alone(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
    alarms: Sequence[str],
) -> Verdict:
    known = [] if evaluation is None else without_probe(evaluation)
    course = course_of(metrics)
    head = "Something is wrong with this run." if alarms else course.headline
    if known:
        ask = "To measure the frozen features as well: diptych evaluate RUN --protocol knn linear."
    else:
        head = head if alarms else f"{head} {_UNKNOWN}"
        ask = (
            "To measure the features, give labelled images: diptych evaluate RUN --train PATH "
            "--test PATH."
        )
    return Verdict(head, (*known, *alarms, *course.reasons, *_about_training(metrics), ask))


def _about_loss(last: Mapping[str, Any]) -> str:
    begin, task = f"The loss ended at {last['loss']:.2f}", task_accuracy(last)
    if task is None:
        return f"{begin}."
    if not has_choice(last):
        return f"{begin}; no query had a choice of keys."
    if "chance_loss" in last:
        among = f" among {last[task.choices]:,.0f} {task.choices}" if task.choices else ""
        begin += f", where guessing{among} gives {last['chance_loss']:.2f}"
    return f"{begin}; {task.sentence.format(share=last[task.name])}"


def _about_training(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    if not metrics:
        return []
    last = metrics[-1]
    sentences = [_about_loss(last)]
    ranks = [line["effective_rank"] for line in metrics if "effective_rank" in line]
    if len(ranks) >= 2:
        sentences.append(
            f"The features use about {ranks[-1]:.0f} directions ({ranks[0]:.0f} at the first "
            "measurement)."
        )
    halfway = metrics[len(metrics) // 2]
    scores = [(line["step"], line["knn"]) for line in metrics if "knn" in line]
    late = [score for step, score in scores if step >= halfway["step"]]
    if len(late) >= 3 and late[-1] - late[0] > _told_apart(late[-1], last):
        sentences.append("kNN accuracy was still rising at the end: a longer run should gain more.")
    return sentences


def _told_apart(share: float, line: Mapping[str, Any]) -> float:
    """By how much two shares of the images of kNN must differ: 1%, and two standard errors."""
    images = line.get("knn_images", math.inf)
    return max(0.01, 2.0 * math.sqrt(share * (1.0 - share) / images))


_WIDE: Final = 0.03  # half an interval, above which more test images are advised
_LINEAR_LEAD: Final = 0.08  # of the linear classifier over kNN
_LABELS_LEAD: Final = 0.05  # of the supervised baseline


def without_probe(evaluation: Mapping[str, Any]) -> list[str]:
    """What is known of labels where no probe decides: by fine-tuning and on other tasks."""
    return [words for words in (_few_labels(evaluation), _transfer(evaluation)) if words]


def _kept(
    evaluation: Mapping[str, Any], comparison: Comparison, choice: Choice | None
) -> str | None:
    """The name of the candidate that was measured, where one was chosen and that is it."""
    probes = [figure.probe for figure in comparison.deciding]
    return choice.chosen if choice is not None and is_of_kept(evaluation, probes) else None


def headline_of(
    evaluation: Mapping[str, Any], comparison: Comparison, kept: str | None = None
) -> str:
    """Which encoder serves best, where the images can tell; see ``_kept``."""
    split = _split(evaluation, comparison.deciding[0].probe)
    if split.get("labels_used") and split.get("test_images_seen"):
        return (
            "Of other images nothing is known: pretraining saw those measured on, with labels. "
            "Give held-out ones by --test PATH."
        )
    return (kept and _on_kept_start(comparison, kept)) or headline(comparison)


def _on_kept_start(comparison: Comparison, chosen: str) -> str:
    """Where the weights of the start were kept, which no training has made; else empty."""
    if weights_of(chosen) != START or comparison.classes == 1:
        return ""
    bare = chosen == START
    kept = "Kept are the start weights"
    kept += " as they are" if bare else ", unchanged, with their features post-processed"
    # As they are, they need not beat themselves.
    rivals = [name for name in comparison.rivals if not (bare and name == START)]
    by = " and ".join(figure.by for figure in comparison.deciding)
    if all(map(comparison.beats, rivals)):
        beaten = f"{by} they are better than {listed(rivals)}"
        if bare:
            return f"{kept}: {beaten}, and training made them no better for these images."
        return f"{kept}: {beaten}. Training added nothing that can be told."
    losing = [name for name in rivals if comparison.lost_to(name)]
    if losing == [START] and not comparison.won_from(START):
        lost = comparison.lost_to(START)[0]
        return (
            f"{kept}; without that they serve better here: {lost.of(START)} against "
            f"{lost.of(TRAINED)} {lost.by}. Use start.safetensors of this run."
        )
    if losing or all(one.is_full for one in comparison.deciding):
        return ""
    unsure = [name for name in rivals if not comparison.beats(name)]
    if won := comparison.wins:
        others = joined([one.by for one in comparison.deciding if one not in won])
        return (
            f"{kept}: {joined([one.by for one in won])} they are better than {listed(rivals)}; "
            f"{others} they cannot be told apart from {listed(unsure)}."
        )
    return f"{kept}; they cannot be told apart from {listed(unsure)}: measure on more test images."


def conclusions(
    evaluation: Mapping[str, Any], comparison: Comparison, kept: str | None = None
) -> list[str]:
    """The sentences below the headline, the most important first; see ``_kept``."""
    made_of_start = kept is not None and weights_of(kept) == START != kept
    first = comparison.accuracies[0]
    found = [
        *_in_figures(evaluation, comparison),
        on_unequal_classes(comparison),
        disagreement(comparison),
        advice(comparison, made_of_start=made_of_start),
        _on_few_images(evaluation),
        _linear(evaluation),
        _against_labels(first),
        *_against_others(first),
        _few_labels(evaluation),
        _transfer(evaluation),
        _how_sure(evaluation, comparison),
    ]
    return [sentence for sentence in found if sentence]


def _in_figures(evaluation: Mapping[str, Any], comparison: Comparison) -> list[str]:
    """The accuracy of each encoder by each probe."""
    found: list[str] = []
    for figure in comparison.accuracies:
        settings = settings_of(evaluation, figure.probe)
        begin = PROBES[figure.probe].format(neighbours=settings.get("knn_neighbours", 20))
        others = [f"{figure.of(name)} with {BASELINES[name]}" for name in figure.rivals]
        over = f"{figure.gains[UNTRAINED].words} over the untrained encoder"
        tested = "" if found else f" of {_tested(evaluation, figure.probe)}"
        found.append(
            f"{begin}, {figure.of(TRAINED)}{tested} get the right class, against "
            f"{joined(others)} ({over})."
        )
    return found


def _on_few_images(evaluation: Mapping[str, Any]) -> str:
    """Where a class has fewer labelled images than neighbours vote, others outvote it."""
    if "knn" not in evaluation:
        return ""
    settings = settings_of(evaluation, "knn")
    fitted, classes = settings.get("train_images"), settings.get("classes")
    neighbours = settings.get("knn_neighbours", 20)
    if not fitted or not classes or fitted >= neighbours * classes:
        return ""
    whom = "all of them vote" if neighbours >= fitted else f"{neighbours} neighbours vote"
    return (
        f"kNN looks among {fitted:,} labelled images of {classes} classes and {whom} on each, "
        "more than a class has on average: other classes vote too, however good the features are. "
        f"Try --neighbours {max(1, fitted // (4 * classes))}, or label more images."
    )


def _linear(evaluation: Mapping[str, Any]) -> str:
    """How far the linear classifier is from the nearest neighbours, on the trained features."""
    if "linear" not in evaluation or "knn" not in evaluation:
        return ""
    linear, knn = evaluation["linear"][TRAINED], evaluation["knn"][TRAINED]
    if "linear" not in probes_of(evaluation):
        return (
            f"A linear classifier on the frozen features reaches {linear:.1%}. That is on other "
            "images, so the two cannot be compared."
        )
    if linear - knn > _LINEAR_LEAD:
        return (
            "The linear classifier is far above the nearest neighbours: what matters is in the "
            "features, but does not rule their distances. Use them with a classifier, or train "
            "longer."
        )
    if knn - linear > _LINEAR_LEAD:
        return (
            "The linear classifier is far below the nearest neighbours: there are few labelled "
            "images for so many features, so use the neighbours, or label more."
        )
    return ""


def _against_labels(figure: Figure) -> str:
    if SUPERVISED not in figure.gains:
        return ""
    gain = figure.gains[SUPERVISED]
    begin = (
        f"The same network, told the labels, with the same views and steps, reaches "
        f"{figure.of(SUPERVISED)} ({gain.words} for the trained one)."
    )
    if gain.low > 0:
        return begin + " Here learning without labels served better."
    if -gain.value > _LABELS_LEAD and gain.high < 0:
        return begin + (
            " The network can hold more than this run taught it: try more epochs, a larger batch "
            "or dictionary, or other views, in this order."
        )
    if gain.low > -_LABELS_LEAD:
        return begin + " Without labels the run comes close to what labels teach this network."
    return begin + (
        " Whether that is close to what labels teach this network cannot be told: measure on more "
        "test images."
    )


def _against_others(figure: Figure) -> list[str]:
    sentences = []
    for name, gain in figure.gains.items():
        if name not in (*BASELINES, SUPERVISED):
            verdict = "better than" if gain.low > 0 else "worse than"
            if gain.low <= 0 <= gain.high:
                verdict = "not to be told apart from"
            sentences.append(f"On the same images it is {verdict} {name} ({gain.words}).")
    return sentences


def _few_labels(evaluation: Mapping[str, Any]) -> str:
    shares = evaluation.get("finetune", {})
    if not shares:
        return ""
    # Keys of JSON are texts, of which "1e-05" would come after "0.1".
    fewest = min(shares, key=float)
    detail = evaluation["details"]["finetune"]["shares"][fewest]
    values, gain = shares[fewest], detail["gains"]["untrained"]
    begin = (
        f"Fine-tuned on {detail['images']:,} labelled images it reaches {values['trained']:.1%}, "
        f"and {values['untrained']:.1%} without pretraining, {_baseline_schedule(detail)}"
    )
    if gain["low"] is None:
        return f"{begin}; of one seed only, so how sure that is is not known."
    found, over = Gain(**gain), detail.get("over")
    begin += f" ({found.words} over {over or 'seeds'})."
    if found.low <= 0 <= found.high:
        return begin + (
            " That is no difference one can rely on; more --seeds and more test images would "
            "narrow it."
        )
    if over is None:  # measured by an earlier version
        return begin + (
            " How far other test images would move it was not measured: measure again by "
            "--protocol finetune."
        )
    if found.low > 0:
        return begin + " Where labels are few, begin from this encoder."
    return begin + (
        " Here labels alone, with a schedule of their own, served better: look at the views, "
        "then pretrain for longer."
    )


def _baseline_schedule(detail: Mapping[str, Any]) -> str:
    """With what schedule the labels alone were learned."""
    schedule = detail.get("untrained_schedule")
    if schedule is None:  # measured by an earlier version
        return "with the same short schedule, in which that learns less than it could"
    words = f"in {schedule['epochs']} epochs at a rate of {schedule['learning_rate']:g}"
    if schedule["tried"] > 1:
        return f"{words}, the best of {schedule['tried']} schedules on a fifth of these images"
    return f"{words}, as there are too few images to choose a schedule by"


def _transfer(evaluation: Mapping[str, Any]) -> str:
    tasks = evaluation.get("details", {}).get("transfer", {}).get("tasks", {})
    if not tasks:
        return ""
    gains = [Gain(**t["metrics"]["accuracy"]["gains"]["untrained"]) for t in tasks.values()]
    if len(gains) == 1:
        return f"On the other task it gains {gains[0].words} over the untrained encoder."
    better, worse = sum(g.low > 0 for g in gains), sum(g.high < 0 for g in gains)
    return (
        f"Of {len(gains)} other tasks it is clearly better than the untrained encoder on {better} "
        f"and clearly worse on {worse}."
    )


def _how_sure(evaluation: Mapping[str, Any], comparison: Comparison) -> str:
    first = comparison.accuracies[0]
    gains = [first.gains[name] for name in first.rivals]
    images = settings_of(evaluation, first.probe)["test_images"]
    sentence = (
        f"How sure: the intervals are those of {images:,} test images for this "
        "one run. Another seed in training can move the figures too; to know by how much, repeat "
        "the run with --seed 1 and --seed 2."
    )
    if any(gain.high - gain.low > 2 * _WIDE for gain in gains):
        sentence += " The interval is wide: measure on more labelled images with --test PATH."
    return sentence


def _tested(evaluation: Mapping[str, Any], probe: str) -> str:
    """The images measured on, and whether pretraining saw them, as a part of a sentence."""
    images = f"{settings_of(evaluation, probe)['test_images']:,} test images"
    return str(_split(evaluation, probe).get("tested", images))


def _split(evaluation: Mapping[str, Any], probe: str) -> Mapping[str, Any]:
    """On which images a probe was measured; empty in an older file, which does not record it."""
    return dict(evaluation.get("details", {}).get(probe, {}).get("split") or {})
