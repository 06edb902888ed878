"""A linear classifier on the frozen encoder, trained by SGD as the papers do."""

from dataclasses import asdict, replace
from typing import Any, Final

from torch import Tensor, nn

from diptych.config.run import ScheduleConfig, StepConfig
from diptych.evaluation.knn_and_linear import common_settings, compared
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.sgd.kept_answers import kept_answers
from diptych.evaluation.sgd.train_by_sgd import SgdSettings, train_by_sgd
from diptych.evaluation.subject import Subject
from diptych.evaluation.train_on_labels import REFERENCE_BATCH, predict
from diptych.models.weights import PretrainedEncoder
from diptych.runtime.devices import Runtime

SGD_PROBES: Final = {
    # MoCo, section 4.1: rate 30, drops at epochs 60 and 80 of 100.
    "moco": SgdSettings(
        30.0, False, ScheduleConfig(kind="step", step=StepConfig(drops=(0.6, 0.8))), 100
    ),
    # SimCLR, appendix B.6: rate 0.1 x batch / 256, 90 epochs.
    "simclr": SgdSettings(0.1, True, ScheduleConfig(kind="cosine"), 90),
}


def measure_linear_sgd(subject: Subject) -> dict[str, Any]:
    """A linear classifier by SGD on every encoder; pixels have none, as they are no network."""
    options, labelled = subject.options, subject.labelled
    probe, epochs = SGD_PROBES[options.sgd], options.sgd_epochs
    predicted = {
        name: _linear_answers(subject, encoder, probe, epochs)
        for name, encoder in subject.encoders.items()
    }
    found, details = compared(predicted, labelled.test_labels, labelled.test_units)
    settings = common_settings(subject) | {
        "setting": options.sgd,
        "epochs": epochs or probe.epochs,
        "learning_rate": probe.rate,
        "batch_size": REFERENCE_BATCH,
    }
    table = {"settings": settings, "metrics": details, "split": labelled.as_resampled()}
    return {"linear_sgd": found, "details": {"linear_sgd": table}}


def _linear_answers(
    subject: Subject, encoder: PretrainedEncoder, probe: SgdSettings, epochs: int | None
) -> Tensor:
    """The class that the classifier on an encoder gives each test image; see ``kept_answers``."""
    labelled = subject.labelled_for(encoder)

    def learned() -> Tensor:
        classifier = fit_linear_sgd(encoder, labelled, probe, subject.runtime, epochs=epochs)
        return predict(classifier, labelled.test, encoder.config.views, subject.runtime)

    settings = {"probe": asdict(probe), "epochs": epochs or probe.epochs}
    name = "linear-sgd"
    return kept_answers(subject, encoder, labelled, labelled.test, name, settings, learned)


def fit_linear_sgd(
    encoder: PretrainedEncoder,
    labelled: Labelled,
    probe: SgdSettings,
    runtime: Runtime,
    *,
    epochs: int | None = None,
    seed: int = 0,
) -> nn.Module:
    """The frozen encoder with a classifier, from images to logits.

    Args:
        encoder: stays as it is, in evaluation mode.
        labelled: its training part is learned from.
        probe: its rate is scaled in proportion to the batch.
        runtime: to train it on.
        epochs: instead of the probe's own.
        seed: of initial weights, order and views.
    """
    batch_size = min(REFERENCE_BATCH, len(labelled.train))
    peak = probe.rate * batch_size / REFERENCE_BATCH
    settings = replace(probe, rate=peak, epochs=epochs or probe.epochs)
    return train_by_sgd(
        encoder, labelled, labelled.train, batch_size, runtime, settings, frozen=True, seed=seed
    )
