"""The compiled operations on the planes of one view.

A plane is float32, (side * side,), in 0 .. 1, row after row: pixel (x, y) is at y * side + x.
``docs/views.md`` says what each operation does; torchvision's functional transforms do the same
where they have it.
"""

import numpy as np
from numba import njit

from diptych.views import parameters as codes
from diptych.views.parameters import BRIGHTNESS, CONTRAST, HUE, JITTER_ORDERS, SATURATION
from diptych.views.philox import small_philox

_FAST = {"contract", "nsz", "arcp"}
# For sums over a plane alone. Elsewhere a loop has a second body, for arrays that might overlap, in
# which sums would be taken in another order: the bits would depend on where the arrays lie.
_SUMS = _FAST | {"reassoc"}
_SHADES = 256
_ROUNDING = np.float32(1e-5)  # less than a shade of 16 bits: what a resize makes of a flat image


@njit(cache=True, nogil=True)
def largest_radius(steps):
    """Of all blurs, in pixels."""
    radius = 0
    for view in range(steps.shape[0]):
        for i in range(steps.shape[1]):
            for step in range(steps.shape[2]):
                if steps[view, i, step, 0] == codes.BLUR:
                    radius = max(radius, int(steps[view, i, step, 2]))
    return radius


@njit(cache=True, nogil=True, fastmath=_FAST)
def apply_step(planes, step, side, mean, one, two):
    """Does one step of ``ViewParameters.steps`` to all planes; ``one`` and ``two`` are scratch."""
    kind, channels = int(step[0]), len(planes)
    if kind == codes.COLOR:
        order = int(step[1])
        for position in range(4):
            _jitter(planes, JITTER_ORDERS[order, position], step)
        return
    if kind == codes.GRAY:
        _to_gray(planes)
        return
    for c in range(channels):
        plane = planes[c]
        if kind == codes.FLIP:
            _flip(plane, side)
        elif kind == codes.VERTICAL_FLIP:
            _flip_upside_down(plane, side)
        elif kind == codes.TURN:
            for _ in range(int(step[1])):
                _quarter_turn(plane, side, one)
        elif kind == codes.AFFINE:
            _move(plane, step, side, mean[c], one)
        elif kind == codes.BLUR:
            _blur(plane, one, two, side, int(step[2]), step[1])
        elif kind == codes.SOLARIZE:
            _solarize(plane, np.float32(step[1]))
        elif kind == codes.POSTERIZE:
            _posterize(plane, np.float32(step[1]))
        elif kind == codes.EQUALIZE:
            _equalize(plane)
        elif kind == codes.AUTO_CONTRAST:
            _stretch(plane)
        elif kind == codes.SHARPEN:
            _sharpen(plane, np.float32(step[1]), side, one)
        elif kind == codes.NOISE:
            _add_noise(plane, step, c)
        elif kind == codes.CUTOUT:
            _cut_out(plane, step, side, mean[c])
        elif kind == codes.SOBEL:
            _sobel(plane, side, one)


# A factor of 1 is passed over: RandAugment's steps change one thing, and have the others at 1.
@njit(cache=True, nogil=True, fastmath=_FAST)
def _jitter(planes, kind, step):
    """One of the four changes. Without three channels there are brightness and contrast only."""
    zero, channels = np.float32(0.0), len(planes)
    factor = np.float32(step[2 + kind])
    if kind == HUE:
        if channels == 3 and factor != 0.0:
            _shift_hue(planes[0], planes[1], planes[2], factor)
    elif factor == 1.0:
        return
    elif kind == BRIGHTNESS:
        for c in range(channels):
            _blend(planes[c], factor, zero)
    elif kind == CONTRAST:
        mean = _mean_luma(planes)
        for c in range(channels):
            _blend(planes[c], factor, (np.float32(1.0) - factor) * mean)
    elif channels == 3 and kind == SATURATION:
        _saturate(planes[0], planes[1], planes[2], factor)


@njit(cache=True, nogil=True, fastmath=_FAST)
def _mean_luma(planes):
    """The mean gray of a view; of all channels alike where there are not three."""
    if len(planes) == 3:
        return _luma(_mean(planes[0]), _mean(planes[1]), _mean(planes[2]))
    total = np.float32(0.0)
    for c in range(len(planes)):
        total += _mean(planes[c])
    return total / np.float32(len(planes))


@njit(cache=True, nogil=True, fastmath=_FAST)
def _blend(plane, factor, offset):
    for i in range(len(plane)):
        plane[i] = min(max(factor * plane[i] + offset, np.float32(0.0)), np.float32(1.0))


