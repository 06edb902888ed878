"""Images of a set one by one: a shard decodes its own and nobody else's."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ConfigError, UnreadableImage
from diptych.images.collection import ImageSet
from diptych.images.decode import decode_bytes
from diptych.images.form import Pixels
from diptych.images.index import checksum
from diptych.images.listing import Listing
from diptych.images.sources import locate_images

CHECKSUM_BYTES: Final = 16


@dataclass(frozen=True)
class Reading:
    """Reads some consecutive images of a set, and keeps a checksum of each that was read.

    Attributes:
        some: their places in the whole.
        fetch: the bytes of an image by its place in the whole, and what decodes them. Raises
            UnreadableImage; is called from several threads.
        checksums: uint64 (images, 2), of the encoded bytes; 0 where they could not be read.
    """

    some: range
    fetch: Callable[[int], tuple[bytes, Callable[[], Pixels]]]
    checksums: NDArray[np.uint64]

    @classmethod
    def of(
        cls, some: range, fetch: Callable[[int], tuple[bytes, Callable[[], Pixels]]]
    ) -> "Reading":
        """Of images none of which is read yet."""
        return cls(some, fetch, np.zeros((len(some), 2), "<u8"))

    def pixels(self, index: int) -> Pixels:
        """Reads and decodes an image.

        Raises:
            UnreadableImage: that cannot be.
        """
        return self._read(index)()

    def checksum(self, index: int) -> bytes:
        """Of an image that was read."""
        return self.checksums[index - self.some.start].tobytes()

    def content(self) -> str:
        """A hash of all checksums."""
        return hashlib.sha256(self.checksums.tobytes()).hexdigest()

    def read_all(self, executor: Executor) -> None:
        """Reads every image and decodes none."""

        def read(index: int) -> None:
            with suppress(UnreadableImage):
                self._read(index)

        for _ in executor.map(read, self.some):
            pass

    def _read(self, index: int) -> Callable[[], Pixels]:
        data, decode = self.fetch(index)
        self.checksums[index - self.some.start] = checksum(data)
        return decode


@dataclass(frozen=True)
class Rows:
    """The images of a set in their order, none of them decoded yet.

    Attributes:
        names: one for each image.
        reader: reads some consecutive images.
        stamp: two numbers that change when an image's bytes do, found without reading it, by its
            place in the whole; None where nothing tells.
        labels: (images,), positions in ``classes``, -1 for none; None where nothing is known.
        classes: names of the classes.
    """

    names: Sequence[str]
    reader: Callable[[range], Reading]
    stamp: Callable[[int], tuple[int, int]] | None
    labels: NDArray[np.int64] | None
    classes: tuple[str, ...]

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

    def label(self, index: int) -> str | None:
        """The name of an image's class."""
        number = -1 if self.labels is None else int(self.labels[index])
        return self.classes[number] if number >= 0 else None


def find_rows(config: ImagesConfig) -> Rows:
    """The images that a path holds; of one with held-out images those to learn from.

    Raises:
        ImagesError: nothing usable is there.
        ConfigError: the images have channels of their own, and nobody said how many.
    """
    if config.color == "raw" and config.raw_channels is None:
        raise ConfigError(
            "images.color = 'raw' needs images.raw_channels, which a run's own config has."
        )
    found = locate_images(config).train
    if isinstance(found, ImageSet):
        return _decoded(found)
    return _encoded(found, config)


def _encoded(listing: Listing, config: ImagesConfig) -> Rows:
    def reader(some: range) -> Reading:
        read = listing.read if listing.read_part is None else listing.read_part(some)

        def fetch(index: int) -> tuple[bytes, Callable[[], Pixels]]:
            data = read(index)
            return data, lambda: decode_bytes(data, config)

        return Reading.of(some, fetch)

    return Rows(listing.names, reader, listing.stamp, listing.labels, listing.classes)


def _decoded(images: ImageSet) -> Rows:
    """Images whose pixels are at hand, which tell their content."""

    def fetch(index: int) -> tuple[bytes, Callable[[], Pixels]]:
        pixels = images.pixels.gather(np.array([index])).image(0)
        return repr(pixels.shape).encode() + pixels.tobytes(), lambda: pixels

    def reader(some: range) -> Reading:
        return Reading.of(some, fetch)

    return Rows(images.names, reader, None, images.labels, images.classes)


def _stamp(stamp: Callable[[int], tuple[int, int]], index: int) -> tuple[int, int]:
    try:
        return stamp(index)
    except OSError:  # missing: it will be listed as unreadable
        return -1, -1
