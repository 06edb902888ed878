"""Decoded images of any sizes, side by side in one buffer."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class PixelBatch:
    """Images of different sizes, laid end to end, so that one compiled loop can walk them.

    Attributes:
        pixels: uint8, all images one after the other, each (height, width, channels).
        offsets: int64 (images,), where each image begins in ``pixels``.
        heights: int64 (images,), in pixels.
        widths: int64 (images,), in pixels.
        channels: 1 or 3, the same for all.
    """

    pixels: NDArray[np.uint8]
    offsets: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]
    channels: int

    def __len__(self) -> int:
        return len(self.offsets)

    @classmethod
    def of(cls, images: Sequence[NDArray[np.uint8]]) -> "PixelBatch":
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
    def of_stack(cls, stack: NDArray[np.uint8]) -> "PixelBatch":
        """Wraps equal-sized images (images, height, width, channels) without a copy if it can."""
        count, height, width, channels = stack.shape
        return cls(
            pixels=np.ascontiguousarray(stack).reshape(-1),
            offsets=np.arange(count, dtype=np.int64) * (height * width * channels),
            heights=np.full(count, height, dtype=np.int64),
            widths=np.full(count, width, dtype=np.int64),
            channels=channels,
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

    def image(self, index: int) -> NDArray[np.uint8]:
        """One image, (height, width, channels), a view into the buffer."""
        height, width = int(self.heights[index]), int(self.widths[index])
        start = int(self.offsets[index])
        flat = self.pixels[start : start + height * width * self.channels]
        return flat.reshape(height, width, self.channels)


class PixelSource(Protocol):
    """Gives the pixels of any of its images. Two kinds: held in memory, or decoded at each use."""

    def __len__(self) -> int: ...

    def gather(self, indices: NDArray[np.int64], executor: Executor) -> PixelBatch:
        """The pixels of the images at ``indices``, in that order."""
        ...


@dataclass(frozen=True)
class HeldPixels:
    """All images decoded in memory."""

    batch: PixelBatch

    def __len__(self) -> int:
        return len(self.batch)

    def gather(self, indices: NDArray[np.int64], executor: Executor) -> PixelBatch:
        """The pixels at ``indices``; nothing is copied."""
        del executor
        return self.batch.select(indices)


@dataclass(frozen=True)
class DecodedPixels:
    """Images that are decoded whenever they are asked for, in threads.

    Attributes:
        count: how many images there are.
        read: decodes the image with the given index to (height, width, channels).
    """

    count: int
    read: Callable[[int], NDArray[np.uint8]]

    def __len__(self) -> int:
        return self.count

    def gather(self, indices: NDArray[np.int64], executor: Executor) -> PixelBatch:
        """Decodes the images at ``indices``."""
        return PixelBatch.of(list(executor.map(self.read, indices.tolist())))


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

    def gather(self, indices: NDArray[np.int64], executor: Executor) -> PixelBatch:
        """The pixels of the images at ``indices`` of the selection."""
        return self.source.gather(self.indices[indices], executor)