# torchvision's digits. They add up to 0.9999; files become gray by Pillow's 0.299 in
# `codecs/channels.py`.
@njit(cache=True, nogil=True, fastmath=_FAST)
def _luma(r, g, b):
    """ITU-R 601 luma."""
    return np.float32(0.2989) * r + np.float32(0.587) * g + np.float32(0.114) * b


# Sums may be reordered here: it reads one array and writes none, so it has one body and one order.
@njit(cache=True, nogil=True, fastmath=_SUMS)
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
def _to_gray(planes):
    if len(planes) == 3:
        red, green, blue = planes[0], planes[1], planes[2]
        for i in range(len(red)):
            gray = _luma(red[i], green[i], blue[i])
            red[i] = gray
            green[i] = gray
            blue[i] = gray
        return
    share = np.float32(1.0) / np.float32(len(planes))
    for i in range(planes.shape[1]):
        total = np.float32(0.0)
        for c in range(len(planes)):
            total += planes[c, i]
        for c in range(len(planes)):
            planes[c, i] = total * share


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
    if radius == 0:
        return
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
        target[i] = (target[i] + near * (a[i] + b[i])) + far * (c[i] + d[i])


@njit(cache=True, nogil=True, fastmath=_FAST)
def _flip(plane, side):
    """Left and right: columns change places."""
    for y in range(side):
        a, b = y * side, (y + 1) * side - 1
        for x in range(side // 2):
            plane[a + x], plane[b - x] = plane[b - x], plane[a + x]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _flip_upside_down(plane, side):
    for y in range(side // 2):
        a, b = y * side, (side - 1 - y) * side
        for x in range(side):
            plane[a + x], plane[b + x] = plane[b + x], plane[a + x]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _quarter_turn(plane, side, scratch):
    """Counter-clockwise: pixel (x, y) comes from (side - 1 - y, x)."""
    _copy(scratch, plane, side * side)
    for y in range(side):
        for x in range(side):
            plane[y * side + x] = scratch[x * side + side - 1 - y]


# Positions are float64: in float32 the digits behind the point would be too few.
@njit(cache=True, nogil=True, fastmath=_FAST)
def _move(plane, step, side, fill, scratch):
    """An affine map by bilinear interpolation; beyond the border lies the mean colour."""
    _copy(scratch, plane, side * side)
    middle, one = 0.5 * (side - 1), np.float32(1.0)
    for y in range(side):
        for x in range(side):
            dx, dy = x - middle, y - middle
            at_x = step[1] * dx + step[2] * dy + step[3] + middle
            at_y = step[4] * dx + step[5] * dy + step[6] + middle
            left, top = int(np.floor(at_x)), int(np.floor(at_y))
            if not (-1 <= left < side and -1 <= top < side):
                plane[y * side + x] = fill
                continue
            share, low = np.float32(at_x - left), np.float32(at_y - top)
            at = top * side + left
            # Inside of the picture by sides: each of the four pixels may lie beyond the border.
            is_left, is_right = left >= 0, left + 1 < side
            is_top, is_low = top >= 0, top + 1 < side
            a = scratch[at] if is_top and is_left else fill
            b = scratch[at + 1] if is_top and is_right else fill
            c = scratch[at + side] if is_low and is_left else fill
            d = scratch[at + side + 1] if is_low and is_right else fill
            upper, lower = (one - share) * a + share * b, (one - share) * c + share * d
            plane[y * side + x] = (one - low) * upper + low * lower


@njit(cache=True, nogil=True, fastmath=_FAST)
def _solarize(plane, threshold):
    for i in range(len(plane)):
        plane[i] = np.float32(1.0) - plane[i] if plane[i] >= threshold else plane[i]


@njit(cache=True, nogil=True, fastmath=_FAST)
def _posterize(plane, shades):
    for i in range(len(plane)):
        plane[i] = min(np.floor(plane[i] * shades), shades - np.float32(1.0)) / shades


# 255.999 is torchvision's factor: with 255 only a pixel of exactly 1.0 would be the last shade.
@njit(cache=True, nogil=True)
def _shade(value):
    """0 .. 1 as one of 256 shades, as torchvision converts; rounding may have passed the ends."""
    return min(max(int(value * np.float32(255.999)), 0), _SHADES - 1)


# As in Pillow the pixels of the highest shade do not count towards the width of a step, and a width
# of 0 leaves every shade as it is.
@njit(cache=True, nogil=True)
def _equalize(plane):
    """Histogram equalisation as Pillow's: a table from shade to shade."""
    counts = np.zeros(_SHADES, dtype=np.int64)
    for i in range(len(plane)):
        counts[_shade(plane[i])] += 1
    highest = _SHADES - 1
    while counts[highest] == 0:
        highest -= 1
    width = (len(plane) - counts[highest]) // (_SHADES - 1)
    table = np.empty(_SHADES, dtype=np.float32)
    below = width // 2
    for shade in range(_SHADES):
        even = min(below // width, _SHADES - 1) if width > 0 else shade
        table[shade] = np.float32(even) / np.float32(_SHADES - 1)
        below += counts[shade]
    for i in range(len(plane)):
        plane[i] = table[_shade(plane[i])]


@njit(cache=True, nogil=True)
def _stretch(plane):
    low, high = plane.min(), plane.max()
    if high - low > _ROUNDING:
        factor = np.float32(1.0) / (high - low)
        for i in range(len(plane)):
            plane[i] = min(max((plane[i] - low) * factor, np.float32(0.0)), np.float32(1.0))


# Weights of 1 and 5, over 13, are Pillow's filter SMOOTH, which leaves the border alone too.
@njit(cache=True, nogil=True, fastmath=_FAST)
def _sharpen(plane, factor, side, scratch):
    """Blends with a 3 x 3 mean that weighs the centre five times; the border stays."""
    _copy(scratch, plane, side * side)
    zero, one, two, rest = np.float32(0.0), np.uint64(1), np.uint64(2), np.float32(1.0) - factor
    five, share = np.float32(5.0), np.float32(1.0 / 13.0)
    for y in range(1, side - 1):
        up, here, down = np.uint64((y - 1) * side), np.uint64(y * side), np.uint64((y + 1) * side)
        for x in range(np.uint64(side - 2)):
            above = scratch[up + x] + scratch[up + x + one] + scratch[up + x + two]
            below = scratch[down + x] + scratch[down + x + one] + scratch[down + x + two]
            centre = scratch[here + x + one]
            beside = scratch[here + x] + scratch[here + x + two]
            smooth = (above + below + beside + five * centre) * share
            mixed = factor * centre + rest * smooth
            plane[here + x + one] = min(max(mixed, zero), np.float32(1.0))


# The half keeps the logarithm away from 0. `device_operations.add_noise` draws the same numbers.
@njit(cache=True, nogil=True)
def _add_noise(plane, step, channel):
    """Four numbers of Philox at a time, made normal by Box and Muller (1958)."""
    key0, key1 = np.uint64(step[2]), np.uint64(step[3])
    unit, turn = 1.0 / 4294967296.0, 2.0 * np.pi / 4294967296.0
    normal = np.empty(4)
    for start in range(0, len(plane), 4):
        a, b, c, d = small_philox(key0, key1, np.uint64(start // 4), np.uint64(channel))
        long = np.sqrt(-2.0 * np.log((a + 0.5) * unit))
        short = np.sqrt(-2.0 * np.log((c + 0.5) * unit))
        normal[0], normal[1] = long * np.cos(b * turn), long * np.sin(b * turn)
        normal[2], normal[3] = short * np.cos(d * turn), short * np.sin(d * turn)
        for k in range(min(4, len(plane) - start)):
            noisy = plane[start + k] + np.float32(step[1] * normal[k])
            plane[start + k] = min(max(noisy, np.float32(0.0)), np.float32(1.0))


@njit(cache=True, nogil=True)
def _cut_out(plane, step, side, fill):
    top, left, height, width = int(step[1]), int(step[2]), int(step[3]), int(step[4])
    for y in range(top, top + height):
        for x in range(left, left + width):
            plane[y * side + x] = fill


# The weights on one side add up to 4: a quarter makes a step from black to white 1.
@njit(cache=True, nogil=True, fastmath=_FAST)
def _sobel(plane, side, scratch):
    wide = side + 2
    for y in range(-1, side + 1):
        to, start = (y + 1) * wide + 1, _reflect(y, side) * side
        for x in range(-1, side + 1):
            scratch[to + x] = plane[start + _reflect(x, side)]
    one, two, double = np.uint64(1), np.uint64(2), np.float32(2.0)
    quarter, most = np.float32(0.25), np.float32(1.0)
    for y in range(side):
        up, at = np.uint64(y * wide), np.uint64(y * side)
        here, down = up + np.uint64(wide), up + np.uint64(2 * wide)
        for x in range(np.uint64(side)):
            a, c = scratch[up + x], scratch[up + x + two]
            d, f = scratch[down + x], scratch[down + x + two]
            across = (c - a) + (f - d) + double * (scratch[here + x + two] - scratch[here + x])
            along = (d - a) + (f - c) + double * (scratch[down + x + one] - scratch[up + x + one])
            plane[at + x] = min(quarter * np.sqrt(across * across + along * along), most)
