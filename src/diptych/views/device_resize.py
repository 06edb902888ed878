"""The crop and antialiased resize as tensor operations: two batched matrix products.

The rules are those of ``kernels.py``: Pillow's filters, as wide as the reduction, cut at the crop's
border.
"""

from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

from diptych.views.device_pixels import to_device

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
    return to_device(torch.from_numpy(np.ascontiguousarray(numbers)).to(like.dtype), like.device)


def _as_float(pixels: Tensor) -> Tensor:
    """Contiguous float64 if the pixels are, else float32; in the pixels' own unit."""
    dtype = torch.float64 if pixels.dtype == torch.float64 else torch.float32
    if pixels.dtype == torch.int16:  # uint16 is not a dtype that every device computes with
        pixels = pixels.to(torch.int32) & 0xFFFF
    return pixels.to(dtype, memory_format=torch.contiguous_format)


def _cubic(x: Tensor) -> Tensor:
    near = (1.5 * x - 2.5) * x * x + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))
