"""The random parameters of views: a pure function of (seed, epoch, image, view).

Each number comes from Philox4x64-10 with key (seed, stream) and counter (block, view, image,
epoch). Nothing depends on the batch, the worker, the thread or the process that asks, so a resumed
run sees what the unbroken one would have seen. Every kind of operation owns blocks of four numbers,
whether a policy has it or not: leaving one out leaves the others' draws alone.
"""

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from diptych.config.policies import (
    OPERATIONS,
    AutoContrast,
    Blur,
    Center,
    Color,
    Crop,
    Cutout,
    Equalize,
    Flip,
    Gray,
    Noise,
    Operation,
    Policy,
    Posterize,
    QuarterTurns,
    RandAugment,
    Rotate,
    Sharpen,
    Sobel,
    Solarize,
    VerticalFlip,
)
from diptych.views import parameters as codes
from diptych.views.parameters import AFFINE, COLOR, CROP, NOISE, STEP_WIDTH, ViewParameters
from diptych.views.philox import uniforms

VIEW_STREAM: Final = 0x56494557  # "VIEW": keeps these draws apart from any other use of the seed

_BLOCKS: Final = 32  # of each operation; a second one of the same kind has those after all kinds'
_SWITCH: Final = 31  # the block that decides whether it happens
_CROP_ATTEMPTS: Final = 10  # blocks 0 .. 9, one per attempt, as torchvision's RandomResizedCrop
# An operation's blocks follow from its place in OPERATIONS: a new one goes to the end, or those
# behind it draw other numbers.
_KINDS: Final = {kind: number for number, kind in enumerate(OPERATIONS.values())}
_ROW: Final = 10  # kind, probability, first block, and up to seven numbers

_CROP: Final = _KINDS[Crop]
_CENTER: Final = _KINDS[Center]
_FLIP: Final = _KINDS[Flip]
_VERTICAL_FLIP: Final = _KINDS[VerticalFlip]
_QUARTER_TURNS: Final = _KINDS[QuarterTurns]
_ROTATE: Final = _KINDS[Rotate]
_COLOR: Final = _KINDS[Color]
_GRAY: Final = _KINDS[Gray]
_BLUR: Final = _KINDS[Blur]
_SOLARIZE: Final = _KINDS[Solarize]
_POSTERIZE: Final = _KINDS[Posterize]
_EQUALIZE: Final = _KINDS[Equalize]
_AUTO_CONTRAST: Final = _KINDS[AutoContrast]
_SHARPEN: Final = _KINDS[Sharpen]
_NOISE: Final = _KINDS[Noise]
_CUTOUT: Final = _KINDS[Cutout]
_SOBEL: Final = _KINDS[Sobel]
_RAND_AUGMENT: Final = _KINDS[RandAugment]


def draw_views(
    policies: Sequence[Policy],
    *,
    strength: float = 1.0,
    side_pixels: int,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
    heights: NDArray[np.int64],
    widths: NDArray[np.int64],
    first_view: int = 0,
) -> ViewParameters:
    """Draws the parameters of one view per policy for each image of a batch.

    Args:
        policies: what may be done on each branch; view v follows ``policies[v]``.
        strength: multiplies the changes of every ``color``.
        side_pixels: of the views.
        seed: of the run.
        epoch: counted from 0.
        indices: (images,), each image's index in its set; its identity for the generator.
        heights: (images,), of the images in pixels.
        widths: (images,), of the images in pixels.
        first_view: the number of the first of these views among all views of an image.

    Returns:
        The draws of (policies, images).
    """
    programs = [_program(policy, strength, side_pixels) for policy in policies]
    lengths = [_steps_of(policy) for policy in policies]
    crops = np.zeros((len(policies), len(indices)), dtype=CROP)
    # Zeros are steps of the kind NOTHING: what is not filled in is passed over.
    steps = np.zeros((len(policies), len(indices), max(lengths), STEP_WIDTH))
    for view, program in enumerate(programs):
        _draw(
            program,
            side_pixels,
            seed,
            epoch,
            first_view + view,
            indices,
            heights,
            widths,
            crops[view],
            steps[view],
        )
    return ViewParameters(crops, steps)


