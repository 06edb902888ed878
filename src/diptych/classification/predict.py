"""A classifier at work: the classes of any images, with calibrated probabilities, as a table."""

import csv
import hashlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from diptych.classification.classifier import ENCODER, ImageClassifier, load_classifier
from diptych.embeddings.encode_views import views_as_json
from diptych.embeddings.shard_files import differences
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ClassifierError, ConfigError
from diptych.escaping import HANDLER, escaped
from diptych.evaluation.features import FEATURES, encode, in_batches
from diptych.evaluation.predictions import (
    COLUMNS,
    MOST_COLUMNS,
    Predictions,
    write_predictions,
)
from diptych.images.collection import ImageSet
from diptych.images.inventory import Inventory, Skipped
from diptych.images.open import locate_images
from diptych.images.sources.handed_over import path_of
from diptych.images.splits import open_every_part
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import require_writable
from diptych.runs.own_tables import (
    SKIPPED_COLUMNS,
    require_own_list,
    require_own_table,
    skipped_list,
)
from diptych.runtime.console import ProgressReporter
from diptych.runtime.devices import BATCH_SIZE, Runtime

_AT_ONCE: Final = 16_384  # images whose features are held
_MOST_NUMBERS: Final = 2**24  # probabilities at once, of images and classes


class Predicted(NamedTuple):
    """What became of the images.

    Attributes:
        predictions: of those that can be read.
        skipped: the others, and why.
        left_out: sentences on what else was found there and is not classified.
    """

    predictions: Predictions
    skipped: tuple[Skipped, ...]
    left_out: tuple[str, ...] = ()


def predict_images(
    model: str | Path | ImageClassifier,
    images: str | Path | Any,
    out: str | Path | None = None,
    *,
    device: str = "auto",
    threads: int | None = None,
    batch_size: int = BATCH_SIZE,
    progress: ProgressReporter | None = None,
) -> Predicted:
    """Classifies images, and writes ``predictions.csv`` with their probabilities.

    Labels that the images have are compared where they are names of the classifier's classes.

    Args:
        model: the folder of a classifier, or one that was read.
        images: anything that ``pretrain`` takes; all parts of it.
        out: the table, a file that ends in .csv; images that cannot be read are listed beside it,
            in ``NAME.skipped.csv``. Nothing is written when not given.
        device: where the encoder runs, as in ``Runtime``.
        threads: CPU threads; all cores when not given.
        batch_size: images that the encoder sees at once; changes probabilities by rounding only.
        progress: told how far it is.

    Raises:
        ClassifierError: there is no classifier, or it is damaged.
        ConfigError: something else has the name of the table or of the list.
        ImagesError: none of the images can be read.
        OSError: the table cannot be written.
    """
    file = None if out is None else Path(out)
    if file is not None:
        if file.suffix.lower() != ".csv" or file.is_dir():
            raise ConfigError(f"-o {file}: wanted the name of a table that ends in .csv.")
        require_own_table(file, COLUMNS)
        require_own_list(file)
        require_writable(file.parent)
    classifier = model if isinstance(model, ImageClassifier) else load_classifier(model)
    # Those that cannot be read are listed, however many a run would take.
    config = replace(classifier.encoder.config.images.at(path_of(images)), max_unreadable_share=1.0)
    with Runtime(device, threads, batch_size, progress or ProgressReporter()) as runtime:
        classifier.encoder.to(runtime.torch_device)
        told = runtime.counting("Reading the images")
        located = locate_images(config)
        parts = open_every_part(located, config, runtime.executor, told)
        names = [os.path.join(part, name) for part, found in parts for name in found.names]
        labels = np.concatenate([_labels(found, classifier.classes) for _, found in parts])
        in_table = file is not None and len(classifier.classes) <= MOST_COLUMNS
        kept = list[NDArray[np.float64]]()

        def blocks() -> Iterator[NDArray[np.float64]]:
            for _, found in parts:
                for probabilities in _classified(classifier, found, runtime):
                    # Of more classes no table has them, and they would fill the memory.
                    kept.extend([probabilities] if in_table else [])
                    yield probabilities

        predictions = Predictions.of_blocks(names, classifier.classes, labels, blocks())
    skipped = tuple(
        replace(one, name=os.path.join(part, one.name))
        for part, found in parts
        for one in found.skipped
    )
    left_out = Inventory((), left_out=located.left_out).sentences()
    if file is not None:
        write_predictions(file, predictions, np.concatenate(kept) if kept else None)
        _list_skipped(skipped_list(file), skipped)
    return Predicted(predictions, skipped, tuple(left_out))


