"""Parts of a data set by their names: which to learn from, and which is held out."""

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, TypeVar

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet, held_out_config
from diptych.images.listing import (
    Listing,
    Progress,
    ignore_progress,
    open_listing,
)
from diptych.images.selection import present_classes

TRAIN_NAMES: Final = ("train", "training")
TEST_NAMES: Final = ("test", "val", "valid", "validation")
_IN_NAME: Final = re.compile(rf"({'|'.join(TRAIN_NAMES + TEST_NAMES)})(?![a-z])", re.IGNORECASE)

Part = TypeVar("Part")


@dataclass(frozen=True)
class Found:
    """What a path holds, before images are decoded.

    Attributes:
        train: the images to learn from; a set where they lie decoded.
        held_out: what could be held out, the likeliest first; listed as it is asked for.
    """

    train: Listing | ImageSet
    held_out: Iterable[Listing | ImageSet] = ()


def split_of(name: str) -> str:
    """The split that a file's name begins with, or its first folder; empty without one.

    >>> split_of("train-00000-of-00002.parquet"), split_of("Test/0.parquet"), split_of("trains")
    ('train', 'test', '')
    """
    found = _IN_NAME.match(name)
    return found[1].lower() if found else ""


def by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Names grouped by their split; those without one count as training where no other does."""
    parts = dict[str, list[str]]()
    for name in names:
        parts.setdefault(split_of(name), []).append(name)
    loose = parts.pop("", [])
    if loose and not any(name in parts for name in TRAIN_NAMES):
        parts["train"] = loose
    return parts


def choose_splits(parts: Mapping[str, Part], origin: str) -> tuple[Part, list[Part]]:
    """The part to learn from, and those that could be held out, the likeliest first.

    A single part is learned from, whatever its name.

    Raises:
        ImagesError: there are several parts and none is named as one to learn from.
    """
    train = next((name for name in TRAIN_NAMES if name in parts), None)
    if train is None and len(parts) == 1:
        train = next(iter(parts))
    if train is None:
        raise ImagesError(
            f"{origin} has the parts {', '.join(sorted(parts)) or 'none'}; wanted one named "
            f"{' or '.join(TRAIN_NAMES)}. Give the path of one part."
        )
    return parts[train], [parts[name] for name in TEST_NAMES if name in parts and name != train]


def open_found(
    found: Found,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> tuple[ImageSet, ImageSet | None]:
    """Opens what to learn from and the best of what could be held out."""

    def opened(part: Listing | ImageSet, config: ImagesConfig) -> ImageSet:
        if isinstance(part, ImageSet):
            return part
        return open_listing(part, config, executor, on_progress)

    learned = opened(found.train, config)
    test = _held_out(found.held_out)
    return learned, None if test is None else opened(test, held_out_config(config, learned))


def _held_out(candidates: Iterable[Listing | ImageSet]) -> Listing | ImageSet | None:
    """The first with labels (those of a test part are often withheld), else the first of all."""
    parts = list(candidates)
    labelled = (one for one in parts if present_classes(one.labels, one.classes)[0] is not None)
    return next(labelled, parts[0] if parts else None)
