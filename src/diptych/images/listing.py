"""Encoded images where they lie (a folder, a list, shards) to an image set: checked, then kept."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.collection import ImageSet, Skipped
from diptych.images.decode import decode_bytes
from diptych.images.names import CompactNames
from diptych.images.pixels import DecodedPixels, HeldPixels, PixelBatch, PixelSource

_CHUNK = 256  # images checked between two calls of `on_progress`

Progress = Callable[[int, int], None]
"""Called with the number of images checked and their total."""


def ignore_progress(done: int, total: int) -> None:
    """The default: nobody watches."""


@dataclass(frozen=True)
class Listing:
    """Encoded images where they lie: their names, and how to read the bytes of one.

    Attributes:
        origin: where they lie, named in errors.
        names: one for each image; an image's place among them is its identity.
        read: the encoded bytes of the image with the given index. Raises UnreadableImage; is
            called from several threads.
        labels: int64 (images,), positions in ``classes``; -1 for an image without one. None where
            nothing is known.
        classes: names of the classes.
        stamp: two numbers that change when the bytes behind a name do, as the size and the time of
            its file, found without reading it. Without it decoded images are kept in no file.
    """

    origin: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    stamp: Callable[[int], tuple[int, int]] | None = None

    def select(self, indices: NDArray[np.int64]) -> "Listing":
        """Some of the images, in the order of ``indices``."""
        read, stamp = self.read, self.stamp
        return replace(
            self,
            names=CompactNames.of(self.names).select(indices),
            read=lambda index: read(int(indices[index])),
            labels=None if self.labels is None else self.labels[indices],
            stamp=None if stamp is None else lambda index: stamp(int(indices[index])),
        )


def open_listing(
    listing: Listing,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> ImageSet:
    """Decodes every image once, to know which can be used, and keeps the pixels if they fit.

    Args:
        listing: the images.
        config: limits, colour mode and the size of the cache.
        executor: its threads read and decode.
        on_progress: told how far it is.

    Raises:
        ImagesError: there are no images, or too many of them are unreadable.
    """
    chosen = choose(len(listing.names), config.limit)
    if not len(chosen):
        raise ImagesError(f"no images in {listing.origin}.")
    if len(chosen) < len(listing.names):
        listing = listing.select(chosen)
    kept, skipped, pixels = _check_all(listing, config, executor, on_progress)
    refuse_if_too_many(skipped, len(listing.names), config, listing.origin)
    good = listing.select(np.array(kept.indices, dtype=np.int64))
    labels, classes = present_classes(good.labels, good.classes)
    return ImageSet(
        pixels=pixels if pixels is not None else _decoder(good, config),
        names=good.names,
        heights=np.array(kept.heights, dtype=np.int64),
        widths=np.array(kept.widths, dtype=np.int64),
        channels=config.channels,
        labels=labels,
        classes=classes,
        skipped=tuple(skipped),
    )


def choose(count: int, limit: int | None) -> NDArray[np.int64]:
    """A random subset of ``limit`` of so many images in ascending order; always the same one."""
    if limit is None or limit >= count:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.Generator(np.random.Philox(0)).permutation(count)[:limit]
    return np.sort(chosen).astype(np.int64)


def present_classes(
    labels: NDArray[np.int64] | None, classes: tuple[str, ...]
) -> tuple[NDArray[np.int64] | None, tuple[str, ...]]:
    """The labels as positions among the classes that occur.

    None where an image has no label, or all have the same one, which says nothing.
    """
    if labels is None or not len(labels) or labels.min() < 0:
        return None, ()
    present, positions = np.unique(labels, return_inverse=True)
    if len(present) < 2:
        return None, ()
    return positions.reshape(-1).astype(np.int64), tuple(classes[i] for i in present)


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
        self.indices, self.heights, self.widths = array("q"), array("q"), array("q")


def _check_all(
    listing: Listing, config: ImagesConfig, executor: Executor, on_progress: Progress
) -> tuple[_Kept, list[Skipped], PixelSource | None]:
    kept, skipped = _Kept(), list[Skipped]()
    room = config.cache_megabytes * 2**20
    held: list[NDArray[np.uint8]] | None = []
    for index, decoded in enumerate(_decode_each(listing, config, executor, on_progress)):
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
    listing: Listing, config: ImagesConfig, executor: Executor, on_progress: Progress
) -> Iterator[NDArray[np.uint8] | Skipped]:
    def read(index: int) -> NDArray[np.uint8] | Skipped:
        try:
            return decode_bytes(listing.read(index), config)
        except UnreadableImage as error:
            return Skipped(listing.names[index], str(error))

    count = len(listing.names)
    for start in range(0, count, _CHUNK):  # bounds what waits in memory
        some = range(start, min(start + _CHUNK, count))
        yield from executor.map(read, some)
        on_progress(some.stop, count)


def _decoder(listing: Listing, config: ImagesConfig) -> DecodedPixels:
    def read(index: int) -> NDArray[np.uint8]:
        try:
            return decode_bytes(listing.read(index), config)
        except UnreadableImage as error:
            raise ImagesError(
                f"{listing.origin}: {listing.names[index]} was readable at the start and is not now: "
                f"{error}. Restore it and go on with --resume."
            ) from error

    return DecodedPixels(len(listing.names), read)
