"""The compiled loops behind ``cpu.py``: one view at a time, in a scratch that stays in cache."""

import numpy as np
from numba import njit

from diptych.views.parameters import FLIP
from diptych.views.pixel_kernels import apply_step, largest_radius

# No reassociation: a loop has a second body, for arrays that might overlap, and the bits must not
# depend on where arrays lie.
_FAST = {"contract", "nsz", "arcp"}
# In inner loops arrays are flat and indices unsigned: a slice costs a reference count, and a signed
# index stops vectorisation (docs/experiments.md, view kernels).


# Threads run it side by side without the GIL: its scratch is its own, and each call writes other
# images of `out`.
@njit(cache=True, nogil=True, fastmath=_FAST)
def make_views_into(pixels, offsets, widths, heights, unit, crops, steps, mean, scale, out, begin):
    """Makes the views of some images; the arguments of ``cpu.make_views``, unpacked.

    ``unit`` is what one pixel value stands for, ``crops`` is (views, images), ``steps`` (views,
    images, steps, numbers) and ``out`` (views, more images, side, side, channels), of which those
    from ``begin`` are written.
    """
    side, channels = out.shape[2], out.shape[4]
    views, count = crops.shape
    longest = _longest(crops) * channels
    row = np.empty(longest, dtype=np.float32)
    columns = np.empty(longest * side, dtype=np.float32)
    planes = np.empty((channels, side * side), dtype=np.float32)
    padded = max(side + 2 * largest_radius(steps), side + 4)  # Sobel's border is of one pixel
    scratch = np.empty((2, side * padded + 4), dtype=np.float32)
    for i in range(count):
        size = (heights[i], widths[i])
        for view in range(views):
            crop, todo = crops[view, i], steps[view, i]
            # A flip right after the crop is done while pixels move anyway.
            flipped = len(todo) > 0 and todo[0, 0] == FLIP
            _crop_and_resize(
                pixels, offsets[i], size, crop, unit, flipped, side, row, columns, planes
            )
            for step in range(flipped, len(todo)):
                if todo[step, 0] != 0.0:
                    apply_step(planes, todo[step], side, mean, scratch[0], scratch[1])
            _write(planes, mean, scale, out[view, begin + i].reshape(-1))


@njit(cache=True, nogil=True)
def _longest(crops):
    """Widest crop in pixels, with the two that a fractional border may add."""
    longest = 0.0
    for view in range(crops.shape[0]):
        for i in range(crops.shape[1]):
            longest = max(longest, crops[view, i].width)
    return int(np.ceil(longest)) + 2


@njit(cache=True, nogil=True, fastmath=_FAST)
def _write(planes, mean, scale, target):
    """Planes as one picture with its channels side by side, normalised."""
    channels, count = len(planes), planes.shape[1]
    if channels == 3:  # in one go, so that the stores follow each other
        red, green, blue = planes[0], planes[1], planes[2]
        for i in range(np.uint64(count)):
            at = np.uint64(3) * i
            target[at] = (red[i] - mean[0]) * scale[0]
            target[at + np.uint64(1)] = (green[i] - mean[1]) * scale[1]
            target[at + np.uint64(2)] = (blue[i] - mean[2]) * scale[2]
        return
    for c in range(channels):
        plane, at = planes[c], np.uint64(c)
        for i in range(np.uint64(count)):
            target[at] = (plane[i] - mean[c]) * scale[c]
            at += np.uint64(channels)


# `device.weights` has the same borders and tolerance: change both, or the two disagree at edges.
@njit(cache=True, nogil=True)
def _borders(start, length, limit):
    """First pixel of a crop and the one behind its last; a fractional crop ends at whole pixels.

    The tolerance is for crops scaled by a ratio of whole numbers.
    """
    return max(int(np.floor(start + 1e-6)), 0), min(int(np.ceil(start + length - 1e-6)), limit)


# The unit (1/255 or 1/65535) is in the weights of the first pass; a pass of its own over all pixels
# would cost more.
@njit(cache=True, nogil=True)
def _crop_and_resize(pixels, offset, size, crop, unit, flipped, side, row, columns, planes):
    """Antialiased resize of the crop to planes in 0 .. 1, flipped if asked.

    Filters as Pillow's: as wide as the reduction, cut at the crop's border. First down the image,
    which runs along the bytes of its rows. Then across: where a pixel comes of two at most, from
    each row by itself; where it comes of many, over all rows at a time, transposed for that.
    """
    height, width = size
    channels = len(planes)
    top, bottom = _borders(crop.top, crop.height, height)
    left, right = _borders(crop.left, crop.width, width)
    row = row[: (right - left) * channels]
    step, narrow = crop.height / side, crop.cubic == 0 and crop.width <= side
    support = 2.0 if crop.cubic else 1.0
    weights = np.empty(int(2.0 * support * max(step, 1.0)) + 3, dtype=np.float32)
    line, begin = width * channels, offset + left * channels
    first_of, second_of, far = _two_taps(crop.left, crop.width / side, left, right, side, flipped)
    flat = planes.reshape(-1)
    for y in range(side):
        first, count = _taps(crop.top, step, y, top, bottom, crop.cubic, unit, weights)
        _sum_taps(row, pixels, begin + first * line, line, weights, count)
        if narrow:
            _spread(row, first_of, second_of, far, flat, y, side, channels)
        else:
            _scatter(row, columns, y, side)
    if not narrow:
        _sum_columns(columns, crop, left, right, flipped, side, planes)
    if crop.cubic:  # a cubic overshoots at edges
        for c in range(channels):
            for i in range(side * side):
                planes[c, i] = min(max(planes[c, i], np.float32(0.0)), np.float32(1.0))


