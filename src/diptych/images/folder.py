"""A folder of image files: found, labelled by class folders."""

import os
from array import array
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.decode import EXTENSIONS, read_bytes
from diptych.images.index import file_stamp
from diptych.images.listing import Listing, Progress, ignore_progress, open_listing
from diptych.images.names import CompactNames


def find_images(root: Path) -> list[str]:
    """Paths of the image files below ``root``, relative to it, sorted. Hidden entries are left out.

    Links to folders are not followed, so that a loop of links cannot catch the walk.
    """
    found = list[str]()
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        inside = os.path.relpath(folder, root)
        found += [
            os.path.normpath(os.path.join(inside, name))
            for name in files
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS
        ]
    return sorted(found)


def open_folder(
    root: Path,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> ImageSet:
    """The images in a folder; see ``open_listing``."""
    return open_listing(list_folder(root), config, executor, on_progress)


def list_folder(root: Path) -> Listing:
    """The image files in a folder and its subfolders.

    Raises:
        ImagesError: it has none.
    """
    names = CompactNames.of(find_images(root))
    if not names:
        raise ImagesError(
            f"no images in {root}. Wanted files named {', '.join(sorted(EXTENSIONS))} in it or "
            "in its subfolders."
        )
    labels, classes = labels_from_folders(names)
    return list_files(root, names, labels, classes, origin=str(root))


def list_files(
    root: Path,
    names: CompactNames,
    labels: NDArray[np.int64] | None = None,
    classes: tuple[str, ...] = (),
    *,
    origin: str,
) -> Listing:
    """Image files by their paths, relative to ``root`` or absolute."""
    return Listing(
        origin=origin,
        names=names,
        read=lambda index: read_bytes(root / names[index]),
        labels=labels,
        classes=classes,
        stamp=lambda index: file_stamp(os.path.join(root, names[index])),
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
