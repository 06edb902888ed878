"""The operations on resized crops as tensor operations, each row with its own numbers.

Pure functions of views in 0 .. 1, differentiable where the operation is. They give what
``pixel_kernels.py`` gives, to rounding. All work in the dtype of the views: MPS has no float64.
Products of matrices and sums of shifted copies stand where a convolution could: cuDNN computes
those in TF32, three digits, unless told otherwise.
"""

import math
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

Views = Float[Tensor, "rows channels side side"]
Numbers = Float[Tensor, " rows"]
Fill = Float[Tensor, " channels"]

_LUMA: Final = (0.2989, 0.587, 0.114)  # ITU-R 601
_SHADES: Final = 256
_ROUNDING: Final = 1e-5  # less than a shade of 16 bits: what a resize makes of a flat image


def brightness(views: Views, factor: Numbers) -> Views:
    """Multiplies."""
    return (_per_row(factor) * views).clamp(0.0, 1.0)


def contrast(views: Views, factor: Numbers) -> Views:
    """Blends with the mean gray of the view."""
    # The gray of the means is the mean of the grays, at a fraction of the work.
    means = views.mean(dim=(2, 3), keepdim=True)
    return _blend(views, _gray_of(means), factor)


def saturation(views: Views, factor: Numbers) -> Views:
    """Blends with the gray of each pixel; three channels."""
    return _blend(views, _gray_of(views), factor)


def hue(views: Views, shift: Numbers) -> Views:
    """Turns the hue of HSV by a share of the circle, keeping saturation and value; three channels.

    With hue h in sixths of a turn, each channel is value - chroma x clip(min(k, 4 - k), 0, 1)
    where k = (n + h) mod 6 and n = 5, 3, 1 for red, green, blue.
    """
    red, green, blue = views.unbind(dim=1)
    value = views.amax(dim=1)
    chroma = value - views.amin(dim=1)
    # A gray pixel is divided by 1: a NaN in a branch not taken still reaches the gradients.
    divisor = torch.where(chroma > 0.0, chroma, 1.0)
    angle = torch.where(value == green, 2.0 + (blue - red) / divisor, 4.0 + (red - green) / divisor)
    angle = torch.where(value == red, (green - blue) / divisor, angle)
    angle = angle[:, None] + 6.0 * _per_row(shift)
    offsets = torch.tensor([5.0, 3.0, 1.0], dtype=views.dtype).to(views.device)
    k = torch.remainder(angle + offsets[:, None, None], 6.0)
    return value[:, None] - chroma[:, None] * torch.minimum(k, 4.0 - k).clamp(0.0, 1.0)


def gray(views: Views) -> Views:
    """Luma of three channels, or the mean, in every channel."""
    # The channels share memory from here on: later operations must not write in place.
    return _gray_of(views).expand_as(views)


def blur(views: Views, sigma: Numbers, radius: Numbers) -> Views:
    """Gaussian blur with mirrored borders, as a matrix product along each axis.

    Args:
        views: at least one pixel wider than the largest radius.
        sigma: in pixels.
        radius: of the kernel, in pixels, whole.
    """
    side = views.shape[-1]
    at = torch.arange(side, device=views.device, dtype=views.dtype)
    target, source = at[:, None], at[None, :]

    def weigh(distance: Tensor) -> Tensor:
        inside = distance <= radius[:, None, None]
        return torch.exp(-0.5 * (distance / sigma[:, None, None]) ** 2) * inside

    # A pixel counts where it lies and as its mirror image beyond either border; those on the border
    # are not repeated.
    kernel = weigh((target - source).abs()) + weigh(target + source) * (source > 0)
    last = side - 1
    kernel = kernel + weigh(2 * last - target - source) * (source < last)
    kernel = (kernel / kernel.sum(dim=2, keepdim=True))[:, None]
    return kernel @ views @ kernel.mT


def solarize(views: Views, threshold: Numbers) -> Views:
    """Inverts pixels at or above the threshold."""
    return torch.where(views >= _per_row(threshold), 1.0 - views, views)


def posterize(views: Views, shades: Numbers) -> Views:
    """Fewer shades; a staircase, so without gradient."""
    shades = _per_row(shades)
    # Without the bound, a pixel of 1.0 would have a shade of its own.
    return torch.minimum((views * shades).floor(), shades - 1.0) / shades