# Two equal pixels at a border give what `_taps` gives there, which divides by what is left.
@njit(cache=True, nogil=True)
def _two_taps(start, step, low, high, side, flipped):
    """For each output pixel of an enlargement the two pixels it lies between, from ``low``.

    Returns their positions and the share of the second. Beyond a border both are the same pixel.
    """
    first_of, second_of = np.empty(side, dtype=np.uint64), np.empty(side, dtype=np.uint64)
    far = np.empty(side, dtype=np.float32)
    for x in range(side):
        at = start + ((side - 1 - x if flipped else x) + 0.5) * step - 0.5
        first = np.floor(at)
        far[x] = at - first
        first_of[x] = max(int(first), low) - low
        second_of[x] = min(int(first) + 1, high - 1) - low
    return first_of, second_of, far


# Weights are divided by their sum: a filter cut at a border still adds up to 1, so that a flat
# image stays flat up to its edges.
@njit(cache=True, nogil=True)
def _taps(start, step, position, low, high, cubic, unit, weights):
    """The weights of one output pixel: a triangle or a cubic (a = -1/2), as wide as the reduction.

    Returns the first pixel that they belong to and how many there are.
    """
    reach = max(step, 1.0)
    support = 2.0 * reach if cubic else reach
    centre = start + (position + 0.5) * step
    first = max(int(np.floor(centre - support + 0.5)), low)
    count = min(int(np.floor(centre + support + 0.5)), high) - first
    total, shrink = 0.0, 1.0 / reach
    for k in range(count):
        x = abs(first + k - centre + 0.5) * shrink
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
    scale = np.float32(unit / total)
    for k in range(count):
        weights[k] *= scale
    return first, count


# One tap alone is read twice, with weight 0: the pixel behind it may lie outside of the buffer.
@njit(cache=True, nogil=True, fastmath=_FAST)
def _sum_taps(target, source, start, stride, weights, count):
    """Target = sum over k of weights[k] * source[start + k * stride :], two taps at a time.

    Flat arrays with unsigned indices: a slice costs a reference count, and a signed index a test
    for its sign, which would stop vectorisation.
    """
    length, stride, at = np.uint64(len(target)), np.uint64(stride), np.uint64(start)
    near, far = weights[0], weights[1] if count > 1 else np.float32(0.0)
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
def _spread(row, first_of, second_of, far, flat, y, side, channels):
    """Line y of every plane from one row, each pixel between two of the row."""
    step, plane = np.uint64(channels), np.uint64(side * side)
    start, one, two = np.uint64(y * side), np.uint64(1), np.uint64(2)
    if channels == 3:
        for x in range(np.uint64(side)):
            a, b, share, to = step * first_of[x], step * second_of[x], far[x], start + x
            flat[to] = row[a] + share * (row[b] - row[a])
            flat[to + plane] = row[a + one] + share * (row[b + one] - row[a + one])
            flat[to + two * plane] = row[a + two] + share * (row[b + two] - row[a + two])
        return
    for c in range(np.uint64(channels)):
        for x in range(np.uint64(side)):
            a, b, share = step * first_of[x] + c, step * second_of[x] + c, far[x]
            flat[start + x + c * plane] = row[a] + share * (row[b] - row[a])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _scatter(row, columns, y, side):
    """A row becomes element y of every column."""
    to, step = np.uint64(y), np.uint64(side)
    for x in range(np.uint64(len(row))):
        columns[to] = row[x]
        to += step


@njit(cache=True, nogil=True)
def _sum_columns(columns, crop, left, right, flipped, side, planes):
    """Planes from transposed rows: every output column from the columns that it covers."""
    channels, step = len(planes), crop.width / side
    support = 2.0 if crop.cubic else 1.0
    weights = np.empty(int(2.0 * support * max(step, 1.0)) + 3, dtype=np.float32)
    block = channels * side  # one column of every channel
    stack, flat = np.empty(block, dtype=np.float32), planes.reshape(-1)
    one = np.float32(1.0)
    for x in range(side):
        first, count = _taps(crop.left, step, x, left, right, crop.cubic, one, weights)
        _sum_taps(stack, columns, (first - left) * block, block, weights, count)
        _scatter(stack, flat, side - 1 - x if flipped else x, side)
