"""The page of a classifier: how good it is, where it is wrong, and how it was made."""

from collections.abc import Mapping
from concurrent.futures import Executor
from typing import Any, Final

from diptych.classification.classifier import ImageClassifier
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.predictions import TOP, Predictions
from diptych.report.answers import answers_of
from diptych.report.page import template

_IN_WORDS: Final = {
    "linear": "A linear classifier on frozen features",
    "knn": "A vote of the most similar labelled images",
    "finetune": "Encoder and linear classifier, trained together",
}


def classifier_page(
    classifier: ImageClassifier, said: Predictions, found: Labelled, executor: Executor
) -> str:
    """The page as HTML that opens offline.

    Args:
        classifier: with all that is known about it.
        said: of the images that it is measured on.
        found: the images, in the order of ``said``.
        executor: its threads make the pictures.
    """
    views = classifier.encoder.config.views
    about = classifier.about
    return template("classifier.html.jinja", "diptych.classification").render(
        headline=headline(about),
        facts=_facts(about["figures"], found),
        sentences=sentences(classifier),
        answers=answers_of(said, [found.test], views, executor),
        answers_title="Of the images that it is measured on:",
        answers_calibration=_calibration(classifier),
        made=about["made"],
        config=classifier.encoder.config,
        classes=classifier.classes,
    )


def headline(about: Mapping[str, Any]) -> str:
    """How often it is right, with the range."""
    figures, split = about["figures"], about["split"]
    accuracy = figures["accuracy"]
    low, high = (100 * accuracy[name] for name in ("low", "high"))
    unseen = "" if split.get("test_images_in_train") else " that it was not fitted on"
    return (
        f"It names {_percent(accuracy)} ({low:.0f} to {high:.0f}%) of {figures['images']:,} images "
        f"right{unseen}."
    )


def sentences(classifier: ImageClassifier) -> list[str]:
    """What it is, on which images it was fitted and measured, and what is kept."""
    about = classifier.about
    kind = _IN_WORDS[about["made"]["kind"]]
    found = [f"{kind}, for {len(classifier.classes):,} classes. {about['split']['words']}"]
    if about["fitted_on_all"]:
        found.append(
            "The classifier that is kept was then fitted on all labelled images; the figures are "
            "those of the one that was fitted without the images measured on."
        )
    return found


def _calibration(classifier: ImageClassifier) -> str:
    count = classifier.about["calibrated_on"]
    if not count:
        return "Not calibrated, as no class has images enough to leave some out."
    return (
        f"Scores are divided by a temperature of {classifier.temperature:.2f}, found on {count:,} "
        "scores of images that were left out while fitting."
    )


def _facts(figures: Mapping[str, Any], found: Labelled) -> list[tuple[str, str]]:
    accuracy = figures["accuracy"]
    facts = [
        (
            _percent(accuracy),
            f"right ({100 * accuracy['low']:.1f} to {100 * accuracy['high']:.1f}%)",
        ),
        (_percent(figures["mean_per_class"]), "mean over classes"),
        (f"{100 * found.largest_class:.1f}%", "are of the largest class"),
    ]
    if f"top_{TOP}" in figures:
        facts.append((f"{100 * figures[f'top_{TOP}']:.1f}%", "right class among the first five"))
    return facts


def _percent(interval: Mapping[str, Any]) -> str:
    return f"{100 * interval['value']:.1f}%"
