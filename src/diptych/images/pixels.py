"""Decoded images of any sizes, side by side in one buffer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig
from diptych.images.codecs.channels import Pixels


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
            The pixels as decoded; that may be smaller than in full, see ``ImagesConfig.jpeg_side``.
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
