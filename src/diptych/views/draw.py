"""The random parameters of views: a pure function of (seed, epoch, image, view).

Each number comes from Philox4x64-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) with key (seed, stream) and counter (block, view, image, epoch). Nothing depends on the
batch, the worker, the thread or the process that asks, so a resumed run sees what the unbroken one
would have seen. Every view owns the same blocks of four numbers whether its policy uses them or
not: switching one operation off leaves the others' draws alone.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diptych.configs import ViewsConfig

VIEW = np.dtype(
    [
        ("top", "<i8"),  # pixels, of the crop in the image
        ("left", "<i8"),
        ("height", "<i8"),
        ("width", "<i8"),
        ("flip", "?"),
        ("jitter", "?"),
        ("gray", "?"),
        ("blur", "?"),
        ("jitter_order", "<i8"),  # 0 .. 23, a row of JITTER_ORDERS
        ("brightness", "<f8"),  # factors, 1 changes nothing
        ("contrast", "<f8"),
        ("saturation", "<f8"),
        ("hue", "<f8"),  # shift in turns of the colour circle
        ("blur_sigma", "<f8"),  # pixels
    ],
    align=True,
)
"""One view's parameters. An array of these, (views, images), is what appliers take."""

VIEW_STREAM = 0x56494557  # "VIEW": keeps these draws apart from any other use of the seed

CROP_ATTEMPTS = 10  # blocks 0 .. 9, one per attempt, as torchvision's RandomResizedCrop
SWITCH_BLOCK = 10  # flip, jitter, gray, blur
JITTER_BLOCK = 11  # brightness, contrast, saturation, hue
SHAPE_BLOCK = 12  # jitter order, blur sigma


class _Policy(NamedTuple):
    """The numbers of a ViewsConfig that the compiled loop reads."""

    area_low: float
    area_high: float
    log_aspect_low: float
    log_aspect_high: float
    flip: float
    jitter: float
    gray: float
    blur: float
    brightness: float
    contrast: float
    saturation: float
    hue: float
    sigma_low: float
    sigma_high: float


def draw_views(
    policies: Sequence[ViewsConfig],
    *,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
) -> NDArray[np.void]:
    """Draws the parameters of one view per policy for each image of a batch.

    Args:
        policies: what may be done on each branch; view v follows ``policies[v]``.
        seed: of the run.
        epoch: counted from 0.
        indices: (images,), each image's index in its set; its identity for the generator.
        heights: (images,), of the images in pixels.
        widths: (images,), of the images in pixels.

    Returns:
        (views, images) of dtype ``VIEW``.
    """
    views = np.zeros((len(policies), len(indices)), dtype=VIEW)
    for view, config in enumerate(policies):
        policy = _Policy(
            area_low=config.crop_area[0],
            area_high=config.crop_area[1],
            log_aspect_low=math.log(config.crop_aspect[0]),
            log_aspect_high=math.log(config.crop_aspect[1]),
            flip=config.flip_probability,
            jitter=config.jitter_probability,
            gray=config.gray_probability,
            blur=config.blur_probability,
            brightness=config.brightness,
            contrast=config.contrast,
            saturation=config.saturation,
            hue=config.hue,
            sigma_low=config.blur_sigma_pixels[0],
            sigma_high=config.blur_sigma_pixels[1],
        )
        _draw(policy, seed, epoch, view, indices, heights, widths, views[view])
    return views


def centre_views(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.void]:
    """The view for evaluation: the largest centred square and nothing else, (1, images)."""
    views = np.zeros((1, len(heights)), dtype=VIEW)
    side = np.minimum(heights, widths)
    views["top"], views["left"] = (heights - side) // 2, (widths - side) // 2
    views["height"] = views["width"] = side
    return views


_M0, _M1 = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_W0, _W1 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBB67AE8584CAA73B)
_LOW, _HALF, _TO_DOUBLE = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)


@njit(cache=True, nogil=True)
def _multiply(a, b):
    """The high and low 64 bits of a 64 x 64 bit product, by the schoolbook's four products."""
    a_low, a_high = a & _LOW, a >> _HALF
    b_low, b_high = b & _LOW, b >> _HALF
    low = a_low * b_low
    middle = a_high * b_low + (low >> _HALF)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> _HALF) + (other >> _HALF), a * b


