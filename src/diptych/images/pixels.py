"""Decoded images of any sizes, side by side in one buffer; kept in memory or in a file.

An image is kept from its first use on. What is kept is what decoding gives, to the bit, so that no
pixel depends on where it lay. The file is made for one content of the images (their checksums), one
form and one size. It has room for all images, given by the system when it is made, and for each the
checksum of its pixels, which stands in the file only after them: an image without one, or with
another, is decoded again. Several processes share the file; those who write the same image write
the same bytes. Nothing in it is ever unpickled.
"""

import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Final, Protocol

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.images.codecs.channels import Pixels
from diptych.runs.atomic import atomic_path


@dataclass(frozen=True)
class PixelBatch:
    """Images of different sizes, laid end to end, so that one compiled loop can walk them.

    Attributes:
        pixels: uint8 or uint16, all images one after the other, each (height, width, channels).
        offsets: int64 (images,), where each image begins in ``pixels``.
        heights: int64 (images,), in pixels.
        widths: int64 (images,), in pixels.
        channels: 1 .. 64, the same for all.
    """

    pixels: Pixels
    offsets: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    channels: int

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def of(cls, images: Sequence[Pixels]) -> "PixelBatch":
        """Lays images, each (height, width, channels), end to end."""
        sizes = np.array([image.size for image in images], dtype=np.int64)
        return cls(
            pixels=np.concatenate([image.reshape(-1) for image in images]),
            offsets=np.cumsum(sizes) - sizes,
            heights=np.array([image.shape[0] for image in images], dtype=np.int64),
            widths=np.array([image.shape[1] for image in images], dtype=np.int64),
            channels=images[0].shape[2],
        )

    @classmethod
    def of_stack(cls, stack: Pixels) -> "PixelBatch":
        """Wraps equal-sized images (images, height, width, channels) without a copy if it can."""
        count, height, width, channels = stack.shape
        return cls(
            pixels=np.ascontiguousarray(stack).reshape(-1),
            offsets=np.arange(count, dtype=np.int64) * (height * width * channels),
            heights=np.full(count, height, dtype=np.int64),
            widths=np.full(count, width, dtype=np.int64),
            channels=channels,
        )

    @classmethod
    def join(cls, parts: Sequence["PixelBatch"]) -> "PixelBatch":
        """Batches one after the other; a buffer that all of them share is not copied."""
        buffers = [part.pixels for part in parts]
        if all(buffer is buffers[0] for buffer in buffers):
            pixels, starts = buffers[0], [0] * len(parts)
        else:
            sizes = np.array([len(buffer) for buffer in buffers], dtype=np.int64)
            pixels, starts = np.concatenate(buffers), (np.cumsum(sizes) - sizes).tolist()
        offsets = [part.offsets + start for part, start in zip(parts, starts, strict=True)]
        return cls(
            pixels=pixels,
            offsets=np.concatenate(offsets),
            heights=np.concatenate([part.heights for part in parts]),
            widths=np.concatenate([part.widths for part in parts]),
            channels=parts[0].channels,
        )

    def select(self, indices: NDArray[np.int64]) -> "PixelBatch":
        """The images at ``indices``, in that order, sharing the same buffer."""
        return PixelBatch(
            self.pixels,
            self.offsets[indices],
            self.heights[indices],
            self.widths[indices],
            self.channels,
        )

    def image(self, index: int) -> Pixels:
        """One image, (height, width, channels), a view into the buffer."""
        height, width = int(self.heights[index]), int(self.widths[index])
        start = int(self.offsets[index])
        flat = self.pixels[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels)


class PixelSource(Protocol):
    """Gives the pixels of any of its images, which depend on the file and the settings alone.

    Three kinds: held (arrays), decoded at each use, and decoded once and kept.
    """

    def __len__(self) -> int: ...

    def gather(self, indices: NDArray[np.int64]) -> PixelBatch:
        """The pixels of the images at ``indices``, in that order.

        Works in the thread that calls it: ask for few images in each of several threads.

        Args:
            indices: (images,), any of them, repeated or not.

        Returns:
            The pixels as decoded, maybe smaller than in full, see ``ImagesConfig.decoded_side``.
        """
        ...

    def decoded_for(self, config: ImagesConfig) -> "PixelSource":
        """The same images decoded and kept as another config asks; arrays stay what they are."""
        ...


@dataclass(frozen=True)
class HeldPixels:
    """Images that lie decoded, in memory or in a mapped file."""

    batch: PixelBatch

    def __len__(self) -> int:
        return len(self.batch)

    def gather(self, indices: NDArray[np.int64]) -> PixelBatch:
        """The pixels at ``indices``; nothing is copied."""
        return self.batch.select(indices)

    def decoded_for(self, config: ImagesConfig) -> "HeldPixels":
        """Itself."""
        del config
        return self


Read = Callable[[int, NDArray[np.uint8] | None], Pixels]
"""Decodes one image, by index, and room to decode into if it can."""


