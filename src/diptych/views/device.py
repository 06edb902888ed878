"""Makes views with tensor operations on any device, from the same parameters as ``cpu.py``.

Pixels are packed and moved by ``move_pixels``, which may run in another thread ahead of time;
``apply_parameters`` makes the views. What is to be done is known on the CPU, so nothing waits for
the device. The pixels are those of ``cpu.py`` to rounding, and given images as floating-point
tensors the views carry gradients back to them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from diptych.config.data import ViewsConfig
from diptych.images.pixels import PixelBatch
from diptych.views import device_operations as operations
from diptych.views import parameters as codes
from diptych.views.cpu import normalisation
from diptych.views.device_operations import Fill, Views
from diptych.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    JITTER_ORDERS,
    SATURATION,
    ViewParameters,
)

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
    # lexsort sorts by its last key first: tall images, then wide ones, each by height and width.
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
    # Shares the tensor's memory, with the bits of int16 read as uint16.
    target = packed.numpy().view(images.pixels.dtype)
    for row, image in enumerate(rows.tolist()):
        target[row, : heights[row], : widths[row]] = images.image(image)
    return Stack(to_device(packed, device), rows, heights, widths)


_VALUES_AT_ONCE: Final = 2**25
"""So many numbers, 128 MiB of float32, may a step of the resize hold besides its result."""


_UNITS: Final = {torch.uint8: 1.0 / 255.0, torch.int16: 1.0 / 65535.0}
"""What a pixel value of 1 stands for; int16 holds the bits of uint16."""


def resize(
    pixels: Shaped[Tensor, "rows height width channels"],
    crops: NDArray[np.void],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    side: int,
) -> Float[Tensor, "views rows channels side side"]:
    """Cuts and resizes a stack of images that may be padded below and to the right.

    Args:
        pixels: uint8, or the bits of uint16 as int16, or floating point in 0 .. 1.
        crops: (views, rows) of dtype ``CROP``, in pixels of the images.
        heights: (rows,), of the images without padding.
        widths: (rows,), of the images without padding.
        side: of the views, in pixels.

    Returns:
        Views in 0 .. 1; float64 where the pixels are, else float32.
    """
    views, (rows, height, width, channels) = len(crops), pixels.shape
    in_use = height * width * channels + 2 * views * side * (height + width * (1 + channels))
    step = max(1, _VALUES_AT_ONCE // in_use)
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    resized = [_resize(pixels[p], crops[:, p], heights[p], widths[p], side) for p in parts]
    return resized[0] if len(resized) == 1 else torch.cat(resized, dim=1)


def _resize(
    pixels: Shaped[Tensor, "rows height width channels"],
    crops: NDArray[np.void],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    side: int,
) -> Float[Tensor, "views rows channels side side"]:
    """All at once. Width comes last, so that no product needs its operand turned."""
    views, (rows, height, width, channels) = len(crops), pixels.shape
    planes = _as_float(pixels.permute(0, 1, 3, 2))
    crops, cubic = crops.T, crops["cubic"].T == 1
    down = weights(crops["top"], crops["height"], cubic, heights, height, side, planes)
    across = weights(crops["left"], crops["width"], cubic, widths, width, side, planes)
    down = down * _UNITS.get(pixels.dtype, 1.0)
    lines = down.reshape(rows, views * side, height) @ planes.reshape(rows, height, -1)
    lines = lines.reshape(rows * views, side * channels, width)
    out = lines @ across.reshape(rows * views, side, width).transpose(1, 2)
    out = out.reshape(rows, views, side, channels, side).permute(1, 0, 3, 2, 4)
    if not cubic.any():
        return out
    overshoots = on_device(cubic.T[:, :, None, None, None], out) > 0
    return torch.where(overshoots, out.clamp(0.0, 1.0), out)


def weights(
    starts: NDArray[np.float64],
    lengths: NDArray[np.float64],
    cubic: NDArray[np.bool_],
    limits: NDArray[np.int64],
    size: int,
    side: int,
    like: Tensor,
) -> Float[Tensor, "rows views side size"]:
    """What each pixel of an image's line adds to each pixel of a view's, along one axis.

    Args:
        starts: (rows, views), first pixel of the crops along this axis; may be fractional.
        lengths: (rows, views), of the crops, in pixels.
        cubic: (rows, views), whether the filter is a cubic (a = -1/2) and not a triangle.
        limits: (rows,), the images' pixels along this axis.
        size: of the stack along this axis, in pixels; at least the largest limit.
        side: of the views, in pixels.
        like: gives device and dtype.
    """
    steps = (lengths / side)[..., None]
    centres = starts[..., None] + (np.arange(side) + 0.5) * steps - 0.5
    # Whole pixels and the rest apart: their sum in float32 would be off by 1e-4 at pixel 2000.
    whole, reach = np.floor(centres), np.maximum(steps, 1.0)
    positions = torch.arange(size, device=like.device, dtype=like.dtype)
    distance = positions - on_device(whole, like)[..., None]
    distance = (distance - on_device(centres - whole, like)[..., None]).abs()
    distance = distance / on_device(reach, like)[..., None]
    weight = (1.0 - distance).clamp(min=0.0)
    if cubic.any():
        chosen = on_device(cubic[..., None, None], like) > 0
        weight = torch.where(chosen, _cubic(distance), weight)
    # Only the cut is left to do: the filters end where the compiled loop's taps do.
    first = np.maximum(np.floor(starts + 1e-6), 0.0)
    end = np.minimum(np.ceil(starts + lengths - 1e-6), limits[:, None])
    inside = positions >= on_device(first, like)[..., None, None]
    inside &= positions < on_device(end, like)[..., None, None]
    weight = weight * inside
    return weight / weight.sum(dim=-1, keepdim=True)


def on_device(numbers: NDArray[np.generic], like: Tensor) -> Tensor:
    """Numbers with the dtype and on the device of another tensor."""
    # The dtype first, on the CPU: MPS takes in no float64.
    return to_device(torch.from_numpy(np.ascontiguousarray(numbers)).to(like.dtype), like.device)


def _as_float(pixels: Tensor) -> Tensor:
    """Contiguous float64 if the pixels are, else float32; in the pixels' own unit."""
    dtype = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    if pixels.dtype == torch.int16:  # uint16 is not a dtype that every device computes with
        # The cast drags the sign along; the mask takes it off.
        pixels = pixels.to(torch.int32) & 0xFFFF
    return pixels.to(dtype, memory_format=torch.contiguous_format)


