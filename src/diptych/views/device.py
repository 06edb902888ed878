"""Makes views with tensor operations on any device, from the same draws as ``cpu.py``.

Pixels are packed and moved by ``move_pixels``, which may run in another thread ahead of time;
``apply_draws`` makes the views. What is to be done is known on the CPU, so nothing waits for the
device. The pixels are those of ``cpu.py`` to rounding, and given images as floating-point tensors
the views carry gradients back to them.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from diptych.configs import ViewsConfig
from diptych.images.pixels import PixelBatch
from diptych.views import device_operations as operations
from diptych.views import draws
from diptych.views.cpu import normalisation
from diptych.views.device_operations import Fill, Views
from diptych.views.device_pixels import DevicePixels, as_stack, move_pixels, to_device
from diptych.views.device_resize import on_device, resize
from diptych.views.draws import BRIGHTNESS, CONTRAST, HUE, JITTER_ORDERS, SATURATION, Draws


def make_views_on(
    images: PixelBatch,
    drawn: Draws,
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
    return apply_draws(move_pixels(images, device), drawn, config, side_pixels=side_pixels)


def apply_draws(
    images: DevicePixels | Float[Tensor, "images channels height width"],
    drawn: Draws,
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
    for kind in np.unique(kinds[kinds != draws.NOTHING]).tolist():
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
    """Does a step of one kind; numbers is (rows, STEP_WIDTH - 1), as ``Draws.steps`` has them."""
    whole = numbers.astype(np.int64)
    table = on_device(numbers, views)
    match kind:
        case draws.FLIP:
            return views.flip(3)
        case draws.VERTICAL_FLIP:
            return views.flip(2)
        case draws.TURN:
            return _turn(views, whole[:, 0])
        case draws.AFFINE:
            return _move(views, numbers, mean)
        case draws.COLOR:
            return _jitter(views, numbers)
        case draws.GRAY:
            return operations.gray(views)
        case draws.BLUR:
            return operations.blur(views, table[:, 0], table[:, 1])
        case draws.SOLARIZE:
            return operations.solarize(views, table[:, 0])
        case draws.POSTERIZE:
            return operations.posterize(views, table[:, 0])
        case draws.EQUALIZE:
            return operations.equalize(views)
        case draws.AUTO_CONTRAST:
            return operations.auto_contrast(views)
        case draws.SHARPEN:
            return operations.sharpen(views, table[:, 0])
        case draws.NOISE:
            keys = to_device(torch.from_numpy(whole[:, 1:3]), views.device)
            return operations.add_noise(views, table[:, 0], keys)
        case draws.CUTOUT:
            return operations.cut_out(views, table[:, :4], mean)
        case draws.SOBEL:
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
