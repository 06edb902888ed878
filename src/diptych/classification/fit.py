"""From labelled images to a classifier: fitted on one part, measured and pictured on the other.

The temperature of the probabilities follows from scores of images that were left out while fitting,
within the part that is fitted on, so that the part that is measured on stays untouched. Where that
part was cut from the labelled images, the classifier that is kept is then fitted on all of them;
its figures are those of the one that was fitted on the rest.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diptych.classification.classifier import (
    ENCODER,
    MANIFEST,
    PAGE,
    PREDICTIONS,
    WEIGHTS,
    Head,
    ImageClassifier,
    LinearHead,
    NearestImages,
    read_manifest,
    save_classifier,
)
from diptych.classification.classifier_page import classifier_page
from diptych.config.downstream import ClassifierSettings
from diptych.errors import ConfigError, ImagesError, saving
from diptych.escaping import HANDLER
from diptych.evaluation.features import encode, require_finite
from diptych.evaluation.labelled import Labelled, open_labelled
from diptych.evaluation.linear import LinearClassifier, fit_linear, fit_with_strength
from diptych.evaluation.predictions import (
    Predictions,
    figures_of,
    fit_temperature,
    softmax,
    write_predictions,
)
from diptych.evaluation.sgd.finetune import RATE, FineTuningSchedule, fine_tune
from diptych.evaluation.train_on_labels import Classifier
from diptych.images.collection import ImageSet
from diptych.images.groups import stratified_group_split
from diptych.images.sources.handed_over import path_of
from diptych.models.start import load_compared
from diptych.models.weights import PretrainedEncoder, load_trained_on
from diptych.runs.atomic import atomic_path
from diptych.runs.folder import RunFolder, require_replaceable
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import BATCH_SIZE, Runtime

_FILES: Final = (MANIFEST, ENCODER, WEIGHTS, PREDICTIONS, PAGE)
_CUTS: Final = 5
"""Random fifths of the images fitted on, of whose scores the temperature is fitted."""

OTHERWISE: Final = "resnet50"
"""The network of weights that do not show which they are of."""


class _Fitted(NamedTuple):
    """What fitting gives.

    Attributes:
        encoder: gives the features.
        head: fitted on the training part.
        scores: (test images, classes).
        left_out: scores and labels of training images that were left out for them.
        kept: the head that is kept.
    """

    encoder: PretrainedEncoder
    head: Head
    scores: Tensor
    left_out: tuple[Tensor, Tensor]
    kept: Head


def fit_classifier(
    source: str | Path,
    labelled: str | Path | Any,
    out: str | Path,
    *,
    test: str | Path | Any | None = None,
    encoder: str = OTHERWISE,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: ProgressReporter | None = None,
    **settings: Any,
) -> ImageClassifier:
    """Fits a classifier on labelled images, measures it, and writes its folder with a page.

    Args:
        source: a run folder, an encoder file, or weights as ``encoder.weights`` names them.
        labelled: images in a folder for each class, or anything with labels that ``pretrain``
            takes.
        out: the folder to write; one that holds a classifier is replaced.
        test: labelled images to measure on; by default those held out with ``labelled``, or a fifth
            of its images.
        encoder: of weights that do not show which network they are of, that network.
        device: where the encoder runs, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        batch_size: images that the frozen encoder sees at once.
        progress: told how far it is.
        **settings: see ``ClassifierSettings``.

    Raises:
        ImagesError: there are no labels of two classes, or two classes have one name.
        RunFolderError, ConfigError: there is no such encoder, or a setting is out of range; ``out``
            holds something else.
        ClassifierError: ``out`` holds a classifier of another version.
    """
    how, folder = ClassifierSettings(**settings), Path(out)
    require_replaceable(folder, _FILES)
    _require_own(folder)
    with Runtime(device, threads, batch_size, progress or ProgressReporter()) as runtime:
        trained = load_compared(str(source), encoder).to(runtime.torch_device)
        seen = load_trained_on(RunFolder(Path(source)).trained_on) if _is_run(source) else None
        found = open_labelled(
            replace(trained.config.images, limit=None),
            runtime.executor,
            train=labelled,
            test=test,
            seen=seen,
            on_progress=runtime.counting("Reading the images"),
        )
        _require_different(found.classes)
        fitted = (_finetuned if how.kind == "finetune" else _on_frozen)(
            trained, found, how, runtime
        )
        made = {
            "source": str(source),
            "encoder_checksum": None if how.kind == "finetune" else _checksum(Path(source)),
            "labelled": path_of(labelled),
            **asdict(how),
        }
        return _write(folder, fitted, found, made, runtime)


def _require_own(folder: Path) -> None:
    """Refuses a folder of something else whose files have names of ours, as an encoder's."""
    there = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
    if there and MANIFEST not in there:
        raise ConfigError(
            f"{folder} holds {there[0]} and no {MANIFEST}, so it is no classifier's and is not "
            "replaced. Give the name of a new folder by -o."
        )
    if there:
        read_manifest(folder)  # a file of that name may be of another program


def _require_different(classes: Sequence[str]) -> None:
    """Refuses names of classes by which these could not be told apart again."""
    name, times = Counter(classes).most_common(1)[0]
    if times > 1 or "" in classes:
        what = f"the name {name!r} {times} times" if times > 1 else "an empty name"
        raise ImagesError(
            f"the labelled images have {what} among their {len(classes):,} classes. Wanted another "
            "for each class."
        )


