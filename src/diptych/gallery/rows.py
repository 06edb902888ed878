"""Images of a set one by one: a shard decodes its own and nobody else's."""

import hashlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from diptych.configs import ImagesConfig
from diptych.errors import ConfigError
from diptych.images.collection import ImageSet
from diptych.images.decode import decode_bytes
from diptych.images.form import Pixels
from diptych.images.listing import Listing
from diptych.images.sources import locate_images


@dataclass(frozen=True)
class Rows:
    """The images of a set in their order, none of them decoded yet.

    Attributes:
        names: one for each image.
        reader: for some consecutive images, what decodes one of them by its place in the whole. It
            raises UnreadableImage, and is called from several threads.
        mark: a number that tells an image of other content by its place in the whole, without
            decoding it; 0 where nothing tells.
        labels: (images,), positions in ``classes``, -1 for none; None where nothing is known.
        classes: names of the classes.
    """

    names: Sequence[str]
    reader: Callable[[range], Callable[[int], Pixels]]
    mark: Callable[[int], int]
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

    def content(self, some: range) -> str:
        """A hash of the marks of some images."""
        marks = np.array([self.mark(index) for index in some], dtype="<i8")
        return hashlib.sha256(marks.tobytes()).hexdigest()

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
    """Marked by their size in bytes: unlike times, it stays when files are copied."""

    def reader(some: range) -> Callable[[int], Pixels]:
        read = listing.read if listing.read_part is None else listing.read_part(some)
        return lambda index: decode_bytes(read(index), config)

    def mark(index: int) -> int:
        if listing.stamp is None:
            return 0
        try:
            return listing.stamp(index)[0]
        except OSError:  # missing: it will be listed as unreadable
            return -1

    return Rows(listing.names, reader, mark, listing.labels, listing.classes)


def _decoded(images: ImageSet) -> Rows:
    """Marked by a checksum of their pixels."""

    def read(index: int) -> Pixels:
        return images.pixels.gather(np.array([index])).image(0)

    def mark(index: int) -> int:
        return zlib.crc32(read(index).tobytes())

    return Rows(images.names, lambda some: read, mark, images.labels, images.classes)