@dataclass(frozen=True)
class DecodedPixels:
    """Images that are decoded whenever they are asked for.

    Attributes:
        heights: int64 (images,), as decoded.
        widths: int64 (images,), as decoded.
        channels: of every image.
        dtype: uint8 or uint16.
        read: decodes an image to (height, width, channels).
        remake: the same images for another config; None where there is no other way.
    """

    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    channels: int
    dtype: type[np.uint8] | type[np.uint16]
    read: Read
    remake: Callable[[ImagesConfig], PixelSource] | None = None

    def __len__(self) -> int:
        return len(self.heights)

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(images,): how many numbers each image has."""
        found: NDArray[np.int64] = self.heights * self.widths * self.channels
        return found

    def gather(self, indices: NDArray[np.int64]) -> PixelBatch:
        """Decodes the images at ``indices``, each at its place in one buffer."""
        sizes = self.sizes[indices]
        ends = np.cumsum(sizes)
        buffer = np.empty(int(ends[-1]) if len(ends) else 0, dtype=self.dtype)
        for index, size, end in zip(indices.tolist(), sizes.tolist(), ends.tolist(), strict=True):
            self.decode_into(index, buffer[end - size : end])
        return PixelBatch(
            buffer, ends - sizes, self.heights[indices], self.widths[indices], self.channels
        )

    def decode_into(self, index: int, room: Pixels) -> None:
        """Decodes one image to its place, (height x width x channels,)."""
        pixels = self.read(index, room.view(np.uint8) if room.dtype == np.uint8 else None)
        # A decoder that could write in place has done so.
        if not np.may_share_memory(pixels, room):
            room[:] = pixels.reshape(-1)

    def decoded_for(self, config: ImagesConfig) -> PixelSource:
        """The same images for another config."""
        return self if self.remake is None else self.remake(config)


@dataclass(frozen=True)
class SelectedPixels:
    """Some of the images of another source.

    Attributes:
        source: where the pixels come from.
        indices: (images,), which of its images these are.
    """

    source: PixelSource
    indices: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.indices)

    def gather(self, indices: NDArray[np.int64]) -> PixelBatch:
        """The pixels of the images at ``indices`` of the selection."""
        return self.source.gather(self.indices[indices])

    def decoded_for(self, config: ImagesConfig) -> "SelectedPixels":
        """The same selection of what the source gives for another config."""
        return SelectedPixels(self.source.decoded_for(config), self.indices)


SMALL_BYTES: Final = 96 * 96 * 3
"""Decoded images up to this size are read from a file faster than they are decoded."""

_PAGE: Final = 4096  # bytes before the checksums; the content's hash stands at their beginning
_THERE: Final = np.uint64(1 << 32)  # beside a checksum of 32 bits: no image has 0


@dataclass(frozen=True)
class KeptPixels:
    """Images that are decoded at their first use, and kept.

    Attributes:
        decoded: decodes them.
        batch: room for all of them.
        known: bool (images,): this process has seen that the pixels lie in ``batch``.
        sums: uint64 (images,), of what lies in a file: a checksum where an image is there, else 0;
            None in memory, where ``known`` says all.
    """

    decoded: DecodedPixels
    batch: PixelBatch
    known: NDArray[np.bool_]
    sums: NDArray[np.uint64] | None = None

    def __len__(self) -> int:
        return len(self.decoded)

    def gather(self, indices: NDArray[np.int64]) -> PixelBatch:
        """The pixels at ``indices``; those that are kept are not copied."""
        for index in indices[~self.known[indices]].tolist():
            self._fetch(index)
        return self.batch.select(indices)

    def decoded_for(self, config: ImagesConfig) -> PixelSource:
        """The same images for another config."""
        return self.decoded.decoded_for(config)

    def _fetch(self, index: int) -> None:
        # Threads that fetch the same image at once write the same bytes.
        start = int(self.batch.offsets[index])
        room = self.batch.pixels[start : start + int(self.decoded.sizes[index])]
        if self.sums is None:
            self.decoded.decode_into(index, room)
        elif self.sums[index] != _sum(room):
            self.decoded.decode_into(index, room)
            self.sums[index] = _sum(room)  # last: a process that dies before leaves no checksum
        # After the pixels: other threads read it without a lock.
        self.known[index] = True


@dataclass(frozen=True)
class CacheFile:
    """Where a file of decoded images belongs.

    Attributes:
        path: of the file: the same for a set, a form and a size, whatever the images hold.
        content: hash of all that the pixels follow from.
    """

    path: Path
    content: bytes = field(repr=False)


def keep_pixels(
    decoded: DecodedPixels, config: ImagesConfig, cache_file: CacheFile | None
) -> tuple[PixelSource, str | None]:
    """The same images, kept as the config asks where there is room.

    Args:
        decoded: the images.
        config: says where to keep them, and how much room they may take.
        cache_file: of the set; None where a change of the images cannot be noticed.

    Returns:
        The images, and a sentence where something else was asked for.
    """
    needed = int(decoded.sizes.sum()) * np.dtype(decoded.dtype).itemsize
    if config.cache in ("auto", "memory"):
        if needed <= config.cache_megabytes * 2**20:
            return _in_memory(decoded, cache_file), None
        if config.cache == "memory":
            return decoded, (
                "The decoded images need more memory than images.cache_megabytes = "
                f"{config.cache_megabytes}; they are decoded at every use."
            )
    small = np.median(decoded.sizes) * np.dtype(decoded.dtype).itemsize <= SMALL_BYTES
    if config.cache == "file" or (config.cache == "auto" and small and cache_file is not None):
        return _in_file(decoded, config, cache_file, needed)
    return decoded, None


def cache_folder(config: ImagesConfig) -> Path:
    """Where files of decoded images and indexes lie."""
    if config.cache_folder is not None:
        return Path(config.cache_folder).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "diptych"


_SHARED: Final[list[dict[bytes, KeptPixels]]] = []
_MOST_SHARED: Final = 4  # sets: to learn from and to test on, each as two encoders see them


@contextmanager
def shared_pixels() -> Iterator[None]:
    """Inside, a set that is opened again finds in memory what was decoded of it before.

    As after training, where evaluation and report see the same images.
    """
    _SHARED.append({})
    try:
        yield
    finally:
        _SHARED.pop()


def _in_memory(decoded: DecodedPixels, cache_file: CacheFile | None) -> KeptPixels:
    shared = _SHARED[-1] if _SHARED and cache_file is not None else {}
    content = b"" if cache_file is None else cache_file.content
    if content in shared:
        shared[content] = shared.pop(content)  # the last that is let go
        return replace(shared[content], decoded=decoded)
    # Memory that no image has reached yet is never touched.
    room = np.empty(int(decoded.sizes.sum()), dtype=decoded.dtype)
    made = KeptPixels(decoded, _laid_out(decoded, room), np.zeros(len(decoded), dtype=np.bool_))
    shared[content] = made
    for oldest in list(shared)[:-_MOST_SHARED]:
        del shared[oldest]
    return made


def _in_file(
    decoded: DecodedPixels, config: ImagesConfig, cache_file: CacheFile | None, needed: int
) -> tuple[PixelSource, str | None]:
    if cache_file is None:
        return decoded, (
            "These images can be kept in no file, as a change of them cannot be noticed; they are "
            "decoded at every use."
        )
    try:
        cache_file.path.parent.mkdir(parents=True, exist_ok=True)
        # One process makes the file; the others find it.
        with FileLock(f"{cache_file.path}.lock"):
            size = _PAGE + 8 * len(decoded) + needed
            if not _is_that(cache_file, size):
                free = shutil.disk_usage(cache_file.path.parent).free
                most = min(config.cache_file_megabytes * 2**20, free // 2)
                if needed > most:
                    return decoded, (
                        f"The decoded images need more than {most // 2**20} megabytes on disk "
                        "(images.cache_file_megabytes, or half of what is free); they are decoded "
                        "at every use."
                    )
                _make(cache_file, size)
            # Mapped shared (r+): what one process decodes, the others find.
            whole = np.memmap(cache_file.path, dtype=np.uint8, mode="r+", shape=size)
    except OSError as error:
        return decoded, (
            f"The decoded images could not be written to {cache_file.path} "
            f"({error.strerror or error}); they are decoded at every use. "
            "images.cache_folder names another place."
        )
    # Plain arrays on the same memory; slices of a memmap carry its class along and cost more.
    sums = np.asarray(whole[_PAGE : _PAGE + 8 * len(decoded)]).view(np.uint64)
    room: Pixels = np.asarray(whole[_PAGE + 8 * len(decoded) :]).view(decoded.dtype)
    known = np.zeros(len(decoded), dtype=np.bool_)
    return KeptPixels(decoded, _laid_out(decoded, room), known, sums), None


def _laid_out(decoded: DecodedPixels, room: Pixels) -> PixelBatch:
    offsets = np.cumsum(decoded.sizes) - decoded.sizes
    return PixelBatch(room, offsets, decoded.heights, decoded.widths, decoded.channels)


def _is_that(cache_file: CacheFile, size: int) -> bool:
    try:
        with open(cache_file.path, "rb") as file:
            return os.fstat(file.fileno()).st_size == size and file.read(32) == cache_file.content
    except FileNotFoundError:
        return False


def _make(cache_file: CacheFile, size: int) -> None:
    """An empty file under its name, with all of its room: a full disk is noticed here."""
    with atomic_path(cache_file.path) as temporary, open(temporary, "wb") as file:
        file.write(cache_file.content)
        file.flush()
        # Without it, a page written to a full disk would end the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS has none
            file.truncate(size)


def _sum(room: Pixels) -> np.uint64:
    return _THERE | np.uint64(zlib.crc32(room.data))
