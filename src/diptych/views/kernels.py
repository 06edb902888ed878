"""The compiled loops behind ``cpu.py``: one view at a time, in a scratch that stays in cache."""

from itertools import permutations

import numpy as np
from numba import njit

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
JITTER_ORDERS = np.array(list(permutations(range(4))), dtype=np.int64)
"""(24, 4): the orders in which the four changes of a colour jitter can come."""


_FAST = {"contract", "nsz", "arcp", "reassoc"}  # lets sums vectorise; still the same bits each run


@njit(cache=True, nogil=True, fastmath=_FAST)
def make_views_into(pixels, offsets, heights, widths, parameters, orders, kernel, mean, scale, out):
    """Makes the views of some images; the arguments of ``cpu.make_views``, unpacked.

    ``parameters`` is (views, images) and ``out`` (views, images, side, side, channels).
    """
    views, count, side, _, channels = out.shape
    radius = kernel // 2
    columns = np.empty(widths.max() * channels * side, dtype=np.float32)
    planes = np.empty((channels, side * side), dtype=np.float32)
    padded = np.empty(side * (side + 2 * radius), dtype=np.float32)
    blurred = np.empty_like(padded)
    for i in range(count):
        for view in range(views):
            p = parameters[view, i]
            _crop_and_resize(pixels, offsets[i], widths[i], p, side, channels, columns, planes)
            if p.jitter:
                for step in range(4):
                    _jitter(planes, orders[p.jitter_order, step], p)
            if p.gray and channels == 3:
                _to_gray(planes[0], planes[1], planes[2])
            if p.blur and radius > 0:
                for c in range(channels):
                    _blur(planes[c], padded, blurred, side, radius, p.blur_sigma)
            for c in range(channels):
                _write_transposed(planes[c], side, mean[c], scale[c], out[view, i, :, :, c])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _write_transposed(plane, side, mean, scale, target):
    for x in range(side):
        for y in range(side):
            target[y, x] = (plane[x * side + y] - mean) * scale


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_scaled(target, source, weight):
    """Target += weight * source. Plain 1-D arrays and a plain index, so that it vectorises."""
    for i in range(len(target)):
        target[i] += weight * source[i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _triangle(position, step, length, weights):
    """The weights of one output pixel: a triangle as wide as the reduction, cut at the border.

    Fills ``weights`` and returns the first pixel they belong to and how many there are.
    """
    reach = max(step, 1.0)
    centre = (position + 0.5) * step
    first = max(int(centre - reach + 0.5), 0)
    count = min(int(centre + reach + 0.5), length) - first
    total = 0.0
    for k in range(count):
        weight = max(0.0, 1.0 - abs((first + k - centre + 0.5) / reach))
        weights[k] = weight
        total += weight
    for k in range(count):
        weights[k] /= np.float32(total)
    return first, count


@njit(cache=True, nogil=True, fastmath=_FAST)
def _crop_and_resize(pixels, offset, image_width, p, side, channels, columns, planes):
    """Antialiased bilinear resize of the crop to planes in 0 .. 1, flipped if asked.

    The planes come out transposed, x before y. Both passes then run along contiguous memory: down
    the image over the bytes of a row, across it over the rows of a column. What follows works
    pixel by pixel or is the same in both directions, and the last write turns the view upright.
    """
    length = p.width * channels
    row = np.empty(length, dtype=np.float32)
    step = p.height / side
    weights = np.empty(int(2.0 * max(step, 1.0)) + 3, dtype=np.float32)
    for y in range(side):
        first, count = _triangle(y, step, p.height, weights)
        row[:] = 0.0
        for k in range(count):
            if weights[k] > 0.0:
                start = offset + ((p.top + first + k) * image_width + p.left) * channels
                source = pixels[start : start + length]
                _add_scaled(row, source, weights[k] * np.float32(1.0 / 255.0))
        for x in range(length):
            columns[x * side + y] = row[x]
    step = p.width / side
    weights = np.empty(int(2.0 * max(step, 1.0)) + 3, dtype=np.float32)
    block = channels * side  # one column of every channel
    stack = np.zeros(block, dtype=np.float32)
    for x in range(side):
        first, count = _triangle(x, step, p.width, weights)
        stack[:] = 0.0
        for k in range(count):
            if weights[k] > 0.0:
                start = (first + k) * block
                _add_scaled(stack, columns[start : start + block], weights[k])
        at = (side - 1 - x if p.flip else x) * side
        for c in range(channels):
            for y in range(side):
                planes[c, at + y] = stack[c * side + y]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _jitter(planes, kind, p):
    """One of the four changes. Gray images have brightness and contrast only."""
    zero = np.float32(0.0)
    if kind == BRIGHTNESS:
        for c in range(len(planes)):
            _blend(planes[c], np.float32(p.brightness), zero)
    elif kind == CONTRAST:
        mean = _mean(planes[0])
        if len(planes) == 3:
            mean = _luma(mean, _mean(planes[1]), _mean(planes[2]))
        factor = np.float32(p.contrast)
        for c in range(len(planes)):
            _blend(planes[c], factor, (np.float32(1.0) - factor) * mean)
    elif len(planes) == 3 and kind == SATURATION:
        _saturate(planes[0], planes[1], planes[2], np.float32(p.saturation))
    elif len(planes) == 3 and kind == HUE:
        _shift_hue(planes[0], planes[1], planes[2], np.float32(p.hue))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _blend(plane, factor, offset):
    for i in range(len(plane)):
        plane[i] = min(max(factor * plane[i] + offset, np.float32(0.0)), np.float32(1.0))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _luma(r, g, b):
    """ITU-R 601 luma."""
    return np.float32(0.2989) * r + np.float32(0.587) * g + np.float32(0.114) * b


@njit(cache=True, nogil=True, fastmath=_FAST)
def _mean(plane):
    total = np.float32(0.0)
    for i in range(len(plane)):
        total += plane[i]
    return total / np.float32(len(plane))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _saturate(red, green, blue, factor):
    zero, one = np.float32(0.0), np.float32(1.0)
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        rest = (one - factor) * _luma(r, g, b)
        red[i] = min(max(factor * r + rest, zero), one)
        green[i] = min(max(factor * g + rest, zero), one)
        blue[i] = min(max(factor * b + rest, zero), one)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _shift_hue(red, green, blue, shift):
    """Turns the hue of HSV, keeping saturation and value; without branches, so that it vectorises.

    With hue h in sixths of a turn, each channel is value - chroma x clip(min(k, 4 - k), 0, 1)
    where k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    zero, one, four, six = np.float32(0.0), np.float32(1.0), np.float32(4.0), np.float32(6.0)
    sixth = np.float32(1.0 / 6.0)
    turn = six * shift
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        value = max(r, max(g, b))
        chroma = value - min(r, min(g, b))
        divisor = chroma if chroma > zero else one
        if value == r:
            hue = (g - b) / divisor
        elif value == g:
            hue = np.float32(2.0) + (b - r) / divisor
        else:
            hue = four + (r - g) / divisor
        hue += turn + six  # above 4.9 whatever the shift, so that the remainder is positive
        k = hue + np.float32(5.0)
        k -= six * np.floor(k * sixth)
        red[i] = value - chroma * max(zero, min(one, min(k, four - k)))
        k = hue + np.float32(3.0)
        k -= six * np.floor(k * sixth)
        green[i] = value - chroma * max(zero, min(one, min(k, four - k)))
        k = hue + one
        k -= six * np.floor(k * sixth)
        blue[i] = value - chroma * max(zero, min(one, min(k, four - k)))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _to_gray(red, green, blue):
    for i in range(len(red)):
        gray = _luma(red[i], green[i], blue[i])
        red[i] = gray
        green[i] = gray
        blue[i] = gray


@njit(cache=True, nogil=True)
def _reflect(position, length):
    """Mirrors a position at the borders without repeating the border pixel."""
    if position < 0:
        return -position
    if position >= length:
        return 2 * length - 2 - position
    return position


@njit(cache=True, nogil=True, fastmath=_FAST)
def _blur(plane, padded, blurred, side, radius, sigma):
    """Gaussian blur of one plane: across the lines, then along them, with mirrored borders.

    Each pass sweeps the whole plane once per distance from the centre; the kernel is symmetric, so
    the two pixels at a distance share a multiplication. Along the lines the sweep also blurs the
    borders between them, which are not read back.
    """
    weights = np.empty(radius + 1, dtype=np.float32)
    for k in range(radius + 1):
        weights[k] = np.exp(-0.5 * (k / sigma) ** 2)
    weights /= np.float32(2.0) * weights.sum() - weights[0]

    for y in range(-radius, side + radius):
        _copy(padded[(y + radius) * side :], plane[_reflect(y, side) * side :], side)
    _sweep(plane, padded, side, weights)

    line = side + 2 * radius
    for y in range(side):
        _copy(padded[y * line + radius :], plane[y * side :], side)
        for x in range(1, radius + 1):
            padded[y * line + radius - x] = plane[y * side + x]
            padded[y * line + radius + side - 1 + x] = plane[y * side + side - 1 - x]
    _sweep(blurred[: side * line - 2 * radius], padded, 1, weights)
    for y in range(side):
        _copy(plane[y * side :], blurred[y * line :], side)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _copy(target, source, count):
    for i in range(count):
        target[i] = source[i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _sweep(target, padded, stride, weights):
    """target[i] = sum over k of weights[|k|] * padded[i + (radius + k) * stride]."""
    count, centre = len(target), (len(weights) - 1) * stride
    _set_scaled(target, padded[centre : centre + count], weights[0])
    k = 1
    while k + 1 < len(weights):  # two distances at a time: half the traffic on `target`
        a, b = centre - k * stride, centre + k * stride
        c, d = a - stride, b + stride
        _add_two_pairs(
            target,
            padded[a : a + count],
            padded[b : b + count],
            weights[k],
            padded[c : c + count],
            padded[d : d + count],
            weights[k + 1],
        )
        k += 2
    if k < len(weights):
        a, b = centre - k * stride, centre + k * stride
        _add_pair(target, padded[a : a + count], padded[b : b + count], weights[k])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _set_scaled(target, source, weight):
    for i in range(len(target)):
        target[i] = weight * source[i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_pair(target, one, other, weight):
    for i in range(len(target)):
        target[i] += weight * (one[i] + other[i])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _add_two_pairs(target, a, b, near, c, d, far):
    for i in range(len(target)):
        target[i] += near * (a[i] + b[i]) + far * (c[i] + d[i])
