"""What a run learns from, kept in its folder, so that no figure calls such an image held out."""

from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path

import numpy as np

from diptych.config.run import RunConfig
from diptych.errors import NotSaved
from diptych.images.collection import Collection
from diptych.images.open import open_images
from diptych.images.trained_on import TrainedOn, load_trained_on, save_trained_on, trained_on
from diptych.runs.folder import RunFolder


def uses_labels(config: RunConfig) -> bool:
    """Whether a run is told labels: by the supervised loss, or by its teacher's classifier."""
    return config.method.loss.kind == "supervised" or config.distillation.teacher is not None


def seen_by(config: RunConfig, collection: Collection, executor: Executor) -> TrainedOn | None:
    """All images that a run learns from; of a student, those that its teacher learned from too."""
    given, sets = config.distillation, [collection.train]
    if given.teacher is not None and given.labelled is not None:
        images = replace(config.images, path=given.labelled, limit=None)
        sets.append(open_images(images, executor).train)
    found = trained_on(sets, labels_used=uses_labels(config))
    if given.teacher is None or found is None:
        return found
    teachers = load_trained_on(RunFolder(Path(given.teacher)).trained_on)
    if teachers is None:
        return None
    return replace(found, checksums=np.concatenate([found.checksums, teachers.checksums]))


def keep_trained_on(
    folder: RunFolder, config: RunConfig, collection: Collection, executor: Executor
) -> str:
    """Writes what a run learns from, unless it is there.

    Raises:
        NotSaved: it cannot be written.
    """
    if folder.trained_on.exists():
        return ""
    seen = seen_by(config, collection, executor)
    try:
        save_trained_on(folder.trained_on, seen)
    except OSError as error:
        raise NotSaved(
            f"{folder.trained_on} cannot be written: {error.strerror or error}. Mend that, then "
            "give the same command again, with --resume if training had begun."
        ) from error
    return ""
