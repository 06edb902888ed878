"""Image files: those of a folder, in its parts and labelled by class folders."""

import os
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.images.codecs.decode import EXTENSIONS, read_bytes
from diptych.images.collection import CompactNames
from diptych.images.index import file_stamp
from diptych.images.inventory import Skipped, Tally, listed, why_no_image
from diptych.images.listing import Listing
from diptych.images.sources.tar_shards import find_in_tar, list_tar, read_samples
from diptych.images.splits import (
    LocatedImages,
    choose_splits,
    refuse_likely,
    refuse_unclear,
    role_of,
)
from diptych.images.tree import Tree, lies_in, part_around, walk


def find_in_folder(root: Path, tree: Tree, key: str | None = None) -> LocatedImages:
    """The image files or shards of a folder: its parts where it has some, or all together.

    Args:
        root: the folder.
        tree: what lies in it.
        key: of shards: which file of a sample is its image.

    Raises:
        ImagesError: there are no images, or it is not clear which are meant.
    """
    if not _parts(tree, _base(tree)):
        shards = _shards_in(root, tree, "")
        if shards:
            found = find_in_tar(shards, str(root), key)
            return replace(found, left_out=(*_left_out(tree, "", [""]), *found.left_out))
    return find_in_tree(
        str(root), tree, lambda inside, part: _listed(root, tree, inside, part, key)
    )


def find_in_tree(where: str, tree: Tree, listed: Callable[[str, str], Listing]) -> LocatedImages:
    """Which of the images are for what; the rules stand in ``docs/images.md``.

    Args:
        where: they lie, named in errors.
        tree: what lies there.
        listed: lists the images of a folder in it, given that and the name of the part.

    Raises:
        ImagesError: there are no images, or it is not clear which are meant.
    """
    base = _base(tree)
    parts = _parts(tree, base)
    where = os.path.join(where, base) if base else where
    if not parts:
        refuse_likely(where, _level(tree, base).folders)
        remarks = (*_on_one_folder(tree, "", ""), *_on_deeper_parts(tree))
        return LocatedImages(
            listed("", ""), left_out=tuple(_left_out(tree, "", [])), remarks=remarks
        )
    beside = _beside(tree, base, parts)
    refuse_unclear(where, parts, beside)
    chosen = choose_splits(parts, where)
    names = (chosen.train, *chosen.held_out)
    places = [_inner(tree, os.path.join(base, name)) for name in names]
    train, *held_out = [listed(place, name) for place, name in zip(places, names, strict=True)]
    for name in beside:
        tree.others.add(name, "an image or shard beside the parts")
    return LocatedImages(
        train,
        held_out,
        train_part=chosen.train,
        left_out=tuple(_left_out(tree, base, places)),
        remarks=(
            *([f"The parts lie in {readable(base)}."] if base else []),
            *chosen.remarks,
            *(
                one
                for pair in zip(places, names, strict=True)
                for one in _on_one_folder(tree, *pair)
            ),
            *_on_shared_folders(tree, places),
        ),
    )


def list_folder(root: Path, tree: Tree, inside: str = "", part: str = "") -> Listing:
    """The image files of a folder and its subfolders.

    Args:
        root: the folder that was walked through.
        tree: what lies in it.
        inside: which folder of it; the whole by default.
        part: what the part of the data is called that they are.

    Raises:
        ImagesError: it has none.
    """
    names = tree.names_in(inside)
    place = root / inside
    if not names:
        raise ImagesError(_nothing(place, tree, inside))
    labels, classes = labels_from_folders(names)
    packed = CompactNames.of(names)
    return replace(list_files(place, packed, labels, classes, origin=str(place)), part=part)


def whole_folder(root: Path, config: ImagesConfig) -> tuple[list[str], list[Skipped]]:
    """The image files of a folder that is one of several, and what else lies in it.

    Raises:
        ImagesError: it has no image files, or it is split into parts.
    """
    tree = walk(root, config)
    base = _base(tree)
    parts = _parts(tree, base)
    if parts:
        raise ImagesError(
            f"{root} is split into parts ({listed(parts)}). Of several folders all images are "
            f"learned from; list the folder of a part, as {root / base / parts[0]}."
        )
    names = tree.names_in()
    if not names:
        raise ImagesError(_nothing(root, tree, ""))
    return names, _left_out(tree, "", [])


