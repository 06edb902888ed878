"""A folder of image files to an image set: found, checked, labelled by class folders."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.collection import ImageSet, Skipped
from diptych.images.decode import EXTENSIONS, decode_file
from diptych.images.pixels import DecodedPixels, HeldPixels, PixelBatch, PixelSource

_CHUNK = 256  # files checked between two calls of `on_progress`

Progress = Callable[[int, int], None]
"""Called with the number of files checked and their total."""


def ignore_progress(done: int, total: int) -> None:
    """The default: nobody watches."""


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
    """Decodes every image once, to know which can be used, and keeps the pixels if they fit.

    Args:
        root: the folder.
        config: limits, colour mode and the size of the cache.
        executor: its threads decode.
        on_progress: told how far it is.

    Raises:
        ImagesError: the folder has no images, or too many of them are unreadable.
    """
    names = choose(find_images(root), config.limit)
    if not names:
        raise ImagesError(
            f"no images in {root}. Wanted files named {', '.join(sorted(EXTENSIONS))} in it or "
            "in its subfolders."
        )
    kept, skipped, pixels = _check_all(root, names, config, executor, on_progress)
    refuse_if_too_many(skipped, len(names), config, str(root))
    good = [names[i] for i in kept.indices]
    labels, classes = labels_from_folders(good)
    return ImageSet(
        pixels=pixels if pixels is not None else _decoder(root, good, config),
        names=good,
        heights=np.array(kept.heights, dtype=np.int64),
        widths=np.array(kept.widths, dtype=np.int64),
        channels=config.channels,
        labels=labels,
        classes=classes,
        skipped=tuple(skipped),
    )


def choose(names: Sequence[str], limit: int | None) -> list[str]:
    """A random subset of ``limit`` names in their order; always the same one."""
    if limit is None or limit >= len(names):
        return list(names)
    chosen = np.random.Generator(np.random.Philox(0)).permutation(len(names))[:limit]
    return [names[i] for i in np.sort(chosen)]


def labels_from_folders(
    names: Sequence[str],
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """Labels if the files lie in two or more top-level folders and nowhere else."""
    tops = [name.split(os.sep, 1)[0] if os.sep in name else "" for name in names]
    classes = tuple(sorted(set(tops)))
    if len(classes) < 2 or "" in classes:
        return None, ()
    position = {name: index for index, name in enumerate(classes)}
    return np.array([position[top] for top in tops], dtype=np.int64), classes


def refuse_if_too_many(
    skipped: Sequence[Skipped], count: int, config: ImagesConfig, origin: str
) -> None:
    """Stops before training when the share of unreadable images is above the set one."""
    if len(skipped) == count or len(skipped) > config.max_unreadable_share * count:
        listed = "\n".join(f"  {one.name}: {one.reason}" for one in skipped[:5])
        more = f"\n  and {len(skipped) - 5} more" if len(skipped) > 5 else ""
        raise ImagesError(
            f"{len(skipped)} of {count} images in {origin} are unreadable, more than "
            f"images.max_unreadable_share = {config.max_unreadable_share:g} allows:\n{listed}{more}"
            "\nRepair or remove them, or raise --images.max-unreadable-share."
        )


class _Kept:
    """The images that can be used, as they are found."""

    def __init__(self) -> None:
        self.indices: list[int] = []
        self.heights: list[int] = []
        self.widths: list[int] = []


def _check_all(
    root: Path,
    names: Sequence[str],
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress,
) -> tuple[_Kept, list[Skipped], PixelSource | None]:
    kept, skipped = _Kept(), list[Skipped]()
    room = config.cache_megabytes * 2**20
    held: list[NDArray[np.uint8]] | None = []
    for index, decoded in enumerate(_decode_each(root, names, config, executor, on_progress)):
        if isinstance(decoded, Skipped):
            skipped.append(decoded)
            continue
        kept.indices.append(index)
        kept.heights.append(decoded.shape[0])
        kept.widths.append(decoded.shape[1])
        room -= decoded.nbytes
        if room < 0:
            held = None  # too large to keep: from here on only check
        if held is not None:
            held.append(decoded)
    pixels = HeldPixels(PixelBatch.of(held)) if held else None
    return kept, skipped, pixels


def _decode_each(
    root: Path,
    names: Sequence[str],
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress,
) -> Iterator[NDArray[np.uint8] | Skipped]:
    def read(name: str) -> NDArray[np.uint8] | Skipped:
        try:
            return decode_file(root / name, config)
        except UnreadableImage as error:
            return Skipped(name, str(error))

    for start in range(0, len(names), _CHUNK):  # bounds what waits in memory
        some = names[start : start + _CHUNK]
        yield from executor.map(read, some)
        on_progress(start + len(some), len(names))


def _decoder(root: Path, names: Sequence[str], config: ImagesConfig) -> DecodedPixels:
    def read(index: int) -> NDArray[np.uint8]:
        try:
            return decode_file(root / names[index], config)
        except UnreadableImage as error:
            raise ImagesError(
                f"{root / names[index]} was readable at the start and is not now: {error}. "
                "Restore it and go on with --resume."
            ) from error

    return DecodedPixels(len(names), read)
