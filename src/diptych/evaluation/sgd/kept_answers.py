"""What classifiers that were trained on labels answer, a file for each.

So an interrupted command goes on with the next classifier. Nothing in these files is unpickled.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save
from torch import Tensor

from diptych.config.files import to_toml
from diptych.errors import FeaturesError, TrainingError
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.subject import Subject
from diptych.images.collection import ImageSet
from diptych.images.index import decoders
from diptych.models.weights import PretrainedEncoder
from diptych.runs.atomic import atomic_write
from diptych.runs.tensor_files import (
    UnreadableTensors,
    hash_network,
    read_tensors_and_text,
    tensor_bytes,
)

ASTRAY: Final = (FeaturesError, TrainingError)  # the first where the last step alone overflows

_FORMAT: Final = 1  # another one also where training changes by more than the settings in a key
_PREDICTED: Final = "predicted"


def kept_answers(
    subject: Subject,
    encoder: PretrainedEncoder,
    labelled: Labelled,
    judged: ImageSet,
    name: str,
    settings: Mapping[str, Any],
    learned: Callable[[], Tensor],
) -> Tensor:
    """What a classifier answers: from its file, or by training it.

    Args:
        subject: in whose folder the file is.
        encoder: that it is trained on.
        labelled: that it is trained with.
        judged: the images that it says the classes of.
        name: of the file, before the hash of all that its answers depend on.
        settings: what of these is not in the arguments before.
        learned: trains it; (judged images,).

    Returns:
        (judged images,), classes.

    Raises:
        TrainingError, FeaturesError: it went astray, now or when that was kept.
        OSError: the file cannot be written.
    """
    key = _key(subject, encoder, labelled, settings)
    file = subject.folder.finetune_cells / f"{name}-{key[:16]}.safetensors"
    predicted = _read_answers(file, key, images=len(judged), classes=len(labelled.classes))
    if predicted is None:
        try:
            predicted = learned()
        except ASTRAY:
            # That takes as long as learning does, and comes out the same again.
            _write_answers(file, key, torch.zeros(0, dtype=torch.int64))
            raise
        _write_answers(file, key, predicted)
    if not len(predicted):
        raise TrainingError(
            f"learning from labels went astray, as an earlier command wrote to {file}. Remove that "
            "file to try once more."
        )
    return predicted


def _key(
    subject: Subject,
    encoder: PretrainedEncoder,
    labelled: Labelled,
    settings: Mapping[str, Any],
) -> str:
    """64 hexadecimal digits that change with whatever answers depend on."""
    opened = subject.config.images  # by the subject's run, whichever run the encoder is of
    about = {
        "format": _FORMAT,
        "versions": decoders(),
        "run": to_toml(encoder.config),
        "layer": str(encoder.layer),
        "color": opened.color,
        "bits": opened.bits,
        "labelled": labelled.fingerprint,
        "classes": len(labelled.classes),
        **settings,
    }
    digest = hash_network(encoder)
    digest.update(json.dumps(about, sort_keys=True).encode())
    return digest.hexdigest()


def _write_answers(file: Path, key: str, predicted: Tensor) -> None:
    """Writes answers; a reader sees all of them or nothing."""
    header = {"key": key, "sum": _sum(predicted)}
    atomic_write(file, save({_PREDICTED: predicted.contiguous()}, metadata=header))


def _read_answers(file: Path, key: str, *, images: int, classes: int) -> Tensor | None:
    """Reads answers; None where there are none, or damaged or foreign ones: these are made anew."""
    try:
        tensors, header = read_tensors_and_text(file)
    except UnreadableTensors:
        return None
    found = tensors.get(_PREDICTED)
    if found is None or header != {"key": key, "sum": _sum(found)}:
        return None
    if found.dtype != torch.int64 or found.shape not in ((images,), (0,)):
        return None
    return found if bool(((found >= 0) & (found < classes)).all()) else None


def _sum(predicted: Tensor) -> str:
    return hashlib.sha256(tensor_bytes(predicted)).hexdigest()
