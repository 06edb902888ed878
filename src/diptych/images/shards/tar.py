"""Tar shards as WebDataset writes them, to a listing with labels."""

import json
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diptych.errors import ImagesError, UnreadableImage
from diptych.escaping import readable
from diptych.images.inventory import Tally
from diptych.images.listing import Listing
from diptych.images.names import CompactNames
from diptych.images.shards.files import Shards
from diptych.images.shards.index import Member, Sample, read_samples
from diptych.images.splits import Found, by_split, choose_splits
from diptych.images.tree import part_around

_NO_LABEL: Final = -1
_LABEL_KEYS: Final = ("label", "class", "cls")
_LARGEST_LABEL: Final = 2**20  # bytes

Label = int | str


def find_in_tar(paths: Sequence[Path], origin: str) -> Found:
    """The images in shards whose names, or those of their folders, say of which part they are.

    Args:
        paths: of the shards, sorted.
        origin: what the user gave, named in errors.

    Raises:
        ImagesError: a shard cannot be read, there is no image, or two parts are named alike.
    """
    root, tally = os.path.commonpath([path.parent for path in paths]), Tally()
    parts = by_split(os.path.relpath(path, root) for path in paths)
    chosen = choose_splits(parts, origin)

    def listed(name: str) -> Listing:
        return list_tar([Path(root, one) for one in parts[name]], origin, tally, name)

    train, held_out = listed(chosen.train), [listed(name) for name in chosen.held_out]
    for name in chosen.unused:
        for one in parts[name]:
            tally.add(one, "a shard of no part")
    return Found(
        train,
        held_out,
        train_part=train.part,
        left_out=tuple(tally.rows()),
        remarks=(*chosen.remarks, *_on_folders_inside([train, *held_out])),
    )


def list_tar(paths: Sequence[Path], origin: str, others: Tally, part: str = "") -> Listing:
    """The images in shards, shard after shard, each in the order of its shard.

    An image's name is its shard's and, after a slash, its own. The label of a sample is the number
    in its ``.cls``, or the number or text under "label", "class" or "cls" in its ``.json``; -1 is
    no label.

    Args:
        paths: of the shards, sorted.
        origin: what the user gave, named in errors.
        others: takes up what is not used.
        part: what the part of the data is called that they are.

    Raises:
        ImagesError: a shard cannot be read, or none has an image.
    """
    shards = Shards(_checked(paths, origin))
    places, flaws, labels = _Places(), dict[int, str](), list[Label | None]()
    names = CompactNames.of(_collect(shards, places, flaws, labels, others))
    if not names:
        raise ImagesError(f"no images in {origin}. Wanted members named .jpg, .png or the like.")
    numbers, classes = _number(labels)
    return Listing(
        origin=origin,
        names=names,
        read=_reader(shards, places, flaws),
        labels=numbers,
        classes=classes,
        part=part,
        stamp=lambda index: (places.sizes[index], shards.changed[places.shards[index]]),
    )


class _Places:
    """Where each image lies: its shard, the offset there, its size in bytes."""

    def __init__(self) -> None:
        self.shards, self.offsets, self.sizes = array("q"), array("q"), array("q")

    def append(self, shard: int, member: Member) -> None:
        for column, value in (
            (self.shards, shard),
            (self.offsets, member.offset),
            (self.sizes, member.size),
        ):
            column.append(value)


def _checked(paths: Sequence[Path], origin: str) -> list[Path]:
    for path in paths:
        if not path.is_file():
            raise ImagesError(f"{origin}: {path} is not a file.")
    return list(paths)


def _collect(
    shards: Shards,
    places: _Places,
    flaws: dict[int, str],
    labels: list[Label | None],
    others: Tally,
) -> Iterator[str]:
    """The names of the images; fills in the rest on the way."""
    root = os.path.commonpath([path.parent for path in shards.paths])
    for shard, path in enumerate(shards.paths):
        inside = os.path.relpath(path, root)
        for sample in read_samples(path, others):
            if sample.image.flaw:
                flaws[len(labels)] = sample.image.flaw
            places.append(shard, sample.image)
            labels.append(_label(sample, shard, shards))
            yield f"{inside}/{sample.image.name}"


def _reader(shards: Shards, places: _Places, flaws: dict[int, str]) -> Callable[[int], bytes]:
    def read(index: int) -> bytes:
        if index in flaws:
            raise UnreadableImage(flaws[index])
        return shards.read(places.shards[index], places.offsets[index], places.sizes[index])

    return read


def _label(sample: Sample, shard: int, shards: Shards) -> Label | None:
    """The label that a sample's own files give it, or None."""
    for kind, parse in (("cls", int), ("json", _label_in_json)):
        member = sample.labels.get(kind)
        if member is None or member.flaw or member.size > _LARGEST_LABEL:
            continue
        try:
            found: Label | None = parse(shards.read(shard, member.offset, member.size).decode())
        except (ValueError, RecursionError, UnreadableImage):
            continue
        if found is not None:
            return found
    return None


def _label_in_json(text: str) -> Label | None:
    document: Any = json.loads(text)
    if not isinstance(document, dict):
        return None
    found = (document.get(key) for key in _LABEL_KEYS)
    label = next((one for one in found if type(one) in (int, str)), None)
    # JSON may hold half of a pair of surrogates, which no file and no terminal takes.
    return label.encode(errors="backslashreplace").decode() if isinstance(label, str) else label


def _number(labels: list[Label | None]) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Positions among the sorted classes: numbers by size, then text; -1 where there is none."""
    present = set(labels) - {None, _NO_LABEL, ""}
    if not present:
        return None, ()
    ordered = sorted(present, key=lambda one: (isinstance(one, str), one))
    position = {label: index for index, label in enumerate(ordered)}
    numbers = [position.get(one, -1) for one in labels]
    return np.array(numbers, dtype=np.int64), tuple(map(str, ordered))


def _on_folders_inside(listings: Sequence[Listing]) -> list[str]:
    """That folders inside shards are neither parts nor classes, whatever they are called."""
    inside = re.compile(r"\.tar/(?:\./)*(.*)/", re.IGNORECASE | re.DOTALL)
    matches = (inside.search(name) for one in listings for name in one.names)
    folders = {found[1] for found in matches if found is not None}
    parts = sorted({part_around(folder) for folder in folders} - {""})
    if parts:
        return [
            f"Folders named as parts lie inside the shards, as {readable(parts[0])}: they are not "
            "taken as parts; put each part into shards of its own, named for it."
        ]
    if len(folders) < 2 or any(one.labels is not None for one in listings):
        return []
    return [
        f"Folders inside the shards, as {readable(min(folders))}, are not taken as classes; write "
        "labels into .cls or .json files beside the images, or unpack the shards."
    ]
