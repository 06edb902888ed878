"""CIFAR-10 and CIFAR-100 in their binary versions, which need no unpickling."""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.arrays import image_set
from diptych.images.collection import ImageSet, held_out_config

_SIDE: Final = 32
_PIXELS: Final = 3 * _SIDE * _SIDE
_LARGEST_FILE: Final = 2**30  # bytes; the real ones have at most 154 million


@dataclass(frozen=True)
class _Layout:
    """How one of the two is laid out.

    Attributes:
        train: files to learn from, in order.
        test: the held-out file.
        names: the text file with one class name a line.
        label_bytes: before the pixels of each record; the last one is the label.
    """

    train: tuple[str, ...]
    test: str
    names: str
    label_bytes: int


_CIFAR10: Final = _Layout(
    tuple(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1
)
_CIFAR100: Final = _Layout(("train.bin",), "test.bin", "fine_label_names.txt", 2)


def is_cifar(path: Path) -> bool:
    """Whether a folder holds the binary version of CIFAR-10 or CIFAR-100."""
    return _layout(path) is not None


def open_cifar(path: Path, config: ImagesConfig) -> tuple[ImageSet, ImageSet | None]:
    """The images to learn from and, where its file is there, the held-out ones.

    Labels are the fine ones of CIFAR-100.

    Raises:
        ImagesError: a file is missing or damaged.
    """
    layout = _layout(path)
    if layout is None:
        raise ImagesError(f"{path} does not hold the binary version of CIFAR-10 or CIFAR-100.")
    names = _class_names(path / layout.names)
    train = _read([path / name for name in layout.train], layout, names, config)
    if not (path / layout.test).is_file():
        return train, None
    return train, _read([path / layout.test], layout, names, held_out_config(config, train))


def _layout(path: Path) -> _Layout | None:
    for layout in (_CIFAR10, _CIFAR100):
        if all((path / name).is_file() for name in (layout.train[0], layout.names)):
            return layout
    return None


def _read(files: list[Path], layout: _Layout, names: list[str], config: ImagesConfig) -> ImageSet:
    records = np.concatenate([_records(file, layout) for file in files])
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    if labels.max() >= len(names):
        raise ImagesError(
            f"{files[0].parent} has a label {labels.max()}, but {layout.names} names only "
            f"{len(names)} classes; it is damaged."
        )
    planes = records[:, layout.label_bytes :].reshape(-1, 3, _SIDE, _SIDE)
    stack = np.ascontiguousarray(planes.transpose(0, 2, 3, 1))
    found = image_set(stack, labels, config, files[0].parent)
    return replace(found, classes=tuple(names[int(number)] for number in found.classes))


def _records(file: Path, layout: _Layout) -> NDArray[np.uint8]:
    """The records of one file, (images, label bytes + pixels)."""
    record = layout.label_bytes + _PIXELS
    try:
        size = os.path.getsize(file)
        if size == 0 or size % record or size > _LARGEST_FILE:
            raise ImagesError(
                f"{file} has {size} bytes; wanted records of {record} bytes each. It is damaged; "
                "fetch it anew."
            )
        return np.fromfile(file, dtype=np.uint8, count=size).reshape(-1, record)
    except (OSError, ValueError) as error:
        raise ImagesError(f"{file} cannot be read: {error}. Fetch it anew.") from error


def _class_names(file: Path) -> list[str]:
    try:
        text = file.read_bytes()[:65536].decode("utf-8", "replace")
    except OSError as error:
        raise ImagesError(f"{file} cannot be read: {error}.") from error
    names = [line.strip() for line in text.splitlines() if line.strip()]
    if len(names) not in (10, 100):
        raise ImagesError(f"{file} should name 10 or 100 classes, one a line; got {len(names)}.")
    return names
