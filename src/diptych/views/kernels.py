"""The compiled loops behind ``cpu.py``: one view at a time, in a scratch that stays in cache."""

import numpy as np
from numba import njit

from diptych.views.draws import FLIP
from diptych.views.pixel_kernels import apply_step, largest_radius

_FAST = {"contract", "nsz", "arcp"}  # no reassociation: the same bits wherever buffers lie


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
def _sum_taps(target, source, start, stride, weights, count):
    """target = sum over k of weights[k] * source[start + k * stride :], two taps at a time.

    Flat arrays with unsigned indices: a slice costs a reference count, and a signed index a test
    for its sign, which would stop vectorisation.
    """
    length, stride, at = np.uint64(len(target)), np.uint64(stride), np.uint64(start)
    last = weights[1] if count > 1 else np.float32(0.0)
    near, far = weights[0], last
    other = at + stride if count > 1 else at
    for i in range(length):
        target[i] = near * source[at + i] + far * source[other + i]
    for k in range(2, count - 1, 2):
        at = np.uint64(start) + np.uint64(k) * stride
        other = at + stride
        near, far = weights[k], weights[k + 1]
        for i in range(length):
            target[i] += near * source[at + i] + far * source[other + i]
    if count > 2 and count % 2:
        at = np.uint64(start) + np.uint64(count - 1) * stride
        near = weights[count - 1]
        for i in range(length):
            target[i] += near * source[at + i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _scatter(row, columns, y, side):
    """A row becomes element y of every column."""
    to, step = np.uint64(y), np.uint64(side)
    for x in range(np.uint64(len(row))):
        columns[to] = row[x]
        to += step


@njit(cache=True, nogil=True, fastmath=_FAST)
def _copy_part(target, to, source, start, count):
    to, start = np.uint64(to), np.uint64(start)
    for i in range(np.uint64(count)):
        target[to + i] = source[start + i]


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
    scale = np.float32(1.0 / total)
    for k in range(count):
        weights[k] *= scale


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
    length, line = (right - left) * channels, width * channels
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
        for k in range(count):
            weights[k] *= unit
        _sum_taps(row, pixels, offset + (first * width + left) * channels, line, weights, count)
        _scatter(row, columns, y, side)
    step = crop.width / side
    reach = max(step, 1.0)
    weights = np.empty(int(2.0 * support * reach) + 3, dtype=np.float32)
    block = channels * side  # one column of every channel
    stack = np.empty(block, dtype=np.float32)
    flat = planes.reshape(-1)
    for x in range(side):
        centre = crop.left + (x + 0.5) * step
        first = max(int(np.floor(centre - support * reach + 0.5)), left)
        count = min(int(np.floor(centre + support * reach + 0.5)), right) - first
        _weigh(centre, reach, crop.cubic, first, count, weights)
        _sum_taps(stack, columns, (first - left) * block, block, weights, count)
        at = (side - 1 - x if flipped else x) * side
        for c in range(channels):
            _copy_part(flat, c * side * side + at, stack, c * side, side)
    if crop.cubic:  # a cubic overshoots at edges
        for c in range(channels):
            for i in range(side * side):
                planes[c, i] = min(max(planes[c, i], np.float32(0.0)), np.float32(1.0))