def equalize(views: Views) -> Views:
    """Histogram equalisation of each channel, as Pillow's; without gradient."""
    rows, channels, side, _ = views.shape
    shades = (views.detach() * 255.999).to(torch.int64).clamp(0, _SHADES - 1)
    shades = shades.reshape(rows * channels, side * side)
    # int32: MPS adds up no int64 by index.
    counts = torch.zeros(len(shades), _SHADES, device=views.device, dtype=torch.int32)
    counts.scatter_add_(1, shades, torch.ones_like(shades, dtype=torch.int32))
    below = counts.cumsum(dim=1, dtype=torch.int32)
    # Pixels of the highest shade: all but those below it, the last sum that is not the total.
    total = side * side
    rest = torch.where(below < total, below, 0).amax(dim=1, keepdim=True)
    width = torch.div(rest, _SHADES - 1, rounding_mode="floor")
    start = torch.div(width, 2, rounding_mode="floor") + below - counts
    even = torch.div(start, width.clamp(min=1), rounding_mode="floor").clamp(max=_SHADES - 1)
    same = torch.arange(_SHADES, device=views.device, dtype=torch.int32)
    table = torch.where(width > 0, even, same).to(views.dtype) / (_SHADES - 1)
    return table.gather(1, shades).reshape(views.shape)


def auto_contrast(views: Views) -> Views:
    """Stretches each channel to 0 .. 1; one of a single shade stays."""
    low, high = views.amin(dim=(2, 3), keepdim=True), views.amax(dim=(2, 3), keepdim=True)
    spread = high - low > _ROUNDING
    width = torch.where(spread, high - low, 1.0)
    return torch.where(spread, ((views - low) / width).clamp(0.0, 1.0), views)


def sharpen(views: Views, factor: Numbers) -> Views:
    """Blends with a 3 x 3 mean that weighs the centre five times; the border stays."""
    side = views.shape[-1]
    lines = views[:, :, :-2] + views[:, :, 1:-1] + views[:, :, 2:]
    total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:]
    inner = views[:, :, 1:-1, 1:-1]
    smooth = (total + 4.0 * inner) / 13.0
    smooth = functional.pad(smooth - inner, (1, 1, 1, 1)) + views if side > 2 else views
    return _blend(views, smooth, factor)


