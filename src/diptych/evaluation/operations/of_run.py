"""Which invariance cost a run what: the protocol ``views``, and sentences on its figures."""

from collections.abc import Mapping
from typing import Any, Final

from diptych.config.policies import as_text
from diptych.evaluation.confidence import BootstrapEstimate, estimate, mean_per_class
from diptych.evaluation.operations.costs import DESTROYS, KEEPS, Costs, measure_costs
from diptych.evaluation.operations.proposal import proposed, words_of
from diptych.evaluation.operations.readers import PIXELS_READER, fit_ridge
from diptych.evaluation.operations.trials import trials_for
from diptych.evaluation.subject import PIXELS, START, TRAINED, UNTRAINED, Subject

_NAMED: Final = 3  # operations in a sentence


def measure_views(subject: Subject) -> dict[str, Any]:
    """What the operations of the run's views cost a classifier of pixels, and what is left of it.

    One classifier, by least squares with all classes of equal weight, for the encoders, the pixels,
    and the pixels under each operation; accuracies are means over classes. Encoders are measured on
    the images that all protocols measure on; on which images operations are tried, by which views
    of the next run are chosen, ``measure_costs`` says.
    """
    labelled, views = subject.labelled, subject.config.views
    truth, units = labelled.test_labels.numpy(), labelled.test_units
    reached: dict[str, BootstrapEstimate] = {}
    for name, (train, test) in subject.features.items():
        classifier = fit_ridge(train, labelled.train_labels, labelled.units)
        predicted = classifier.predict(test).numpy()
        reached[name] = estimate(mean_per_class(predicted, truth), len(truth), units=units)
    costs = measure_costs(
        labelled,
        trials_for(views.branches, labelled.train.channels, views.strength, others=False),
        views,
        subject.runtime.executor,
        on_trials=subject.runtime.counting("Trying operations"),
    )
    found: dict[str, Any] = {
        "clean": {name: one.interval().as_dict() for name, one in reached.items()},
        "lost_to": {
            name: one.minus(reached[TRAINED]).interval().as_dict()
            for name, one in reached.items()
            if name in (PIXELS, UNTRAINED, START)
        },
        "operations": _rows(costs),
        "operations_on": costs.on_images,
        "proposed": _flags(subject, costs),
        "split": labelled.as_resampled(),
    }
    return {"views": found}


def _rows(costs: Costs) -> list[dict[str, Any]]:
    """Each operation: what it costs a classifier of pixels that does not know of it, and others."""
    pixels = costs.clean[PIXELS_READER].value
    return [
        {
            "operation": as_text([cost.trial.operation]),
            "name": cost.trial.name,
            "words": cost.trial.words,
            "pixels_lost": pixels - cost.readers[PIXELS_READER][0],
            "lost": cost.destroyed.as_dict(),
            "labels": word,
        }
        for cost, word in words_of(costs)
    ]


def _flags(subject: Subject, costs: Costs) -> str | None:
    """Weaker views for the next run; None where those of the run destroy nothing."""
    views = subject.config.views
    first, second = (proposed(one, costs, strength=views.strength) for one in views.branches)
    if (first, second) == views.branches or not costs.readable:
        return None
    also = f' --views.second "{as_text(second)}"' if second != first else ""
    return f'--views.policy "{as_text(first)}"{also}'


def words_on_views(evaluation: Mapping[str, Any]) -> list[str]:
    """Sentences on what the views of a run cost, where its encoder lost to what it began from.

    Args:
        evaluation: ``evaluation.json``; nothing is said of one without the protocol ``views``.
    """
    found = evaluation.get("views")
    if not found:
        return []
    lost = {name: one for name, one in found["lost_to"].items() if (one["low"] or 0.0) > 0.0}
    if not lost:
        return []
    most = max(lost, key=lambda name: float(lost[name]["value"]))
    clean = found["clean"]
    sentences = [
        f"A linear classifier gets {clean[most]['value']:.1%} right with {_CALLED[most]} and "
        f"{clean[TRAINED]['value']:.1%} with the trained encoder (means over classes)."
    ]
    touched = _costliest(found["operations"])
    if touched:
        listed = "; ".join(_in_words(one) for one in touched)
        sentences.append(
            "Of the changes that views made, and that the encoder was trained to ignore, these "
            f"cost a classifier of the pixels most: {listed}."
            + (f" {found['operations_on']}" if "operations_on" in found else "")  # not in old files
        )
    if found["proposed"]:
        sentences.append(f"Weaker views, for the next run: {found['proposed']}.")
    return sentences


_CALLED: Final[Mapping[str, str]] = {
    PIXELS: "raw pixels",
    UNTRAINED: "the untrained encoder",
    START: "the start weights",
}


def _costliest(operations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The strength of each operation that costs pixels most, the worst operations first."""
    worst: dict[str, dict[str, Any]] = {}
    for one in operations:
        best = worst.get(one["name"])
        if one["labels"] != KEEPS and (best is None or one["pixels_lost"] > best["pixels_lost"]):
            worst[one["name"]] = one
    return sorted(worst.values(), key=lambda one: -float(one["pixels_lost"]))[:_NAMED]


def _in_words(one: Mapping[str, Any]) -> str:
    words = f"{one['name']} {one['words']}".strip() + f" {100 * one['pixels_lost']:.0f} points"
    if one["labels"] == DESTROYS:
        words += f" ({100 * one['lost']['value']:.0f} even where it was fitted on such views)"
    return words