def list_files(
    root: Path,
    names: CompactNames,
    labels: NDArray[np.int64] | None = None,
    classes: tuple[str, ...] = (),
    *,
    origin: str,
) -> Listing:
    """Image files by their paths, relative to ``root`` or absolute."""
    folder = str(root)  # a Path for each file would take as long as reading a small one

    def file(index: int) -> str:
        return os.path.join(folder, names[index])

    return Listing(
        origin=origin,
        names=names,
        read=lambda index: read_bytes(file(index)),
        labels=labels,
        classes=classes,
        stamp=lambda index: file_stamp(file(index)),
        file=file,
    )


def labels_from_folders(
    names: Sequence[str],
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels by top-level folder if there are two or more; -1 for files that lie in none."""
    numbers: dict[str, int] = {}
    found = array("q")
    for name in names:
        top, inside, _ = name.partition(os.sep)
        found.append(numbers.setdefault(top, len(numbers)) if inside else -1)
    if len(numbers) < 2:
        return None, ()
    classes = tuple(sorted(numbers))
    # One more place at the end, where -1 stays -1.
    table = np.full(len(numbers) + 1, -1, dtype=np.int64)
    table[[numbers[name] for name in classes]] = np.arange(len(classes))
    return table[np.array(found, dtype=np.int64)], classes


def _on_one_folder(tree: Tree, inside: str, part: str) -> list[str]:
    """A remark where all images of a part, or of all, lie in one folder: there are no classes."""
    tops = {one.partition(os.sep)[0] for one in _below([*tree.images], inside)}
    if len(tops) != 1 or inside in tree.images:
        return []
    which = f" of {readable(part)}" if part else ""
    return [
        f"All images{which} lie in the one folder {readable(tops.pop())}, so there are no "
        "classes; give its path to have the folders in it as classes."
    ]


def _on_deeper_parts(tree: Tree) -> list[str]:
    """A remark where folders named as parts lie in class folders, and so are not parts."""
    deeper = sorted({part_around(folder) for folder in tree.images} - {""})
    if not deeper:
        return []
    return [
        f"{len(deeper):,} folders named as parts lie deeper, as {readable(deeper[0])}: all of "
        "their images are learned from, and none is held out."
    ]


@dataclass(frozen=True)
class _Level:
    """What lies right in a folder that matters.

    Attributes:
        folders: with an image or a shard in or below them.
        loose: whether there are images or shards beside them.
    """

    folders: tuple[str, ...]
    loose: bool


def _level(tree: Tree, base: str) -> _Level:
    full = {*tree.images, *map(os.path.dirname, _shards(tree))}
    inside = _below([folder for folder in full if folder != base], base)
    return _Level(tuple(sorted({one.partition(os.sep)[0] for one in inside})), base in full)


def _base(tree: Tree) -> str:
    """The folder that parts are looked for in: the first that holds more than just one folder."""
    base, level = "", _level(tree, "")
    while len(level.folders) == 1 and not level.loose and role_of(level.folders[0]) is None:
        base = os.path.join(base, level.folders[0])
        level = _level(tree, base)
    return base


def _parts(tree: Tree, base: str) -> tuple[str, ...]:
    return tuple(name for name in _level(tree, base).folders if role_of(name) is not None)


def _inner(tree: Tree, place: str) -> str:
    """The folder of a part; of one in which there is nothing but itself again, the inner one."""
    level = _level(tree, place)
    again = os.path.basename(place).lower()
    while len(level.folders) == 1 and not level.loose and level.folders[0].lower() == again:
        place = os.path.join(place, level.folders[0])
        level = _level(tree, place)
    return place


def _beside(tree: Tree, base: str, parts: Iterable[str]) -> list[str]:
    """The images and shards beside the parts, relative to the folder that those lie in."""
    inside = [os.path.join(base, name) for name in parts]
    images = {
        folder: names
        for folder, names in tree.images.items()
        if not any(lies_in(folder, part) for part in inside)
    }
    shards = [one for one in _shards(tree) if not any(lies_in(one, part) for part in inside)]
    return [*Tree(images=images).names_in(base), *_below(shards, base)]


def _listed(root: Path, tree: Tree, inside: str, part: str, key: str | None) -> Listing:
    """The shards right in a folder if it has any, else the image files in and below it."""
    shards = _shards_in(root, tree, inside)
    if shards:
        return list_tar(shards, str(root / inside), tree.others, part, key)
    return list_folder(root, tree, inside, part)


def _shards_in(root: Path, tree: Tree, inside: str) -> list[Path]:
    """The shards right in a folder, if it has any.

    Raises:
        ImagesError: there are image files as well.
    """
    place = root / inside
    shards = [one for one in _below(_shards(tree), inside) if os.sep not in one]
    images = tree.names_in(inside) if shards else []
    if images:
        raise ImagesError(
            f"{place} holds shards as {shards[0]}, {_images_in(place, shards)} images in them, and "
            f"images as {images[0]}, {len(images):,} files. Wanted one kind; {place}/*.tar takes "
            "the shards only; to take the files only, put the .tar files elsewhere."
        )
    return [place / one for one in shards]


def _images_in(place: Path, shards: Sequence[str]) -> str:
    try:
        return f"{sum(len(read_samples(place / one, Tally())) for one in shards):,}"
    except ImagesError:
        return "an unknown number of"


def _left_out(tree: Tree, base: str, read: Sequence[str]) -> list[Skipped]:
    """What lies in a folder and is not an image, or a shard in one of the folders ``read``."""
    found = [replace(one, part=_own(one.part, base)) for one in (*tree.others.rows(), *tree.odd)]
    tally = Tally()
    for name in tree.containers:
        if not (name.lower().endswith(".tar") and os.path.dirname(name) in read):
            tally.add(name, why_no_image(name), _own(part_around(os.path.dirname(name)), base))
    empty = [
        Skipped(
            name,
            "a folder without images that are read",
            _own(part_around(os.path.dirname(name)), base),
        )
        for name in tree.empty_folders()
    ]
    return [*found, *tally.rows(), *empty]


def _own(part: str, base: str) -> str:
    """The name of a part by its path; empty where it lies elsewhere than the parts do."""
    return os.path.basename(part) if part and os.path.dirname(part) == base else ""


def _on_shared_folders(tree: Tree, places: Sequence[str]) -> list[str]:
    """A remark where a part to learn from and a held-out one share a folder."""
    train, *held_out = places
    for pair in tree.shared:
        for first, second in (pair, pair[::-1]):
            if lies_in(first, train) and any(lies_in(second, one) for one in held_out):
                return [
                    f"{readable(first)} and {readable(second)} are one folder: its images are both "
                    "learned from and held out."
                ]
    return []


def _shards(tree: Tree) -> list[str]:
    return [name for name in tree.containers if name.lower().endswith(".tar")]


def _below(names: Sequence[str], folder: str) -> Sequence[str]:
    """The names that lie in a folder, relative to it."""
    if not folder:
        return names
    start = folder + os.sep
    return [name[len(start) :] for name in names if name.startswith(start)]


def _nothing(place: Path, tree: Tree, inside: str) -> str:
    """The error where there are no images, with what there is instead."""
    kinds = [one for one in _left_out(tree, "", []) if not inside or one.name.startswith(inside)]
    there = "; ".join(
        f"{one.count:,} as {readable(one.name)}: {readable(one.reason)}" for one in kinds[:5]
    )
    return (
        f"no images in {place}. Wanted files named {', '.join(sorted(EXTENSIONS))} in it or in its "
        f"subfolders.{f' It holds {there}.' if there else ''}"
    )
