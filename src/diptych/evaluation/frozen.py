"""The two usual protocols on frozen features: kNN and a linear classifier by L-BFGS."""

from typing import Any

from diptych.evaluation.knn import accuracy, knn_predict
from diptych.evaluation.linear import fit_linear
from diptych.evaluation.subject import Subject


def measure_knn(subject: Subject) -> dict[str, Any]:
    """Weighted kNN (InstDisc, section 3.4), for every encoder and for pixels."""
    labelled, options = subject.labelled, subject.options
    found = {}
    for name, (train, test) in subject.features.items():
        predicted = knn_predict(
            train,
            labelled.train_labels,
            test,
            k=options.neighbours,
            temperature=options.knn_temperature,
        )
        found[name] = accuracy(predicted, labelled.test_labels)
    settings = {
        "knn_neighbours": options.neighbours,
        "knn_temperature": options.knn_temperature,
    }
    return {"knn": found, "protocol": common_settings(subject) | settings}


def measure_linear(subject: Subject) -> dict[str, Any]:
    """Multinomial logistic regression by L-BFGS (SimCLR, appendix B.8)."""
    labelled = subject.labelled
    found, strengths = {}, {}
    for name, (train, test) in subject.features.items():
        classifier = fit_linear(train, labelled.train_labels)
        found[name] = accuracy(classifier.predict(test), labelled.test_labels)
        strengths[name] = classifier.l2
    return {"linear": found, "protocol": common_settings(subject) | {"linear_l2": strengths}}


def common_settings(subject: Subject) -> dict[str, Any]:
    """On which images, and what part of the encoder."""
    labelled, options = subject.labelled, subject.options
    return {
        "train_images": len(labelled.train),
        "test_images": len(labelled.test),
        "classes": len(labelled.classes),
        "chance": labelled.chance,
        "head_layers": options.head_layers,
        "crops": options.crops,
    }
