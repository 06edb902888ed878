"""Encoded images where they lie (a folder, a list, shards) to an image set: checked, then kept."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, LostImage, UnreadableImage
from diptych.images.codecs.channels import Pixels, other_channels, pixel_type
from diptych.images.codecs.decode import decode_bytes
from diptych.images.codecs.reduction import reduction
from diptych.images.collection import (
    CompactNames,
    ImageSet,
    beyond,
    choose,
    present_classes,
    refuse_if_too_many,
)
from diptych.images.index import Index, decoders, find_index, index_path, set_name
from diptych.images.inventory import Skipped
from diptych.images.pixels import CacheFile, DecodedPixels, PixelSource, cache_folder, keep_pixels

_FIRST: Final = 64  # images that decide on the channels
Progress = Callable[[int, int], None]
"""Called with the number of images looked at and their total."""


def ignore_progress(done: int, total: int) -> None:
    """The default: does nothing."""


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
        part: what the part of the data is called that they are, as "train"; empty without parts.
        stamp: two numbers that change when the bytes behind a name do, as the size and the time of
            its file, found without reading it. Without it nothing is kept on disk.
        file: the path of the file of an image, where each is a file on this disk.
        read_part: ``read`` for those who want only some consecutive images, where reading any of
            them means to copy the files of all; still called with places in the whole.
    """

    origin: str
    names: Sequence[str]
    read: Callable[[int], bytes]
    labels: NDArray[np.int64] | None = None
    classes: tuple[str, ...] = ()
    part: str = ""
    stamp: Callable[[int], tuple[int, int]] | None = None
    file: Callable[[int], str] | None = None
    read_part: Callable[[range], Callable[[int], bytes]] | None = None

    def select(self, indices: NDArray[np.int64]) -> "Listing":
        """Some of the images, in the order of ``indices``."""
        read, stamp, file = self.read, self.stamp, self.file
        return replace(
            self,
            names=CompactNames.of(self.names).select(indices),
            read=lambda index: read(int(indices[index])),
            labels=None if self.labels is None else self.labels[indices],
            stamp=None if stamp is None else lambda index: stamp(int(indices[index])),
            file=None if file is None else lambda index: file(int(indices[index])),
            read_part=None,
        )


def open_listing(
    listing: Listing,
    config: ImagesConfig,
    executor: Executor,
    on_progress: Progress = ignore_progress,
) -> ImageSet:
    """Finds out which images can be used, and how large they are; their pixels come when needed.

    Args:
        listing: the images.
        config: limits, colour mode, and how decoded images are kept.
        executor: its threads read and decode.
        on_progress: called with the images done and their total.

    Raises:
        ImagesError: there are no images, or too many of them are unreadable.
    """
    count = len(listing.names)
    chosen = choose(count, config.limit)
    if not len(chosen):
        raise ImagesError(f"no images in {listing.origin}.")
    if len(chosen) < count:
        listing = listing.select(chosen)
    names = CompactNames.of(listing.names)
    place = index_path(listing.origin, listing.part, config)
    index, remark = find_index(
        names, listing.read, listing.stamp, place, config, executor, on_progress
    )
    if config.color == "raw":
        config = _with_channels(config, index)
    skipped = _skipped(listing, config, index)
    refuse_if_too_many(list(skipped.values()), len(names), config, listing.origin)
    good = np.setdiff1d(np.arange(len(names)), np.array(list(skipped), dtype=np.int64))
    images = _image_set(
        listing.select(good), index.select(good), config, tuple(skipped.values()), remark
    )
    return replace(images, beyond_limit=beyond(count, config.limit))


def _with_channels(config: ImagesConfig, index: Index) -> ImagesConfig:
    """With the channels of most of the first images, where no setting gives the number."""
    if config.raw_channels is not None:
        return config
    usable = index.channels[index.heights > 0][:_FIRST]
    if not len(usable):  # all will be refused as unreadable
        return replace(config, raw_channels=1)
    return replace(config, raw_channels=Counter(usable.tolist()).most_common(1)[0][0])


def _skipped(listing: Listing, config: ImagesConfig, index: Index) -> dict[int, Skipped]:
    """The images that cannot be used, by their places."""
    reasons = dict(index.reasons)
    if config.color == "raw":
        others = np.flatnonzero((index.heights > 0) & (index.channels != config.raw_channels))
        for row in others.tolist():
            reasons[row] = other_channels(int(index.channels[row]), config)
    return {
        row: Skipped(listing.names[row], reason, listing.part)
        for row, reason in sorted(reasons.items())
    }


def _image_set(
    listing: Listing,
    index: Index,
    config: ImagesConfig,
    skipped: tuple[Skipped, ...],
    remark: str | None,
) -> ImageSet:
    pixels, other_remark = _pixels(listing, index, config)
    labels, classes = present_classes(listing.labels, listing.classes)
    return ImageSet(
        pixels=pixels,
        names=listing.names,
        heights=index.heights,
        widths=index.widths,
        channels=config.channels,
        labels=labels,
        classes=classes,
        skipped=skipped,
        remarks=tuple(one for one in (remark, other_remark) if one is not None),
        checksums=index.checksums,
        pages=index.pages,
    )


def _pixels(listing: Listing, index: Index, config: ImagesConfig) -> tuple[PixelSource, str | None]:
    """The pixels of images that can be used, and a remark on how they are kept."""
    by = _reductions(index, config.decoded_side)
    heights, widths = -(-index.heights // by), -(-index.widths // by)

    def read(row: int, room: NDArray[np.uint8] | None) -> Pixels:
        try:
            pixels = decode_bytes(listing.read(row), config, room)
            # Its place in memory has the size that the index found; another does not fit.
            if pixels.shape[:2] != (heights[row], widths[row]):
                full = f"{index.widths[row]} x {index.heights[row]}"
                raise UnreadableImage(f"its size was {full} and is another")
            return pixels
        except UnreadableImage as error:
            raise LostImage(
                f"{listing.origin}: {listing.names[row]} was readable at the start and is not "
                f"now: {error}. Restore it and begin again, or go on with "
                "--resume."
            ) from error

    def remake(other: ImagesConfig) -> PixelSource:
        return _pixels(listing, index, replace(other, raw_channels=config.raw_channels))[0]

    decoded = DecodedPixels(heights, widths, config.channels, pixel_type(config), read, remake)
    cache_file = None
    if listing.stamp is not None:
        name = set_name(
            listing.origin, listing.part, config, config.raw_channels, config.decoded_side
        )
        # The decoders' versions too: another one may give other pixels for the same bytes.
        follows_from = f"{name} {decoders()}".encode() + index.checksums.tobytes()
        content = hashlib.sha256(follows_from).digest()
        cache_file = CacheFile(cache_folder(config) / f"{name}.pixels", content)
    return keep_pixels(decoded, config, cache_file)


def _reductions(index: Index, side: int | None) -> NDArray[np.int64]:
    """(images,): by how much each is reduced; images of one shorter side alike."""
    sides, places = np.unique(np.minimum(index.heights, index.widths), return_inverse=True)
    by = np.array([reduction((one, one), side) for one in sides.tolist()], dtype=np.int64)
    return by[places.reshape(-1)]
