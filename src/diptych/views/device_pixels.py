"""Decoded images on a device: packed into stacks of similar sizes and moved."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from diptych.images.pixels import PixelBatch

_PADDING: Final = 1.5
"""A stack of different sizes holds at most so many times the pixels of its images."""


@dataclass(frozen=True)
class Stack:
    """Images of a batch as one tensor, padded below and to the right to one size.

    Attributes:
        pixels: (rows, height, width, channels): uint8, the bits of uint16 as int16 (few devices
            know uint16), or floating point in 0 .. 1.
        images: (rows,), which image of the batch each row is.
        heights: (rows,), in pixels, without the padding.
        widths: (rows,), in pixels, without the padding.
    """

    pixels: Tensor
    images: NDArray[np.int64]
    heights: NDArray[np.int64]
    widths: NDArray[np.int64]


@dataclass(frozen=True)
class DevicePixels:
    """The images of a batch on a device.

    Attributes:
        stacks: of similar sizes; each image is in one.
    """

    stacks: tuple[Stack, ...]


def move_pixels(images: PixelBatch, device: torch.device) -> DevicePixels:
    """Packs images and moves them to a device; equal sizes make one stack."""
    return DevicePixels(
        tuple(_stack(images, rows, device) for rows in _alike(images.heights, images.widths))
    )


def as_stack(images: Float[Tensor, "images channels height width"]) -> DevicePixels:
    """Images that are on a device as floating point already."""
    count, _, height, width = images.shape
    heights, widths = np.full(count, height), np.full(count, width)
    stack = Stack(images.permute(0, 2, 3, 1), np.arange(count), heights, widths)
    return DevicePixels((stack,))


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor of the CPU on a device, without waiting for what the device has still to do."""
    # A blocking copy to CUDA waits for all work before it. MPS may read the memory too late.
    return tensor.to(device, non_blocking=device.type == "cuda")


def _alike(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Splits a batch into stacks of similar sizes, so that padding stays bounded."""
    stacks: list[list[int]] = []
    height = width = pixels = 0
    for image in np.lexsort((widths, heights, widths > heights)).tolist():
        own = int(heights[image]), int(widths[image])
        height, width, pixels = max(height, own[0]), max(width, own[1]), pixels + own[0] * own[1]
        if not stacks or height * width * (len(stacks[-1]) + 1) > _PADDING * pixels:
            stacks.append([])
            (height, width), pixels = own, own[0] * own[1]
        stacks[-1].append(image)
    return [np.array(stack, dtype=np.int64) for stack in stacks]


def _stack(images: PixelBatch, rows: NDArray[np.int64], device: torch.device) -> Stack:
    heights, widths = images.heights[rows], images.widths[rows]
    shape = (len(rows), int(heights.max()), int(widths.max()), images.channels)
    dtype = torch.uint8 if images.pixels.dtype == np.uint8 else torch.int16
    # Only from pinned memory does a copy to CUDA run beside the computation. What the padding
    # holds does not matter: its weights are 0, and whole numbers are never NaN.
    packed = torch.empty(shape, dtype=dtype, pin_memory=device.type == "cuda")
    target = packed.numpy().view(images.pixels.dtype)
    for row, image in enumerate(rows.tolist()):
        target[row, : heights[row], : widths[row]] = images.image(image)
    return Stack(to_device(packed, device), rows, heights, widths)
