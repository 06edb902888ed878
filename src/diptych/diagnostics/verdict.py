"""A run in words: what it learned, how sure that is, what to try next."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final, NamedTuple

from diptych.diagnostics.health import LEAST_STEPS, NO_ROOM, find_symptoms
from diptych.evaluation.operations.of_run import words_on_views
from diptych.logging.metrics import TaskAccuracy, chance_of, has_choice, task_accuracy

LEAST_ACCURACY: Final = 0.1
"""At its training task, of a run that has learned it; most reach a third and more."""
TIMES_CHANCE: Final = 10.0
RISING: Final = 0.02  # of the accuracy, from one quarter of a run to the next

_UNKNOWN: Final = "Without labels, how useful the features are is not known."


class Verdict(NamedTuple):
    """A headline and a few sentences that explain it."""

    headline: str
    sentences: tuple[str, ...]


def judge(
    metrics: Sequence[Mapping[str, Any]],
    evaluation: Mapping[str, Any] | None,
) -> Verdict:
    """Says what the figures of a run mean.

    With labels the accuracies decide. Without, the course of training does, see ``Course``.

    Args:
        metrics: the lines of ``metrics.jsonl``.
        evaluation: ``evaluation.json``, or None without labels.
    """
    sentences = [*words_on_views(evaluation or {}), *_about_training(metrics)]
    alarms = [s.sentence for s in find_symptoms(metrics, dictionary_size=None) if s.alarming]
    probe = None if evaluation is None else decisive_probe(evaluation)
    if evaluation is not None and probe is not None:
        explained = conclusions(evaluation, probe)
        head = headline(evaluation, probe)
        return Verdict(head, (explained[0], *alarms, *explained[1:], *sentences))
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
    return Verdict(head, (*known, *alarms, *course.reasons, *sentences, ask))


class Course(NamedTuple):
    """A judgement of a run by its training alone, and the reasons for it."""

    headline: str
    reasons: tuple[str, ...] = ()


def course_of(metrics: Sequence[Mapping[str, Any]]) -> Course:
    """Judges a run by the steps that it took and by its accuracy at its training task.

    - Fewer than ``LEAST_STEPS`` steps: too short to tell.
    - Over the last quarter of its lines the accuracy is at least ``LEAST_ACCURACY`` and
      ``TIMES_CHANCE`` times chance, or half of the way from chance to 100%: the run has learned its
      task, and looks healthy.
    - Less, but more than in the quarter before by ``RISING``: too short to tell.
    - Less, and no longer rising: it has not learned its task.
    """
    # Not the first lines of an empty queue, where the only candidate is the right one.
    lines = [line for line in metrics if has_choice(line)]
    task = task_accuracy(lines[-1]) if lines else None
    if task is None:
        return Course("Of training there is nothing to judge by.")
    steps, chance = lines[-1]["step"], chance_of(lines[-1], task.name)
    quarter = max(1, len(lines) // 4)
    late = _mean(lines[-quarter:], task)
    before = _mean(lines[-2 * quarter : -quarter], task) if len(lines) > quarter else late
    words = (
        f"After {steps:,} step{'s' * (steps > 1)} it {task.does} {late:.1%} of its views, where "
        f"guessing does {chance:.1%}"
    )
    if steps < LEAST_STEPS:
        return Course(
            "Too short to tell.",
            (f"{words}: of fewer than {LEAST_STEPS:,} steps nothing can be said. Train longer.",),
        )
    # Where choices are few, ten times chance is more than 100%.
    wanted = min(max(LEAST_ACCURACY, TIMES_CHANCE * chance), 0.5 * (1.0 + chance))
    if late >= wanted:
        return Course("Training looks healthy.")
    if late > before + RISING:
        reason = f"{words}, {100 * (late - before):.1f} points more than before. Train longer."
        return Course("Too short to tell.", (reason,))
    return Course(
        "The run has not learned its task.",
        (
            f"{words}, and it no longer gets better. Try another --optimizer.learning-rate, or "
            "weaker views (--views.strength 0.5).",
        ),
    )


def _mean(lines: Sequence[Mapping[str, Any]], task: TaskAccuracy) -> float:
    return fmean(line[task.name] for line in lines)


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


PROBES: Final = {
    "knn": "By its {knn_neighbours} nearest neighbours",
    "linear": "By a linear classifier on the frozen features",
    "linear_sgd": "By a linear classifier trained with crop and flip",
}
"""Any of these decides the headline; the first that was measured."""

_BASELINES: Final = {"pixels": "raw pixels", "untrained": "the untrained encoder"}
_WIDE: Final = 0.03  # half an interval, above which more test images are advised
_LINEAR_LEAD: Final = 0.08  # of the linear classifier over kNN
_LABELS_LEAD: Final = 0.05  # of the supervised baseline


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


def without_probe(evaluation: Mapping[str, Any]) -> list[str]:
    """What is known of labels where no probe decides: by fine-tuning and on other tasks."""
    return [words for words in (_few_labels(evaluation), _transfer(evaluation)) if words]


def decisive_probe(evaluation: Mapping[str, Any]) -> str | None:
    """The probe that decides the headline; None where none was measured."""
    return next((name for name in PROBES if name in evaluation), None)


def headline(evaluation: Mapping[str, Any], probe: str) -> str:
    """Whether the encoder learned, by the gain over the untrained one and its error."""
    split = _split(evaluation, probe)
    if split.get("labels_used") and split.get("test_images_seen"):
        return (
            "Of other images nothing is known: pretraining saw those measured on, with labels. "
            "Give held-out ones by --test PATH."
        )
    gain = gain_over(evaluation, probe, "untrained")
    if gain.value > 4 * gain.error:
        return "The encoder learned: its features are clearly better than before training."
    if gain.low > 0:
        return "The encoder learned a little: its features are better than before training."
    if gain.high >= 0:
        if evaluation[probe]["untrained"] >= NO_ROOM:
            return (
                "Nothing can be told: the untrained encoder gets these images right already. "
                "Measure on classes that are harder to tell apart."
            )
        return "No gain that can be told from chance: train longer, or on more images."
    return "Training made the features worse for these classes."


def conclusions(evaluation: Mapping[str, Any], probe: str) -> list[str]:
    """The sentences below the headline, the most important first."""
    found = [
        _against_baselines(evaluation, probe),
        _linear(evaluation),
        _against_labels(evaluation, probe),
        *_against_others(evaluation, probe),
        _few_labels(evaluation),
        _transfer(evaluation),
        _how_sure(evaluation, probe),
    ]
    return [sentence for sentence in found if sentence]


def gain_over(evaluation: Mapping[str, Any], probe: str, baseline: str) -> Gain:
    """The gain over another encoder, in pairs.

    Older files have no intervals: there the two accuracies count as independent proportions, which
    gives a larger error.
    """
    metrics = evaluation.get("details", {}).get(probe, {}).get("metrics", {})
    found = metrics.get("accuracy", {}).get("gains", {}).get(baseline)
    if found is not None:
        return Gain(found["value"], found["low"], found["high"])
    ours, theirs = evaluation[probe]["trained"], evaluation[probe][baseline]
    count = evaluation["protocol"]["test_images"]
    error = math.sqrt(sum(share * (1 - share) for share in (ours, theirs)) / count)
    gain = ours - theirs
    return Gain(gain, gain - 1.96 * error, gain + 1.96 * error)


def _against_baselines(evaluation: Mapping[str, Any], probe: str) -> str:
    values, settings = evaluation[probe], _settings(evaluation, probe)
    gain = gain_over(evaluation, probe, "untrained")
    begin = PROBES[probe].format_map({"knn_neighbours": settings.get("knn_neighbours", 20)})
    pixels = f" and {values['pixels']:.1%} with raw pixels" if "pixels" in values else ""
    sentence = (
        f"{begin}, {values['trained']:.1%} of {_tested(evaluation, probe)} get the "
        f"right class, against {values['untrained']:.1%} with the untrained encoder{pixels} "
        f"({gain.words} over the untrained one)."
    )
    baselines = {name: values[name] for name in _BASELINES if name in values}
    best = max(baselines, key=baselines.__getitem__)
    if baselines[best] > values["trained"]:
        sentence += f" At present {_BASELINES[best]} would serve better."
    return sentence


def _linear(evaluation: Mapping[str, Any]) -> str:
    if "linear" not in evaluation or "knn" not in evaluation:
        return ""
    linear, knn = evaluation["linear"]["trained"], evaluation["knn"]["trained"]
    sentence = f"A linear classifier on the frozen features reaches {linear:.1%}."
    if _settings(evaluation, "linear").get("images") != _settings(evaluation, "knn").get("images"):
        return f"{sentence} That is on other images, so the two cannot be compared."
    if linear - knn > _LINEAR_LEAD:
        sentence += (
            " That is far above the nearest neighbours: what matters is in the features, but does "
            "not rule their distances. Use them with a classifier, or train longer."
        )
    elif knn - linear > _LINEAR_LEAD:
        sentence += (
            " That is far below the nearest neighbours: there are few labelled images for so many "
            "features, so use the neighbours, or label more."
        )
    return sentence


def _against_labels(evaluation: Mapping[str, Any], probe: str) -> str:
    values = evaluation[probe]
    if "supervised" not in values:
        return ""
    gain = gain_over(evaluation, probe, "supervised")
    begin = (
        f"The same network, told the labels, with the same views and steps, reaches "
        f"{values['supervised']:.1%} ({gain.words} for the trained one)."
    )
    if gain.low > 0:
        return begin + " Here learning without labels served better."
    if -gain.value > _LABELS_LEAD and gain.high < 0:
        return begin + (
            " The network can hold more than this run taught it: try more epochs, a larger batch "
            "or dictionary, or other views, in this order."
        )
    return begin + " Without labels the run comes close to what labels teach this network."


def _against_others(evaluation: Mapping[str, Any], probe: str) -> list[str]:
    known = {"trained", "untrained", "pixels", "supervised"}
    sentences = []
    for name in evaluation[probe]:
        if name not in known:
            gain = gain_over(evaluation, probe, name)
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
    found = Gain(**gain)
    begin += f" ({found.words} over seeds)."
    if found.low > 0:
        return begin + " Where labels are few, begin from this encoder."
    if found.high < 0:
        return begin + (
            " Here labels alone, with a schedule of their own, served better: look at the views, "
            "then pretrain for longer."
        )
    return begin + " That is no difference one can rely on; more --seeds would narrow it."


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


def _how_sure(evaluation: Mapping[str, Any], probe: str) -> str:
    gain, settings = gain_over(evaluation, probe, "untrained"), _settings(evaluation, probe)
    sentence = (
        f"How sure: the intervals are those of {settings['test_images']:,} test images for this "
        "one run. Another seed in training can move the figures too; to know by how much, repeat "
        "the run with --seed 1 and --seed 2."
    )
    if gain.high - gain.low > 2 * _WIDE:
        sentence += " The interval is wide: measure on more labelled images with --test PATH."
    return sentence


def _settings(evaluation: Mapping[str, Any], probe: str) -> Mapping[str, Any]:
    found = evaluation.get("details", {}).get(probe, {}).get("settings")
    return dict(found or evaluation["protocol"])


def _tested(evaluation: Mapping[str, Any], probe: str) -> str:
    """The images measured on, and whether pretraining saw them, as a part of a sentence."""
    images = f"{_settings(evaluation, probe)['test_images']:,} test images"
    return str(_split(evaluation, probe).get("tested", images))


def _split(evaluation: Mapping[str, Any], probe: str) -> Mapping[str, Any]:
    """On which images a probe was measured; empty in an older file, which does not record it."""
    return dict(evaluation.get("details", {}).get(probe, {}).get("split") or {})