def classify_vectors(model: str | Path, vectors: VectorSet) -> NDArray[np.float64]:
    """(images, classes) probabilities of vectors of the classifier's encoder.

    Raises:
        ClassifierError: there is no classifier, or the vectors are of another encoder or layer, or
            of images that were seen otherwise.
    """
    classifier = load_classifier(model)
    settings = vectors.settings or {}
    if "encoder" in settings:
        _require_of_classifier(settings, classifier, Path(model) / ENCODER, vectors.source)
    return classifier.probabilities(torch.from_numpy(vectors.features))


def _require_of_classifier(
    settings: Mapping[str, Any], classifier: ImageClassifier, encoder: Path, source: Path
) -> None:
    with open(encoder, "rb") as file:
        own = hashlib.file_digest(file, "sha256").hexdigest()
    known = settings["encoder"] in (own, classifier.about.get("made", {}).get("encoder_checksum"))
    as_given = settings.get("layer") == FEATURES and not settings.get("normalized")
    why = "" if known and as_given else "of another encoder or layer than"
    if not why:
        # The same weights see another image at another side, or with other pixels taken for mean.
        found = differences(
            {**settings.get("views", {}), "max_megapixels": None},
            {**views_as_json(classifier.encoder.config, classifier.crops), "max_megapixels": None},
        )
        why = f"of images seen otherwise ({'; '.join(found)}) than" if found else ""
    if why:
        crops = "" if classifier.crops == "center" else f" --crops {classifier.crops}"
        raise ClassifierError(
            f"{source} holds vectors {why} the classifier {encoder.parent} takes. Make them with "
            f"`diptych embed {encoder} PATH{crops} -o VECTORS`."
        )


def _classified(
    classifier: ImageClassifier, images: ImageSet, runtime: Runtime
) -> Iterator[NDArray[np.float64]]:
    """(some, classes) probabilities of some images after the others."""
    for rows in in_batches(len(images), _AT_ONCE):
        some = images.select(rows)
        features = encode(
            classifier.encoder,
            some,
            classifier.encoder.config.views,
            runtime.executor,
            crops=classifier.crops,
            batch_size=runtime.batch_size,
            on_images=runtime.counting("Classifying"),
        )
        step = max(1, _MOST_NUMBERS // len(classifier.classes))
        for begin in range(0, len(features), step):
            yield classifier.probabilities(features[begin : begin + step])


def _labels(images: ImageSet, classes: tuple[str, ...]) -> NDArray[np.int64]:
    """Labels as positions among the classes, by name; -1 for none of them."""
    if images.labels is None:
        return np.full(len(images), -1, dtype=np.int64)
    position = {name: place for place, name in enumerate(classes)}
    # The last is for images without a label, -1.
    table = np.array([*(position.get(name, -1) for name in images.classes), -1], dtype=np.int64)
    found: NDArray[np.int64] = table[images.labels]
    return found


def _list_skipped(file: Path, skipped: tuple[Skipped, ...]) -> None:
    if not skipped:
        file.unlink(missing_ok=True)
        return
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(SKIPPED_COLUMNS)
    writer.writerows([escaped(one.name), one.reason] for one in skipped)
    atomic_write(file, text.getvalue().encode(errors=HANDLER))