@njit(cache=True, nogil=True)
def philox(key0, key1, counter0, counter1, counter2, counter3):
    """Philox4x64-10: four random uint64 from a key and a counter, all uint64."""
    for _ in range(10):
        high0, low0 = _multiply(_M0, counter0)
        high1, low1 = _multiply(_M1, counter2)
        counter0, counter1, counter2, counter3 = (
            high1 ^ counter1 ^ key0,
            low1,
            high0 ^ counter3 ^ key1,
            low0,
        )
        key0 += _W0
        key1 += _W1
    return counter0, counter1, counter2, counter3


@njit(cache=True, nogil=True)
def _uniforms(seed, block, view, image, epoch):
    """Four doubles in [0, 1)."""
    a, b, c, d = philox(
        np.uint64(seed),
        np.uint64(VIEW_STREAM),
        np.uint64(block),
        np.uint64(view),
        np.uint64(image),
        np.uint64(epoch),
    )
    unit = 1.0 / 9007199254740992.0  # 2^-53
    return (
        (a >> _TO_DOUBLE) * unit,
        (b >> _TO_DOUBLE) * unit,
        (c >> _TO_DOUBLE) * unit,
        (d >> _TO_DOUBLE) * unit,
    )


@njit(cache=True, nogil=True)
def _draw(policy, seed, epoch, view, indices, heights, widths, out):
    for i in range(len(indices)):
        image, drawn = indices[i], out[i]
        _draw_crop(policy, seed, epoch, view, image, heights[i], widths[i], drawn)
        flip, jitter, gray, blur = _uniforms(seed, SWITCH_BLOCK, view, image, epoch)
        drawn.flip = flip < policy.flip
        drawn.jitter = jitter < policy.jitter
        drawn.gray = gray < policy.gray
        drawn.blur = blur < policy.blur
        a, b, c, d = _uniforms(seed, JITTER_BLOCK, view, image, epoch)
        drawn.brightness = _factor(a, policy.brightness)
        drawn.contrast = _factor(b, policy.contrast)
        drawn.saturation = _factor(c, policy.saturation)
        drawn.hue = (2.0 * d - 1.0) * policy.hue
        a, b, c, d = _uniforms(seed, SHAPE_BLOCK, view, image, epoch)
        drawn.jitter_order = int(a * 24)
        drawn.blur_sigma = policy.sigma_low + b * (policy.sigma_high - policy.sigma_low)


@njit(cache=True, nogil=True)
def _factor(u, change):
    """Uniform in [max(0, 1 - change), 1 + change]."""
    low = max(0.0, 1.0 - change)
    return low + u * (1.0 + change - low)


@njit(cache=True, nogil=True)
def _draw_crop(policy, seed, epoch, view, image, height, width, out):
    """Inception's crop: area and log aspect uniform; ten attempts, then the centre."""
    for attempt in range(CROP_ATTEMPTS):
        a, b, c, d = _uniforms(seed, attempt, view, image, epoch)
        area = height * width * (policy.area_low + a * (policy.area_high - policy.area_low))
        spread = policy.log_aspect_high - policy.log_aspect_low
        aspect = np.exp(policy.log_aspect_low + b * spread)
        crop_width = round(np.sqrt(area * aspect))
        crop_height = round(np.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            out.height, out.width = crop_height, crop_width
            out.top = int(c * (height - crop_height + 1))
            out.left = int(d * (width - crop_width + 1))
            return
    # The image is too long or too small for such a crop: the largest centred one that fits.
    aspect = width / height
    crop_height, crop_width = height, width
    if aspect < np.exp(policy.log_aspect_low):
        crop_height = max(1, round(width / np.exp(policy.log_aspect_low)))
    elif aspect > np.exp(policy.log_aspect_high):
        crop_width = max(1, round(height * np.exp(policy.log_aspect_high)))
    out.height, out.width = min(crop_height, height), min(crop_width, width)
    out.top = (height - out.height) // 2
    out.left = (width - out.width) // 2
