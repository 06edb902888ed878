"""The compiled loops behind ``cpu.py``: one view at a time, in a scratch that stays in cache."""

import numpy as np
from numba import njit

from diptych.views.draws import FLIP
from diptych.views.pixel_kernels import apply_step, largest_radius

_FAST = {"contract", "nsz", "arcp", "reassoc"}  # lets sums vectorise; still the same bits each run


@njit(cache=True, nogil=True, fastmath=_FAST)
def make_views_into(pixels, offsets, widths, heights, unit, crops, steps, mean, scale, out):
    """Makes the views of some images; the arguments of ``cpu.make_views``, unpacked.

    ``unit`` is what one pixel value stands for, ``crops`` is (views, images), ``steps`` (views,
    images, steps, numbers) and ``out`` (views, images, side, side, channels).
    """
    views, count, side, _, channels = out.shape
    reach = side + 2 * largest_radius(steps)
    columns = np.empty(_longest(crops) * channels * side, dtype=np.float32)
    planes = np.empty((channels, side * side), dtype=np.float32)
    scratch = np.empty((2, side * reach), dtype=np.float32)
    for i in range(count):
        size = (heights[i], widths[i])
        for view in range(views):
            crop, todo = crops[view, i], steps[view, i]
            # A flip right after the crop, or at the very end, is done while pixels move anyway.
            first, last = 0, len(todo)
            flipped = last > 0 and todo[0, 0] == FLIP
            first += flipped
            mirrored = last > first and todo[last - 1, 0] == FLIP
            last -= mirrored
            _crop_and_resize(
                pixels, offsets[i], size, crop, unit, flipped, side, channels, columns, planes
            )
            for step in range(first, last):
                if todo[step, 0] != 0.0:
                    apply_step(planes, todo[step], side, mean, scratch[0], scratch[1])
            for c in range(channels):
                _write(planes[c], side, mirrored, mean[c], scale[c], out[view, i, :, :, c])


@njit(cache=True, nogil=True)
def _longest(crops):
    """Widest crop in pixels, with the two that a fractional border may add."""
    longest = 0.0
    for view in range(crops.shape[0]):
        for i in range(crops.shape[1]):
            longest = max(longest, crops[view, i].width)
    return int(np.ceil(longest)) + 2


@njit(cache=True, nogil=True, fastmath=_FAST)
def _write(plane, side, mirrored, mean, scale, target):
    """Turns a transposed plane upright, normalised."""
    for x in range(side):
        column = (side - 1 - x if mirrored else x) * side
        for y in range(side):
            target[y, x] = (plane[column + y] - mean) * scale


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_scaled(target, source, weight):
    """Target += weight * source. Plain 1-D arrays and a plain index, so that it vectorises."""
    for i in range(len(target)):
        target[i] += weight * source[i]


@njit(cache=True, nogil=True)
def _borders(start, length, limit):
    """First pixel of a crop and the one behind its last; a fractional crop ends at whole pixels.

    The tolerance is for crops scaled by a ratio of whole numbers.
    """
    return max(int(np.floor(start + 1e-6)), 0), min(int(np.ceil(start + length - 1e-6)), limit)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _weigh(centre, reach, cubic, first, count, weights):
    """The weights of one output pixel: a triangle or a cubic (a = -1/2) of a certain reach."""
    total = 0.0
    for k in range(count):
        x = abs(first + k - centre + 0.5) / reach
        if not cubic:
            weight = max(0.0, 1.0 - x)
        elif x < 1.0:
            weight = (1.5 * x - 2.5) * x * x + 1.0
        elif x < 2.0:
            weight = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
        else:
            weight = 0.0
        weights[k] = weight
        total += weight
    for k in range(count):
        weights[k] /= np.float32(total)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _crop_and_resize(pixels, offset, size, crop, unit, flipped, side, channels, columns, planes):
    """Antialiased resize of the crop to planes in 0 .. 1, flipped if asked.

    Filters as Pillow's: as wide as the reduction, cut at the crop's border. The planes come out
    transposed, x before y. Both passes then run along contiguous memory: down the image over the
    bytes of a row, across it over the rows of a column. What follows works pixel by pixel or is
    told, and the last write turns the view upright.
    """
    height, width = size
    top, bottom = _borders(crop.top, crop.height, height)
    left, right = _borders(crop.left, crop.width, width)
    length = (right - left) * channels
    row = np.empty(length, dtype=np.float32)
    support = 2.0 if crop.cubic else 1.0
    step = crop.height / side
    reach = max(step, 1.0)
    weights = np.empty(int(2.0 * support * reach) + 3, dtype=np.float32)
    for y in range(side):
        centre = crop.top + (y + 0.5) * step
        first = max(int(np.floor(centre - support * reach + 0.5)), top)
        count = min(int(np.floor(centre + support * reach + 0.5)), bottom) - first
        _weigh(centre, reach, crop.cubic, first, count, weights)
        row[:] = 0.0
        for k in range(count):
            if weights[k] != 0.0:
                start = offset + ((first + k) * width + left) * channels
                _add_scaled(row, pixels[start : start + length], weights[k] * unit)
        for x in range(length):
            columns[x * side + y] = row[x]
    step = crop.width / side
    reach = max(step, 1.0)
    weights = np.empty(int(2.0 * support * reach) + 3, dtype=np.float32)
    block = channels * side  # one column of every channel
    stack = np.zeros(block, dtype=np.float32)
    for x in range(side):
        centre = crop.left + (x + 0.5) * step
        first = max(int(np.floor(centre - support * reach + 0.5)), left)
        count = min(int(np.floor(centre + support * reach + 0.5)), right) - first
        _weigh(centre, reach, crop.cubic, first, count, weights)
        stack[:] = 0.0
        for k in range(count):
            if weights[k] != 0.0:
                start = (first + k - left) * block
                _add_scaled(stack, columns[start : start + block], weights[k])
        at = (side - 1 - x if flipped else x) * side
        for c in range(channels):
            for y in range(side):
                planes[c, at + y] = stack[c * side + y]
    if crop.cubic:  # a cubic overshoots at edges
        for c in range(channels):
            for i in range(side * side):
                planes[c, i] = min(max(planes[c, i], np.float32(0.0)), np.float32(1.0))
