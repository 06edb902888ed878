"""Encoded images where they lie (a folder, a list, shards) to an image set: checked, then kept."""

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ImagesError, LostImage, UnreadableImage
from diptych.images.cache import Keeper, cache_key, cache_path
from diptych.images.cache_file import Decoded, read_cache
from diptych.images.codecs.jpeg import reduced
from diptych.images.collection import ImageSet, Skipped
from diptych.images.decode import decode_bytes
from diptych.images.form import Pixels, pixel_type
from diptych.images.names import CompactNames
from diptych.images.pixels import DecodedPixels, HeldPixels, PixelBatch, PixelSource
from diptych.images.selection import choose, present_classes, refuse_if_too_many

_CHUNK = 256  # images checked between two calls of `on_progress`
_FIRST = 64  # images that decide on the channels

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
        read_part: ``read`` for those who want only some consecutive images, where reading any of
            them means to copy the files of all; still called with places in the whole.
    """

    origin: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    stamp: Callable[[int], tuple[int, int]] | None = None
    read_part: Callable[[range], Callable[[int], bytes]] | None = None

    def select(self, indices: NDArray[np.int64]) -> "Listing":
        """Some of the images, in the order of ``indices``."""
        read, stamp = self.read, self.stamp
        return replace(
            self,
            names=CompactNames.of(self.names).select(indices),
            read=lambda index: read(int(indices[index])),
            labels=None if self.labels is None else self.labels[indices],
            stamp=None if stamp is None else lambda index: stamp(int(indices[index])),
            read_part=None,
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
    if config.color == "raw" and config.raw_channels is None:
        config = replace(config, raw_channels=usual_channels(listing, config, executor))
    decoded, pixels, remarks = _decoded(listing, config, executor, on_progress)
    refuse_if_too_many(decoded.skipped, len(listing.names), config, listing.origin)
    good = listing.select(decoded.places)
    labels, classes = present_classes(good.labels, good.classes)
    return ImageSet(
        pixels=pixels or _decoder(good, decoded, config),
        names=good.names,
        heights=decoded.heights,
        widths=decoded.widths,
        channels=config.channels,
        labels=labels,
        classes=classes,
        skipped=decoded.skipped,
        remarks=remarks,
    )


def usual_channels(listing: Listing, config: ImagesConfig, executor: Executor) -> int:
    """How many channels most of the first images have, as their files are.

    Raises:
        ImagesError: none of them can be read.
    """
    first = range(min(_FIRST, len(listing.names)))
    found = list(executor.map(lambda index: _try_decoding(listing, index, config), first))
    counts = Counter(one.shape[2] for one in found if not isinstance(one, Skipped))
    if not counts:
        skipped = [one for one in found if isinstance(one, Skipped)]
        refuse_if_too_many(skipped, len(skipped), config, listing.origin)
    return counts.most_common(1)[0][0]


def _decoded(
    listing: Listing, config: ImagesConfig, executor: Executor, on_progress: Progress
) -> tuple[Decoded, PixelSource | None, tuple[str, ...]]:
    """What can be used, the pixels if they are kept, and remarks on that."""
    file, key = None, ""
    if listing.stamp is not None and config.cache in ("auto", "file"):
        file = cache_path(listing.origin, config)
        # Before the images are read: one that changes while they are gets another key.
        key = cache_key(listing.names, listing.stamp, config)
        cached = _from_file(file, key, config, executor)
        if cached is not None:
            return *cached, ()
    keeper = Keeper(config, file)
    try:
        decoded = _check_all(listing, config, keeper, executor, on_progress)
        held, pixels = keeper.in_memory(), None
        if held is not None:
            pixels = HeldPixels(_end_to_end(held, decoded, config))
        elif file is not None and keeper.finish_file(decoded, key):
            cached = _from_file(file, key, config, executor)
            pixels = None if cached is None else cached[1]
    finally:
        keeper.abandon()
    return decoded, pixels, () if keeper.remark is None else (keeper.remark,)


def _from_file(
    file: Path, key: str, config: ImagesConfig, executor: Executor
) -> tuple[Decoded, HeldPixels] | None:
    found = read_cache(file, key, pixel_type(config), config.channels, executor)
    if found is None:
        return None
    decoded, pixels = found
    return decoded, HeldPixels(_end_to_end(pixels, decoded, config))


def _end_to_end(pixels: Pixels, decoded: Decoded, config: ImagesConfig) -> PixelBatch:
    sizes = decoded.heights * decoded.widths * config.channels
    offsets = np.cumsum(sizes) - sizes
    return PixelBatch(pixels, offsets, decoded.heights, decoded.widths, config.channels)


def _check_all(
    listing: Listing,
    config: ImagesConfig,
    keeper: Keeper,
    executor: Executor,
    on_progress: Progress,
) -> Decoded:
    places, heights, widths, skipped = array("q"), array("q"), array("q"), list[Skipped]()
    for index, pixels in enumerate(_decode_each(listing, config, executor, on_progress)):
        if isinstance(pixels, Skipped):
            skipped.append(pixels)
            continue
        for column, value in zip((places, heights, widths), (index, *pixels.shape), strict=False):
            column.append(value)
        keeper.add(pixels)
    columns = [np.array(column, dtype=np.int64) for column in (places, heights, widths)]
    return Decoded(columns[0], columns[1], columns[2], tuple(skipped))


def _decode_each(
    listing: Listing, config: ImagesConfig, executor: Executor, on_progress: Progress
) -> Iterator[Pixels | Skipped]:
    count = len(listing.names)
    for start in range(0, count, _CHUNK):  # bounds what waits in memory
        some = range(start, min(start + _CHUNK, count))
        yield from executor.map(lambda index: _try_decoding(listing, index, config), some)
        on_progress(some.stop, count)


def _try_decoding(listing: Listing, index: int, config: ImagesConfig) -> Pixels | Skipped:
    try:
        return decode_bytes(listing.read(index), config)
    except UnreadableImage as error:
        return Skipped(listing.names[index], str(error))


def _decoder(listing: Listing, decoded: Decoded, config: ImagesConfig) -> DecodedPixels:
    def read(index: int, smallest_scale: float, room: NDArray[np.uint8] | None) -> Pixels:
        full = int(decoded.heights[index]), int(decoded.widths[index])
        try:
            pixels = decode_bytes(listing.read(index), config, smallest_scale, room)
            if pixels.shape[:2] != full and pixels.shape[:2] != reduced(full, smallest_scale):
                raise UnreadableImage(f"its size was {full[1]} x {full[0]} and is another")
            return pixels
        except UnreadableImage as error:
            raise LostImage(
                f"{listing.origin}: {listing.names[index]} was readable at the start and is not "
                f"now: {error}. Restore it and go on with --resume."
            ) from error

    return DecodedPixels(decoded.heights, decoded.widths, config.channels, pixel_type(config), read)
