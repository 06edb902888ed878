"""Which images a run learned from, by what is in them: kept beside its encoder."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from diptych.errors import RunFolderError
from diptych.images.collection import ImageSet
from diptych.runs.atomic import atomic_write
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text


@dataclass(frozen=True)
class TrainedOn:
    """The images that pretraining learned from.

    Attributes:
        checksums: (images, 2), of each image's content; see ``ImageSet``.
        labels_used: whether it was told their labels.
    """

    checksums: NDArray[np.uint64]
    labels_used: bool = False

    def saw(self, images: ImageSet) -> NDArray[np.bool_] | None:
        """Whether it learned from each image, whatever its name; None where that is not known."""
        return among(images.checksums, self.checksums)


def trained_on(images: Sequence[ImageSet], *, labels_used: bool) -> TrainedOn | None:
    """What a run that learns from some sets will have seen; None where that is not known."""
    found = [one.checksums for one in images if one.checksums is not None]
    return TrainedOn(np.concatenate(found), labels_used) if len(found) == len(images) else None


def save_trained_on(path: Path, seen: TrainedOn | None) -> None:
    """Writes it as a tensor of 64-bit integers; nothing where it is not known.

    Raises:
        OSError: it cannot be written.
    """
    if seen is not None:
        tensor = torch.from_numpy(np.ascontiguousarray(seen.checksums).view(np.int64))
        header = {"labels_used": json.dumps(seen.labels_used)}
        atomic_write(path, save({"checksums": tensor}, metadata=header))


def load_trained_on(path: Path) -> TrainedOn | None:
    """Reads it; None for a run of before it was kept.

    Raises:
        RunFolderError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        tensors, texts = read_tensors_and_text(path)
        found, labels_used = tensors["checksums"], json.loads(texts.get("labels_used", "false"))
        if found.dtype != torch.int64 or found.ndim != 2 or found.shape[1] != 2:
            raise ValueError(f"checksums of {found.dtype} and shape {tuple(found.shape)}")
    except (UnreadableTensors, ValueError, KeyError) as error:
        raise RunFolderError(
            f"{path}, which says what images the run learned from, is damaged: {error}. Restore "
            "it; without the file it is not known whether the run saw the images it is measured on."
        ) from error
    return TrainedOn(found.numpy().view(np.uint64), bool(labels_used))


def among(
    some: NDArray[np.uint64] | None, others: NDArray[np.uint64] | None
) -> NDArray[np.bool_] | None:
    """Whether each of some checksums, (images, 2), is one of the others; None where either is."""
    if some is None or others is None:
        return None
    numbers = number_contents(np.concatenate([some, others]))
    return np.isin(numbers[: len(some)], numbers[len(some) :])


def number_contents(checksums: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Numbers of contents, (images,): the same for images whose checksums are.

    >>> number_contents(np.array([[7, 1], [2, 5], [7, 1]], dtype=np.uint64)).tolist()
    [1, 0, 1]
    """
    order = np.lexsort((checksums[:, 1], checksums[:, 0]))
    ranked = checksums[order]
    is_new = (ranked[1:] != ranked[:-1]).any(axis=1)
    numbers = np.zeros(len(checksums), dtype=np.int64)
    numbers[order[1:]] = np.cumsum(is_new)
    return numbers