def _cubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


def make_views_on(
    images: PixelBatch,
    drawn: ViewParameters,
    config: ViewsConfig,
    device: torch.device,
    *,
    side_pixels: int | None = None,
) -> Float[Tensor, "views images channels side side"]:
    """Applies drawn parameters to images, on a device.

    Args:
        images: the decoded images.
        drawn: of (views, images), in the coordinates of the decoded pixels.
        config: gives the side and the normalisation.
        device: any of torch's.
        side_pixels: of the views, where it is not ``config.side_pixels``.

    Returns:
        Views, float32, normalised, on the device.
    """
    return apply_parameters(move_pixels(images, device), drawn, config, side_pixels=side_pixels)


def apply_parameters(
    images: DevicePixels | Float[Tensor, "images channels height width"],
    drawn: ViewParameters,
    config: ViewsConfig,
    *,
    side_pixels: int | None = None,
) -> Float[Tensor, "views images channels side side"]:
    """Makes views on the device of the images.

    Args:
        images: pixels that were moved, or floating point in 0 .. 1, which may require a gradient.
        drawn: of (views, images), in the coordinates of these pixels.
        config: gives the side and the normalisation.
        side_pixels: of the views, where it is not ``config.side_pixels``.

    Returns:
        Views, normalised: float64 if the images are, else float32.
    """
    moved = as_stack(images) if isinstance(images, Tensor) else images
    side = side_pixels or config.side_pixels
    # Else the products of the resize and the blur would be rounded to two digits.
    with torch.autocast(moved.stacks[0].pixels.device.type, enabled=False):
        views = _resize_all(moved, drawn.crops, side)
        mean, scale = (on_device(n, views) for n in normalisation(config, views.shape[2]))
        rows = views.flatten(0, 1)
        steps = drawn.steps.reshape(len(rows), *drawn.steps.shape[2:])
        for slot in range(steps.shape[1]):
            rows = _do_slot(rows, steps[:, slot], mean)
        rows = (rows - mean[:, None, None]) * scale[:, None, None]
    return rows.reshape(views.shape)


def _resize_all(
    images: DevicePixels, crops: NDArray[np.void], side: int
) -> Float[Tensor, "views images channels side side"]:
    """Resizes stack by stack and puts the images back in the order of the batch."""
    stacks = images.stacks
    resized = [resize(s.pixels, crops[:, s.images], s.heights, s.widths, side) for s in stacks]
    if len(resized) == 1 and np.all(np.diff(stacks[0].images) > 0):
        return resized[0]
    together = torch.cat(resized, dim=1)
    places = np.argsort(np.concatenate([stack.images for stack in stacks]))
    return together.index_select(1, to_device(torch.from_numpy(places), together.device))