def _is_run(source: str | Path) -> bool:
    return os.path.isdir(source)


def _checksum(source: Path) -> str | None:
    """Of the encoder's file, by which vectors of it are known; None where it is none of ours."""
    file = RunFolder(source).encoder if source.is_dir() else source
    if not file.is_file():
        return None
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _on_frozen(
    encoder: PretrainedEncoder, found: Labelled, how: ClassifierSettings, runtime: Runtime
) -> _Fitted:
    """Linear or kNN, on features that are extracted once."""
    train, test = (
        encode(
            encoder,
            part,
            encoder.config.views,
            runtime.executor,
            crops=how.crops,
            batch_size=runtime.batch_size,
            on_images=runtime.counting("Features of the images"),
        )
        for part in (found.train, found.test)
    )
    labels, classes = found.train_labels, len(found.classes)
    l2 = 0.0
    if how.kind == "linear":
        l2 = fit_linear(train, labels, seed=how.seed, groups=found.units).l2

    def fit(features: Tensor, its_labels: Tensor) -> Head:
        if how.kind == "linear":
            return LinearHead(fit_with_strength(features, its_labels, classes, l2, None))
        return NearestImages(features, its_labels, classes, how.neighbours, how.knn_temperature)

    scores, truth = [train.new_zeros(0, classes)], [labels[:0]]
    for cut in range(_CUTS):
        rest, left = _cut(labels, found.units, how.seed + cut)
        if len(left):
            scores.append(fit(train[rest], labels[rest]).scores(train[left]))
            truth.append(labels[left])
    head = fit(train, labels)
    kept = head
    if found.whole is not None:
        kept = fit(torch.cat([train, test]), torch.cat([labels, found.test_labels]))
    left_out = torch.cat(scores), torch.cat(truth)
    return _Fitted(encoder, head, head.scores(test), left_out, kept)


def _finetuned(
    encoder: PretrainedEncoder, found: Labelled, how: ClassifierSettings, runtime: Runtime
) -> _Fitted:
    """Encoder and classifier together: once without a fifth, for the temperature, once with all."""
    schedule = FineTuningSchedule(how.epochs, RATE)
    rest, left = _cut(found.train_labels, found.units, how.seed)
    scores = torch.zeros(0, len(found.classes))
    if len(left):
        trial = fine_tune(encoder, found, rest.numpy(), runtime, schedule, seed=how.seed)
        scores = _scores(trial, found.train.select(left.numpy()), encoder, runtime)
    everything = np.arange(len(found.train))
    tuned = fine_tune(encoder, found, everything, runtime, schedule, seed=how.seed)
    assert isinstance(tuned, Classifier)
    weight, bias = (one.detach().cpu() for one in (tuned.head.weight, tuned.head.bias))
    # Its features are taken as they are.
    dim = weight.shape[1]
    as_is = LinearClassifier(weight, bias, torch.zeros(dim), torch.ones(dim), 0.0)
    head = LinearHead(as_is, farthest=None)
    return _Fitted(
        PretrainedEncoder(tuned.encoder, encoder.config),
        head,
        _scores(tuned, found.test, encoder, runtime),
        (scores, found.train_labels[left]),
        head,
    )


def _cut(labels: Tensor, units: NDArray[np.int64] | None, seed: int) -> tuple[Tensor, Tensor]:
    """Rows to fit on and rows to leave out, by whole groups."""
    rest, left, _ = stratified_group_split(labels.numpy(), units, seed=seed)
    return torch.from_numpy(rest), torch.from_numpy(left)


def _scores(
    network: nn.Module, images: ImageSet, encoder: PretrainedEncoder, runtime: Runtime
) -> Tensor:
    views, size = encoder.config.views, runtime.batch_size
    found = encode(network, images, views, runtime.executor, batch_size=size, of="the classifier")
    return require_finite(found)


def _write(
    folder: Path, fitted: _Fitted, found: Labelled, made: dict[str, Any], runtime: Runtime
) -> ImageClassifier:
    """The folder: classifier, figures, table and page; all of it or nothing."""
    left_out, truth = fitted.left_out
    temperature = fit_temperature(left_out.double().numpy(), truth.numpy())
    probabilities = softmax(fitted.scores.double().numpy(), temperature)
    names = list(found.test.names)
    said = Predictions.of(names, found.classes, found.test_labels.numpy(), probabilities)
    about = {
        "made": made,
        "figures": figures_of(said, found.test_units),
        "split": found.as_resampled(),
        "calibrated_on": len(truth),
        "fitted_on_all": fitted.kept is not fitted.head,
    }
    classifier = ImageClassifier(
        fitted.encoder, fitted.kept, found.classes, temperature, made["crops"], about
    )
    page = classifier_page(classifier, said, found, runtime.executor)
    with (
        saving(f"{folder} cannot be written", "give the same command again"),
        atomic_path(folder) as temporary,
    ):
        temporary.mkdir()
        save_classifier(temporary, classifier)
        write_predictions(temporary / PREDICTIONS, said, probabilities)
        (temporary / PAGE).write_bytes(page.encode(errors=HANDLER))
    return classifier
