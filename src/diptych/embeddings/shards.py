"""Shards of a set of images: which images each has, which process makes it, how they are read."""

import hashlib
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError, UnreadableImage
from diptych.images.codecs.channels import Pixels
from diptych.images.codecs.decode import decode_bytes
from diptych.images.collection import ImageSet
from diptych.images.index import checksum
from diptych.images.inventory import Inventory
from diptych.images.listing import Listing
from diptych.images.open import locate_images
from diptych.images.splits import parts_held_out
from diptych.runtime.world import World

MOST: Final = 99_999
"""Shards of a set; names have five digits."""


@dataclass(frozen=True)
class Shard:
    """One of so many parts of a set, each of consecutive images.

    Attributes:
        index: from 0.
        count: of all shards.
    """

    index: int
    count: int

    def rows(self, images: int) -> range:
        """Which of so many images are its own; shards differ by one image at most.

        >>> [Shard(index, 3).rows(10) for index in range(3)]
        [range(0, 3), range(3, 6), range(6, 10)]
        """
        # In whole numbers: rounded floats could leave a gap between two shards, or an overlap.
        return range(images * self.index // self.count, images * (self.index + 1) // self.count)

    @property
    def file_name(self) -> str:
        """Of its features.

        >>> Shard(3, 16).file_name
        'features-00003-of-00016.parquet'
        """
        return f"features-{self._place}.parquet"

    @property
    def skipped_name(self) -> str:
        """Of the list of its images that could not be read."""
        return f"skipped-{self._place}.csv"

    @property
    def _place(self) -> str:
        return f"{self.index:05d}-of-{self.count:05d}"

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def parse_shard(text: str) -> Shard:
    """Reads ``i/N``.

    Raises:
        ConfigError: it is something else, or there is no such shard.

    Example:
        >>> parse_shard("3/16")
        Shard(index=3, count=16)
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text, re.ASCII)
    if not found:
        raise ConfigError(f"--shard {text!r} is not understood; wanted i/N, as 3/16.")
    return checked_shard(int(found[1]), int(found[2]))


def checked_shard(index: int, count: int) -> Shard:
    """The shard with this number of so many.

    Raises:
        ConfigError: there is no such shard.
    """
    _require_count(count)
    if not 0 <= index < count:
        raise ConfigError(
            f"there is no shard {index} of {count}: they are counted from 0 to {count - 1}."
        )
    return Shard(index, count)


def own_shards(shard: str | None, shards: int | None, here: World) -> list[Shard]:
    """The shards that this process is to make.

    Args:
        shard: ``i/N``, the only one, as for a task of a job array.
        shards: into how many the whole is split, of which each process takes its share; one for
            each process when not given.
        here: which of how many processes this is.

    Raises:
        ConfigError: both are given, or one shard to several processes.
    """
    if shard is None:
        count = here.count if shards is None else shards
        _require_count(count)
        return [Shard(index, count) for index in range(here.rank, count, here.count)]
    if shards is not None:
        raise ConfigError(
            f"--shard {shard} is one shard, --shards {shards} is all of them; give one of the two."
        )
    if here.count > 1:
        raise ConfigError(
            f"--shard {shard} is one shard, but the environment says that there are {here.count} "
            "processes (WORLD_SIZE), and each would make it. Leave --shard away, or give --shards."
        )
    return [parse_shard(shard)]


def _require_count(count: int) -> None:
    if not 1 <= count <= MOST:
        raise ConfigError(f"wanted 1 to {MOST:,} shards; got {count}.")


CHECKSUM_BYTES: Final = 16


@dataclass(frozen=True)
class ShardReader:
    """Reads some consecutive images of a set, and keeps a checksum of each that was read.

    Attributes:
        some: their places in the whole.
        fetch: the bytes of an image by its place in the whole, and what decodes them. Raises
            UnreadableImage; is called from several threads.
        checksums: uint64 (images, 2), of the encoded bytes; 0 where they could not be read, or
            memory did not suffice to decode them.
    """

    some: range
    fetch: Callable[[int], tuple[bytes, Callable[[], Pixels]]]
    checksums: NDArray[np.uint64]

    @classmethod
    def of(
        cls, some: range, fetch: Callable[[int], tuple[bytes, Callable[[], Pixels]]]
    ) -> "ShardReader":
        """A reader that has read none of its images yet."""
        # A fixed byte order: these bytes go into files and hashes.
        return cls(some, fetch, np.zeros((len(some), 2), "<u8"))

    def pixels(self, index: int) -> Pixels:
        """Reads and decodes an image.

        Raises:
            UnreadableImage: that cannot be.
        """
        decode = self._read(index)
        try:
            return decode()
        except UnreadableImage as error:
            if isinstance(error.__cause__, MemoryError):  # which says nothing of the image
                self.checksums[index - self.some.start] = 0
            raise

    def checksum(self, index: int) -> bytes:
        """Of an image that was read."""
        return self.checksums[index - self.some.start].tobytes()

    def unread(self) -> list[int]:
        """Places in the whole of images that may be well: none of their bytes was seen."""
        return (np.flatnonzero(~self.checksums.any(axis=1)) + self.some.start).tolist()

    def content(self) -> str:
        """A hash of all checksums."""
        return hashlib.sha256(self.checksums.tobytes()).hexdigest()

    def read_all(self, executor: Executor, some: range | None = None) -> NDArray[np.uint64]:
        """Reads every image, or some of them, and decodes none.

        Returns:
            (images, 2), their checksums; 0 of one that cannot be read.
        """
        some = self.some if some is None else some

        for _ in executor.map(self.can_be_read, some):
            pass
        return self.checksums[some.start - self.some.start : some.stop - self.some.start]

    def can_be_read(self, index: int) -> bool:
        """Reads an image, decodes it not, and says whether there are bytes of it."""
        try:
            self._read(index)
        except UnreadableImage:
            return False
        return True

    def _read(self, index: int) -> Callable[[], Pixels]:
        data, decode = self.fetch(index)
        self.checksums[index - self.some.start] = checksum(data)
        return decode


@dataclass(frozen=True)
class ImageRows:
    """The images of a set in their order, none of them decoded yet.

    Attributes:
        names: one for each image.
        reader: reads some consecutive images.
        stamp: two numbers that change when an image's bytes do, found without reading it, by its
            place in the whole; None where that is not known.
        labels: (images,), positions in ``classes``, -1 for none; None where nothing is known.
        classes: names of the classes.
        held_out: of each part that is held out, and is not among these: its name and size.
        file: the path of the file of an image by its place, where each is a file on this disk.
        left_out: sentences on what else was found and is not among these.
    """

    names: Sequence[str]
    reader: Callable[[range], ShardReader]
    stamp: Callable[[int], tuple[int, int]] | None
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]
    held_out: tuple[tuple[str, int], ...] = ()
    file: Callable[[int], str] | None = None
    left_out: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> str:
        """A hash of all names in their order."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(name.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()

    def stamps(self, some: range) -> str | None:
        """A hash of the stamps of some images; None where they have none."""
        if self.stamp is None:
            return None
        found = np.array([_stamp(self.stamp, index) for index in some], dtype="<i8")
        return hashlib.sha256(found.tobytes()).hexdigest()

    def label_hash(self, some: range) -> str | None:
        """A hash of the names of some images' classes; None where nothing is known of any."""
        if self.labels is None:
            return None
        digest = hashlib.sha256()
        for label in map(self.label, some):
            # A class may have any name: none is told from each of them by what stands before.
            text = "none" if label is None else f"of {label}"
            digest.update(text.encode(errors="surrogateescape") + b"\0")
        return digest.hexdigest()

    def label(self, index: int) -> str | None:
        """The name of an image's class."""
        number = -1 if self.labels is None else int(self.labels[index])
        return self.classes[number] if number >= 0 else None


def find_rows(config: ImagesConfig) -> ImageRows:
    """The images that a path holds; of one with held-out images those to learn from.

    Raises:
        ImagesError: nothing usable is there.
        ConfigError: ``images.color`` is raw and the number of channels is not set.
    """
    if config.color == "raw" and config.raw_channels is None:
        raise ConfigError(
            "images.color = 'raw' needs images.raw_channels, which a run's own config has."
        )
    located = locate_images(config)
    found = located.train
    rows = _decoded(found) if isinstance(found, ImageSet) else _encoded(found, config)
    left_out = Inventory((), left_out=located.left_out).sentences()
    return replace(rows, held_out=parts_held_out(located), left_out=tuple(left_out))


def _encoded(listing: Listing, config: ImagesConfig) -> ImageRows:
    def reader(some: range) -> ShardReader:
        read = listing.read if listing.read_part is None else listing.read_part(some)

        def fetch(index: int) -> tuple[bytes, Callable[[], Pixels]]:
            data = read(index)
            return data, lambda: decode_bytes(data, config)

        return ShardReader.of(some, fetch)

    return ImageRows(
        listing.names, reader, listing.stamp, listing.labels, listing.classes, file=listing.file
    )


def _decoded(images: ImageSet) -> ImageRows:
    """Images that lie decoded: their pixels are their content."""

    def fetch(index: int) -> tuple[bytes, Callable[[], Pixels]]:
        pixels = images.pixels.gather(np.array([index])).image(0)
        # With the shape: the same bytes as 2 x 3 and as 3 x 2 pixels are two images.
        return repr(pixels.shape).encode() + pixels.tobytes(), lambda: pixels

    def reader(some: range) -> ShardReader:
        return ShardReader.of(some, fetch)

    return ImageRows(images.names, reader, None, images.labels, images.classes)


def _stamp(stamp: Callable[[int], tuple[int, int]], index: int) -> tuple[int, int]:
    try:
        return stamp(index)
    except OSError:  # missing: it will be listed as unreadable
        return -1, -1