def _do_slot(views: Views, steps: NDArray[np.float64], mean: Fill) -> Views:
    """Does one step of every row: each kind that is there at once, for the rows that have it."""
    kinds = steps[:, 0].astype(np.int64)
    for kind in np.unique(kinds[kinds != codes.NOTHING]).tolist():
        rows = np.flatnonzero(kinds == kind)
        views = _change(views, rows, _step, kind, steps[rows, 1:], mean)
    return views


def _change(
    views: Views, rows: NDArray[np.int64], change: Callable[..., Views], *arguments: object
) -> Views:
    """Applies ``change(views, *arguments)`` to some rows; out of place, so that gradients pass."""
    if len(rows) == len(views):
        return change(views, *arguments)
    if len(rows) == 0:
        return views
    at = to_device(torch.from_numpy(rows), views.device)
    # Not index_copy, which MPS had not for long.
    return views.index_put((at,), change(views.index_select(0, at), *arguments))


def _step(views: Views, kind: int, numbers: NDArray[np.float64], mean: Fill) -> Views:
    """Does a step of one kind; numbers is (rows, STEP_WIDTH - 1), as in ``ViewParameters``."""
    # From float64: float32 holds whole numbers up to 2^24 only, and halves of keys reach 2^32.
    whole = numbers.astype(np.int64)
    table = on_device(numbers, views)
    match kind:
        case codes.FLIP:
            return views.flip(3)
        case codes.VERTICAL_FLIP:
            return views.flip(2)
        case codes.TURN:
            return _turn(views, whole[:, 0])
        case codes.AFFINE:
            return _move(views, numbers, mean)
        case codes.COLOR:
            return _jitter(views, numbers)
        case codes.GRAY:
            return operations.gray(views)
        case codes.BLUR:
            return operations.blur(views, table[:, 0], table[:, 1])
        case codes.SOLARIZE:
            return operations.solarize(views, table[:, 0])
        case codes.POSTERIZE:
            return operations.posterize(views, table[:, 0])
        case codes.EQUALIZE:
            return operations.equalize(views)
        case codes.AUTO_CONTRAST:
            return operations.auto_contrast(views)
        case codes.SHARPEN:
            return operations.sharpen(views, table[:, 0])
        case codes.NOISE:
            keys = to_device(torch.from_numpy(whole[:, 1:3]), views.device)
            return operations.add_noise(views, table[:, 0], keys)
        case codes.CUTOUT:
            return operations.cut_out(views, table[:, :4], mean)
        case codes.SOBEL:
            return operations.sobel(views)
    raise ValueError(f"there is no step of kind {kind}")


def _turn(views: Views, turns: NDArray[np.int64]) -> Views:
    for count in (1, 2, 3):
        views = _change(views, np.flatnonzero(turns % 4 == count), torch.rot90, count, (2, 3))
    return views


def _jitter(views: Views, numbers: NDArray[np.float64]) -> Views:
    """The four changes of colour in each row's own order; saturation and hue of three channels."""
    changes: dict[int, Callable[[Views, Tensor], Views]] = {
        BRIGHTNESS: operations.brightness,
        CONTRAST: operations.contrast,
    }
    if views.shape[1] == 3:
        changes |= {SATURATION: operations.saturation, HUE: operations.hue}
    orders = JITTER_ORDERS[numbers[:, 0].astype(np.int64)]
    for position in range(orders.shape[1]):
        for kind, change in changes.items():
            amounts, nothing = numbers[:, 1 + kind], 0.0 if kind == HUE else 1.0
            rows = np.flatnonzero((orders[:, position] == kind) & (amounts != nothing))
            views = _change(views, rows, change, on_device(amounts[rows], views))
    return views


def _move(views: Views, numbers: NDArray[np.float64], fill: Fill) -> Views:
    """An affine map; the sums that need float64 are done here, MPS has none."""
    middle = 0.5 * (views.shape[-1] - 1)
    steps = np.arange(views.shape[-1]) - middle
    matrix = numbers[:, :6].reshape(-1, 2, 3)
    columns = matrix[:, :, :1] * steps
    lines = matrix[:, :, 1:2] * steps + matrix[:, :, 2:] + middle
    wholes = np.floor(columns), np.floor(lines)
    return operations.move(
        views,
        (on_device(wholes[0], views), on_device(wholes[1], views)),
        (on_device(columns - wholes[0], views), on_device(lines - wholes[1], views)),
        fill,
    )