def add_noise(views: Views, sigma: Numbers, keys: Int[Tensor, "rows 2"]) -> Views:
    """Gaussian noise from Philox's numbers by Box and Muller (1958), cut at 0 and 1.

    Args:
        views: to add it to.
        sigma: standard deviation.
        keys: whole numbers below 2^32; int64.
    """
    rows, channels, side, _ = views.shape
    blocks = torch.arange((side * side + 3) // 4, device=views.device)
    planes = torch.arange(channels, device=views.device)[:, None]
    a, b, c, d = philox(keys[:, 0, None, None], keys[:, 1, None, None], blocks, planes)
    turn = 2.0 * math.pi / 2.0**32
    long, short = _length(a, views.dtype), _length(c, views.dtype)
    b_angle, d_angle = b.to(views.dtype) * turn, d.to(views.dtype) * turn
    of_b, of_d = (b_angle.cos(), b_angle.sin()), (d_angle.cos(), d_angle.sin())
    normal = torch.stack([long * of_b[0], long * of_b[1], short * of_d[0], short * of_d[1]], dim=-1)
    normal = normal.reshape(rows, channels, -1)[..., : side * side]
    normal = normal.reshape(rows, channels, side, side)
    return (views + _per_row(sigma) * normal).clamp(0.0, 1.0)


def philox(
    key0: Tensor, key1: Tensor, counter0: Tensor, counter1: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 with the other two counters 0, as ``generator.small_philox``.

    Args:
        key0: int64 below 2^32, as all; the four broadcast.
        key1: second half of the key.
        counter0: first number of the counter.
        counter1: second number.

    Returns:
        Four random int64 below 2^32.
    """
    low = 0xFFFFFFFF
    counter2 = counter3 = torch.zeros_like(counter0)
    for _ in range(10):
        # A product may pass 2^63: its sign is then part of the number, and the mask restores it.
        product0, product1 = counter0 * 0xD2511F53, counter2 * 0xCD9E8D57
        counter0, counter1, counter2, counter3 = (
            ((product1 >> 32) & low) ^ counter1 ^ key0,
            product1 & low,
            ((product0 >> 32) & low) ^ counter3 ^ key1,
            product0 & low,
        )
        key0, key1 = (key0 + 0x9E3779B9) & low, (key1 + 0xBB67AE85) & low
    return counter0, counter1, counter2, counter3


def cut_out(views: Views, box: Float[Tensor, "rows 4"], fill: Fill) -> Views:
    """Fills a rectangle; the box is top, left, height and width in pixels."""
    at = torch.arange(views.shape[-1], device=views.device, dtype=views.dtype)
    top, left, height, width = box[:, :, None].unbind(dim=1)
    down, across = (at >= top) & (at < top + height), (at >= left) & (at < left + width)
    inside = down[:, None, :, None] & across[:, None, None, :]
    return torch.where(inside, fill[:, None, None], views)


def sobel(views: Views) -> Views:
    """The length of each channel's gradient, with mirrored borders; 1 at most."""
    padded = functional.pad(views, (1, 1, 1, 1), mode="reflect")
    rising = padded[..., 2:] - padded[..., :-2]
    across = rising[:, :, :-2] + 2.0 * rising[:, :, 1:-1] + rising[:, :, 2:]
    falling = padded[:, :, 2:] - padded[:, :, :-2]
    along = falling[..., :-2] + 2.0 * falling[..., 1:-1] + falling[..., 2:]
    square = across * across + along * along
    # The root has no slope at 0; where nothing changes the gradient is taken as 0.
    flat = square == 0.0
    length = torch.where(flat, 0.0, torch.where(flat, 1.0, square).sqrt())
    return (0.25 * length).clamp(max=1.0)


def move(
    views: Views,
    wholes: tuple[Float[Tensor, "rows 2 side"], Float[Tensor, "rows 2 side"]],
    rests: tuple[Float[Tensor, "rows 2 side"], Float[Tensor, "rows 2 side"]],
    fill: Fill,
) -> Views:
    """An affine map by bilinear interpolation; beyond the border lies the fill.

    Where a pixel comes from is the sum of a part from its column and a part from its row. Each is
    given as whole pixels and the rest in [0, 1), so that no digits are lost in float32.

    Args:
        views: to move.
        wholes: from the columns, then from the rows; each of x and of y.
        rests: the same.
        fill: of each channel.
    """
    rows, channels, side, _ = views.shape
    rest = rests[0][:, :, None, :] + rests[1][:, :, :, None]  # (rows, 2, side, side)
    corner = wholes[0][:, :, None, :] + wholes[1][:, :, :, None] + rest.floor()
    share = rest - rest.floor()
    # Taken off here and added at the end, so that the outside, which weighs nothing, is the fill.
    flat = (views - fill[:, None, None]).reshape(rows, channels, side * side)
    moved = torch.zeros_like(flat)
    for right in (0, 1):
        for low in (0, 1):
            x, y = corner[:, 0] + right, corner[:, 1] + low
            weight = share[:, 0] if right else 1.0 - share[:, 0]
            weight = weight * (share[:, 1] if low else 1.0 - share[:, 1])
            inside = (x >= 0) & (x < side) & (y >= 0) & (y < side)
            # Clamped though its weight is 0: an index outside is an error, on CUDA one that the
            # process does not recover from.
            at = (y.clamp(0, side - 1) * side + x.clamp(0, side - 1)).to(torch.int64)
            at = at.reshape(rows, 1, -1).expand(-1, channels, -1)
            moved = moved + flat.gather(2, at) * (weight * inside).reshape(rows, 1, -1)
    return moved.reshape(views.shape) + fill[:, None, None]


def _per_row(numbers: Numbers) -> Float[Tensor, "rows 1 1 1"]:
    return numbers[:, None, None, None]


def _gray_of(
    views: Float[Tensor, "rows channels height width"],
) -> Float[Tensor, "rows 1 height width"]:
    if views.shape[1] != len(_LUMA):
        return views.mean(dim=1, keepdim=True)
    red, green, blue = views.unbind(dim=1)
    return (_LUMA[0] * red + _LUMA[1] * green + _LUMA[2] * blue)[:, None]


def _blend(views: Views, other: Tensor, factor: Numbers) -> Views:
    factor = _per_row(factor)
    return (factor * views + (1.0 - factor) * other).clamp(0.0, 1.0)


def _length(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """sqrt(-2 log((n + 1/2) / 2^32)), exact in float32 also where the quotient is close to 1."""
    unit = 1.0 / 2.0**32
    share = (numbers.to(dtype) + 0.5) * unit
    rest = ((0xFFFFFFFF - numbers).to(dtype) + 0.5) * unit
    return (-2.0 * torch.where(share < 0.5, share.log(), torch.log1p(-rest))).sqrt()