def centre_views(heights: NDArray[np.int64], widths: NDArray[np.int64]) -> ViewParameters:
    """The view for evaluation: the largest centred square and nothing else, (1, images)."""
    side = np.minimum(heights, widths)
    return _squares([((heights - side) // 2, (widths - side) // 2)], side)


def five_views(
    heights: NDArray[np.int64], widths: NDArray[np.int64], *, share: float = 0.875
) -> ViewParameters:
    """Five views for evaluation: squares at the four corners and in the centre, (5, images).

    Args:
        heights: (images,), in pixels.
        widths: (images,), in pixels.
        share: side of a square over the image's shorter side (224 of 256 is 0.875).
    """
    shorter = np.minimum(heights, widths)
    side = np.clip(np.rint(share * shorter).astype(np.int64), 1, shorter)
    down, right, zero = heights - side, widths - side, np.zeros_like(side)
    corners = [(zero, zero), (zero, right), (down, zero), (down, right), (down // 2, right // 2)]
    return _squares(corners, side)


def _squares(
    corners: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], side: NDArray[np.int64]
) -> ViewParameters:
    crops = np.zeros((len(corners), len(side)), dtype=CROP)
    for view, (top, left) in enumerate(corners):
        crops["top"][view], crops["left"][view] = top, left
    crops["height"] = crops["width"] = side
    return ViewParameters(crops, np.zeros((*crops.shape, 0, STEP_WIDTH)))


def _steps_of(policy: Policy) -> int:
    """Rows that a policy can fill; the first operation is the crop."""
    return sum(one.count if isinstance(one, RandAugment) else 1 for one in policy[1:])


def _program(policy: Policy, strength: float, side_pixels: int) -> NDArray[np.float64]:
    """A policy as the table that the compiled loop reads, one row for each operation."""
    program = np.zeros((len(policy), _ROW))
    for row, operation in enumerate(policy):
        earlier = sum(type(one) is type(operation) for one in policy[:row])
        kind = _KINDS[type(operation)]
        probability = getattr(operation, "probability", 1.0)
        numbers = _numbers(operation, strength, side_pixels)
        first_block = _BLOCKS * (kind + len(_KINDS) * earlier)
        program[row, : 3 + len(numbers)] = (kind, probability, first_block, *numbers)
    return program


def _numbers(operation: Operation, strength: float, side_pixels: int) -> tuple[float, ...]:
    """What the compiled loop has to know of an operation besides its kind and probability."""
    match operation:
        case Crop(_, area, aspect, interpolation):
            cubic = interpolation == "bicubic"
            return (*area, math.log(aspect[0]), math.log(aspect[1]), cubic)
        case Center(interpolation):
            return (interpolation == "bicubic",)
        case Rotate(_, degrees):
            return degrees
        case Color(_, brightness, contrast, saturation, hue):
            changes = (brightness * strength, contrast * strength, saturation * strength)
            return (*changes, min(0.5, hue * strength))
        case Blur(_, sigma, kernel):
            return (*sigma, int(kernel * side_pixels) // 2)
        case Solarize(_, bounds) | Posterize(_, bounds) | Sharpen(_, bounds) | Noise(_, bounds):
            return bounds
        case Cutout(_, area, aspect):
            return (*area, math.log(aspect[0]), math.log(aspect[1]))
        case RandAugment(_, count, magnitude):
            return (count, magnitude)
        case _:
            return ()


# A slot is passed on whether or not its operation happens: the device does one slot of all rows at
# a time, which is then mostly one kind.
@njit(cache=True, nogil=True)
def _draw(program, side, seed, epoch, view, indices, heights, widths, crops, steps):
    for i in range(len(indices)):
        image = indices[i]
        _draw_crop(program[0], seed, epoch, view, image, heights[i], widths[i], crops[i])
        slot = 0
        for row in range(1, len(program)):
            operation = program[row]
            block = int(operation[2])
            switch = uniforms(seed, VIEW_STREAM, block + _SWITCH, view, image, epoch)[0]
            happens = switch < operation[1]
            if operation[0] == _RAND_AUGMENT:
                for pick in range(int(operation[3])):
                    if happens:
                        u = uniforms(seed, VIEW_STREAM, block + pick, view, image, epoch)
                        _draw_mixed(operation[4], side, u, steps[i, slot])
                    slot += 1
                continue
            if happens:
                u = uniforms(seed, VIEW_STREAM, block, view, image, epoch)
                w = uniforms(seed, VIEW_STREAM, block + 1, view, image, epoch)
                _draw_step(operation, side, u, w, steps[i, slot])
            slot += 1


@njit(cache=True, nogil=True)
def _draw_step(operation, side, u, w, step):
    """Fills one step from the numbers of its operation and eight random ones in [0, 1)."""
    kind, low, high = operation[0], operation[3], operation[4]
    between = low + u[0] * (high - low)
    if kind == _FLIP:
        step[0] = codes.FLIP
    elif kind == _VERTICAL_FLIP:
        step[0] = codes.VERTICAL_FLIP
    elif kind == _QUARTER_TURNS:
        step[0], step[1] = codes.TURN, 1 + int(u[0] * 3)
    elif kind == _ROTATE:
        _turn(step, between)
    elif kind == _COLOR:
        step[0], step[1] = COLOR, int(w[0] * 24)
        step[2] = _factor(u[0], operation[3])
        step[3] = _factor(u[1], operation[4])
        step[4] = _factor(u[2], operation[5])
        step[5] = (2.0 * u[3] - 1.0) * operation[6]
    elif kind == _GRAY:
        step[0] = codes.GRAY
    elif kind == _BLUR:
        step[0], step[1], step[2] = codes.BLUR, between, operation[5]
    elif kind == _SOLARIZE:
        step[0], step[1] = codes.SOLARIZE, between
    elif kind == _POSTERIZE:
        bits = min(int(low + u[0] * (int(high) - int(low) + 1)), int(high))
        step[0], step[1] = codes.POSTERIZE, 2.0**bits
    elif kind == _EQUALIZE:
        step[0] = codes.EQUALIZE
    elif kind == _AUTO_CONTRAST:
        step[0] = codes.AUTO_CONTRAST
    elif kind == _SHARPEN:
        step[0], step[1] = codes.SHARPEN, between
    elif kind == _NOISE:
        step[0], step[1] = NOISE, between
        step[2], step[3] = int(u[1] * 4294967296.0), int(u[2] * 4294967296.0)
    elif kind == _CUTOUT:
        area, aspect = between * side * side, np.exp(operation[5] + u[1] * _span(operation))
        height = min(max(round(np.sqrt(area / aspect)), 1), side)
        width = min(max(round(np.sqrt(area * aspect)), 1), side)
        step[0] = codes.CUTOUT
        step[1], step[2] = int(u[2] * (side - height + 1)), int(u[3] * (side - width + 1))
        step[3], step[4] = height, width
    elif kind == _SOBEL:
        step[0] = codes.SOBEL


@njit(cache=True, nogil=True)
def _span(operation):
    """Of the log aspect, of crops and cutouts."""
    return operation[6] - operation[5]


# 150 of 331 pixels are the largest shift, as in torchvision's RandAugment.
@njit(cache=True, nogil=True)
def _draw_mixed(magnitude, side, u, step):
    """One of RandAugment's fourteen, with the ranges of its section 3 at 30."""
    which, share = int(u[0] * 14), magnitude / 30.0
    sign = 1.0 if u[1] < 0.5 else -1.0
    factor = 1.0 + sign * 0.9 * share
    if which == 1:
        _turn(step, sign * 30.0 * share)
    elif which in (2, 3, 4, 5):  # shears and shifts
        step[0], step[1], step[5] = AFFINE, 1.0, 1.0
        if which == 2:
            step[2] = sign * 0.3 * share
        elif which == 3:
            step[4] = sign * 0.3 * share
        elif which == 4:
            step[3] = sign * 150.0 / 331.0 * side * share
        else:
            step[6] = sign * 150.0 / 331.0 * side * share
    elif which in (6, 7, 8):  # brightness, contrast, saturation
        step[0], step[2], step[3], step[4] = COLOR, 1.0, 1.0, 1.0
        step[which - 4] = factor
    elif which == 9:
        step[0], step[1] = codes.SHARPEN, factor
    elif which == 10:
        step[0], step[1] = codes.POSTERIZE, 2.0 ** (8 - round(share * 4))
    elif which == 11:
        step[0], step[1] = codes.SOLARIZE, 1.0 - share
    elif which == 12:
        step[0] = codes.EQUALIZE
    elif which == 13:
        step[0] = codes.AUTO_CONTRAST


@njit(cache=True, nogil=True)
def _turn(step, degrees):
    """Counter-clockwise: where a pixel of the turned view comes from."""
    cosine, sine = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    step[0] = AFFINE
    step[1], step[2], step[4], step[5] = cosine, -sine, sine, cosine


@njit(cache=True, nogil=True)
def _factor(u, change):
    """Uniform in [max(0, 1 - change), 1 + change]."""
    low = max(0.0, 1.0 - change)
    return low + u * (1.0 + change - low)


@njit(cache=True, nogil=True)
def _draw_crop(operation, seed, epoch, view, image, height, width, out):
    """Inception's crop: area and log aspect uniform; ten attempts, then the centre."""
    if operation[0] == _CENTER:
        _centre(height, width, operation[3], out)
        return
    out.cubic = int(operation[7])
    block = int(operation[2])
    switch = uniforms(seed, VIEW_STREAM, block + _SWITCH, view, image, epoch)[0]
    if switch >= operation[1]:
        _centre(height, width, operation[7], out)
        return
    low, high = operation[5], operation[6]
    for attempt in range(_CROP_ATTEMPTS):
        a, b, c, d = uniforms(seed, VIEW_STREAM, block + attempt, view, image, epoch)
        area = height * width * (operation[3] + a * (operation[4] - operation[3]))
        aspect = np.exp(low + b * (high - low))
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
    if aspect < np.exp(low):
        crop_height = max(1, round(width / np.exp(low)))
    elif aspect > np.exp(high):
        crop_width = max(1, round(height * np.exp(high)))
    crop_height, crop_width = min(crop_height, height), min(crop_width, width)
    out.height, out.width = crop_height, crop_width
    out.top = (height - crop_height) // 2
    out.left = (width - crop_width) // 2


@njit(cache=True, nogil=True)
def _centre(height, width, cubic, out):
    side = min(height, width)
    out.top, out.left, out.height, out.width = (height - side) // 2, (width - side) // 2, side, side
    out.cubic = int(cubic)
