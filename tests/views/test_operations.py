"""Every operation on both appliers, against libraries and loops that share no code with them."""

import math
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import kstest
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from diptych.config.data import ViewsConfig
from diptych.config.policies import PRESETS, branches, parse_policy
from diptych.images.codecs.channels import Pixels
from diptych.images.pixels import PixelBatch
from diptych.views import device_operations
from diptych.views import parameters as codes
from diptych.views.cpu import make_views
from diptych.views.device import apply_parameters, make_views_on, move_pixels
from diptych.views.draw import draw_views
from diptych.views.parameters import (
    BRIGHTNESS,
    CONTRAST,
    CROP,
    HUE,
    JITTER_ORDERS,
    SATURATION,
    ViewParameters,
)
from diptych.views.philox import small_philox

MEAN = (0.485, 0.456, 0.406)
CONFIG = ViewsConfig(pixel_mean=MEAN, pixel_std=(1.0, 1.0, 1.0))
CPU = torch.device("cpu")

# float32 on both sides, in another order of summation, and behind changes that multiply an error by
# three at most.
CLOSE = 3e-5

Applier = Callable[[PixelBatch, ViewParameters, int], Tensor]
"""Gives (views, images, channels, side, side) in 0 .. 1."""


def _mean_of(channels: int) -> Tensor:
    mean = MEAN if channels == 3 else [sum(MEAN) / 3] * channels
    return torch.tensor(mean)[:, None, None]


def on_cpu(images: PixelBatch, drawn: ViewParameters, side: int) -> Tensor:
    views = torch.from_numpy(make_views(images, drawn, CONFIG, side_pixels=side))
    return views.permute(0, 1, 4, 2, 3) + _mean_of(images.channels)


def on_device(images: PixelBatch, drawn: ViewParameters, side: int) -> Tensor:
    views = make_views_on(images, drawn, CONFIG, CPU, side_pixels=side)
    assert views.dtype == torch.float32
    return views + _mean_of(images.channels)


@pytest.fixture(params=[on_cpu, on_device], ids=["cpu", "device"])
def apply(request: pytest.FixtureRequest) -> Applier:
    return cast(Applier, request.param)


def batch_of(*images: Pixels) -> PixelBatch:
    return PixelBatch.of(images)


def picture(
    rng: np.random.Generator, height: int, width: int, channels: int, kind: type = np.uint8
) -> Pixels:
    """Random colour gradients with a little noise: pictures have both."""
    rows, columns = np.mgrid[:height, :width] / max(height, width)
    phase = rng.uniform(0, 6, (2, channels))
    waves = np.sin(4 * rows[..., None] + phase[0]) * np.cos(5 * columns[..., None] + phase[1])
    share = 0.5 + 0.43 * waves + rng.normal(0, 0.03, (height, width, channels))
    return np.rint(np.clip(share, 0, 1) * np.iinfo(kind).max).astype(kind)


def exact(image: Pixels) -> Tensor:
    """(channels, height, width), float64 in 0 .. 1: what oracles work on."""
    share = image.astype(np.float64) / np.iinfo(image.dtype).max
    return torch.from_numpy(share).permute(2, 0, 1)


def crops_of(
    boxes: Sequence[tuple[float, float, float, float]], *, cubic: bool
) -> NDArray[np.void]:
    """One view for each (top, left, height, width)."""
    return np.array([[(*box, int(cubic))] for box in boxes], dtype=CROP)


def one_each(steps: Sequence[Sequence[float]], side: int) -> ViewParameters:
    """Image i of so many squares goes through step i and nothing else."""
    table = np.zeros((1, len(steps), 1, codes.STEP_WIDTH))
    for image, step in enumerate(steps):
        table[0, image, 0, : len(step)] = step
    crops = np.zeros((1, len(steps)), dtype=CROP)
    crops["height"] = crops["width"] = side
    return ViewParameters(crops, table)


def run(apply: Applier, images: Sequence[Pixels], steps: Sequence[Sequence[float]]) -> Tensor:
    """What a step makes of each square image, (images, channels, side, side)."""
    side = images[0].shape[0]
    return apply(batch_of(*images), one_each(steps, side), side)[0]


def assert_close(views: Tensor, wanted: Tensor, *, atol: float = 1e-5, apart: float = 0.0) -> None:
    """Equal but for a share of the pixels, which may lie at a threshold."""
    assert views.shape == wanted.shape
    wrong = (views.double() - wanted.double()).abs() > atol
    assert wrong.double().mean().item() <= apart, (views.double() - wanted).abs().max()


# --- the crop and the resize ---------------------------------------------------------------------

SOURCES = [(32, 32), (480, 640), (37, 91), (200, 13), (9, 9), (1, 50), (50, 1), (1, 1)]


def _boxes(height: int, width: int, rng: np.random.Generator) -> list[tuple[int, int, int, int]]:
    """The whole image, single pixels and rows of it, its far corner, and any."""
    boxes = [(0, 0, height, width), (0, 0, 1, 1), (height - 1, 0, 1, width)]
    boxes.append((height // 2, width // 2, height - height // 2, width - width // 2))
    for _ in range(3):
        h, w = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
        top, left = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        boxes.append((int(top), int(left), h, w))
    return boxes


@pytest.mark.parametrize("size", SOURCES)
@pytest.mark.parametrize("cubic", [False, True], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("channels", "kind"), [(3, np.uint8), (1, np.uint16), (6, np.uint8), (3, np.uint16)]
)
def test_crops_equal_torchvisions(
    apply: Applier,
    size: tuple[int, int],
    cubic: bool,
    channels: int,
    kind: type,
    rng: np.random.Generator,
) -> None:
    image, side = picture(rng, *size, channels, kind), 23
    boxes = _boxes(*size, rng)
    crops = crops_of(boxes, cubic=cubic)
    views = apply(batch_of(image), ViewParameters(crops, np.zeros((len(boxes), 1, 0, 7))), side)
    how = InterpolationMode.BICUBIC if cubic else InterpolationMode.BILINEAR
    for view, box in zip(views[:, 0], boxes, strict=True):
        wanted = functional.resized_crop(
            exact(image), *box, [side, side], interpolation=how, antialias=True
        )
        assert_close(view, wanted.clamp(0, 1))


def by_formula(
    image: Tensor, box: tuple[float, float, float, float], side: int, *, cubic: bool
) -> Tensor:
    """Pillow's resize of a box, its taps cut where the box's pixels end; loops in float64."""

    def weigh(x: float) -> float:
        x = abs(x)
        if not cubic:
            return max(0.0, 1.0 - x)
        if x < 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0

    def line(start: float, length: float, size: int) -> Tensor:
        matrix = torch.zeros(side, size, dtype=torch.float64)
        step = length / side
        for out in range(side):
            centre = start + (out + 0.5) * step
            for pixel in range(math.floor(start), min(math.ceil(start + length), size)):
                matrix[out, pixel] = weigh((pixel + 0.5 - centre) / max(step, 1.0))
        return matrix / matrix.sum(dim=1, keepdim=True)

    top, left, height, width = box
    down, across = line(top, height, image.shape[1]), line(left, width, image.shape[2])
    return (down @ image @ across.T).clamp(0, 1)


@pytest.mark.parametrize("cubic", [False, True], ids=["bilinear", "bicubic"])
def test_fractional_crops_follow_the_formula(
    apply: Applier, cubic: bool, rng: np.random.Generator
) -> None:
    image, larger = picture(rng, 90, 70, 3), picture(rng, 95, 73, 3)
    boxes = [(3.3, 10.7, 40.9, 30.2), (0.0, 0.5, 89.5, 69.5), (41.25, 7.75, 4.5, 2.25)]
    boxes.append((60.2, 40.1, 30.3, 30.2))  # ends behind the image, where its stack is padded
    crops = np.repeat(crops_of(boxes, cubic=cubic), 2, axis=1)
    views = apply(batch_of(image, larger), ViewParameters(crops, np.zeros((4, 2, 0, 7))), 17)
    for view, box in zip(views[:, 0], boxes, strict=True):
        assert_close(view, by_formula(exact(image), box, 17, cubic=cubic))


def test_a_fractional_crop_inside_equals_pillows(apply: Applier, rng: np.random.Generator) -> None:
    image, (top, left, height, width) = picture(rng, 120, 130, 1), (20.3, 31.6, 60.5, 70.75)
    crops = crops_of([(top, left, height, width)], cubic=True)
    view = apply(batch_of(image), ViewParameters(crops, np.zeros((1, 1, 0, 7))), 20)[0, 0, 0]
    gray = Image.fromarray(np.float32(image[..., 0]) / 255)
    box = (left, top, left + width, top + height)
    theirs = torch.from_numpy(np.array(gray.resize((20, 20), Image.Resampling.BICUBIC, box=box)))
    # Pillow's taps reach beyond the box, ours do not; two pixels from the border both are inside.
    assert_close(view[2:-2, 2:-2], theirs.clamp(0, 1)[2:-2, 2:-2])


@pytest.mark.parametrize("reduced", [(47, 31), (120, 80)])
def test_scaled_draws_of_whole_images_equal_an_interpolation(
    apply: Applier, reduced: tuple[int, int], rng: np.random.Generator
) -> None:
    image = picture(rng, *reduced, 3)
    whole = ViewParameters(crops_of([(0, 0, 359, 241)], cubic=False), np.zeros((1, 1, 0, 7)))
    drawn = whole.scaled(np.array([reduced[0] / 359]), np.array([reduced[1] / 241]))
    wanted = torch.nn.functional.interpolate(
        exact(image)[None], size=(24, 24), mode="bilinear", antialias=True
    )
    assert_close(apply(batch_of(image), drawn, 24)[0], wanted)


# --- operations, one by one ----------------------------------------------------------------------

SIDES = [9, 24, 33]
CHANNELS = [(3, np.uint8), (1, np.uint8), (6, np.uint16)]
everywhere = pytest.mark.parametrize(
    ("side", "channels", "kind"),
    [(side, channels, kind) for side in SIDES for channels, kind in CHANNELS],
)


@everywhere
def test_flips_and_turns_equal_numpys(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    image = picture(rng, side, side, channels, kind)
    steps = [(codes.FLIP,), (codes.VERTICAL_FLIP,), *((codes.TURN, n) for n in (1, 2, 3))]
    wanted = [image[:, ::-1], image[::-1], *(np.rot90(image, n) for n in (1, 2, 3))]
    for view, turned in zip(run(apply, [image] * 5, steps), wanted, strict=True):
        assert_close(view, exact(cast(Pixels, np.ascontiguousarray(turned))), atol=1e-6)


@pytest.mark.parametrize("policy", ["center + flip(1)", "center + flip(1) + gray(1) + flip(1)"])
def test_flips_at_either_end_of_the_steps_are_done(
    apply: Applier, policy: str, rng: np.random.Generator
) -> None:
    image = picture(rng, 16, 16, 3)
    view = apply(batch_of(image), drawn_from([policy], batch_of(image), 16), 16)[0, 0]
    wanted = exact(image)
    if policy.count("flip") == 1:
        wanted = functional.horizontal_flip(wanted)
    else:
        wanted = functional.rgb_to_grayscale(wanted, 3)
    assert_close(view, wanted, atol=1e-4)  # torchvision's luma has one digit more than ours


def _turned(image: Tensor, degrees: float) -> Tensor:
    """Torchvision's rotation with the mean colour around; its own fill fades the border twice."""
    fill = _mean_of(len(image)).double()
    return functional.rotate(image - fill, degrees, InterpolationMode.BILINEAR) + fill


@everywhere
def test_rotations_equal_torchvisions(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    images = [picture(rng, side, side, channels, kind) for _ in range(4)]
    for degrees in (30.0, -71.5, 180.0):
        policy = f"center + rotate(1, degrees={degrees})"
        drawn = drawn_from([policy], batch_of(*images), side)
        for view, image in zip(apply(batch_of(*images), drawn, side)[0], images, strict=True):
            # torchvision's grid lies on -1 .. 1 in float32
            assert_close(view, _turned(exact(image), degrees), atol=1e-4)


@everywhere
def test_affine_maps_equal_scipys(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    maps = [
        (1.0, 0.3, 0.0, 0.0, 1.0, 0.0),  # a shear along x
        (1.0, 0.0, 0.0, -0.25, 1.0, 0.0),
        (1.0, 0.0, 7.3, 0.0, 1.0, 0.0),  # shifts
        (1.0, 0.0, 0.0, 0.0, 1.0, -4.6),
        (1.0, 0.0, 2.0 * side, 0.0, 1.0, 0.0),  # all out of the picture
        tuple(rng.normal(0, 1, 6)),
    ]
    images = [picture(rng, side, side, channels, kind) for _ in maps]
    middle = (side - 1) / 2
    for view, image, m in zip(
        run(apply, images, [(codes.AFFINE, *m) for m in maps]), images, maps, strict=True
    ):
        matrix = np.array([[m[4], m[3]], [m[1], m[0]]])  # of (y, x)
        offset = np.array([m[5], m[2]]) + middle - matrix @ [middle, middle]
        fill = _mean_of(channels).double()
        planes = (exact(image) - fill).numpy()
        moved = [
            scipy.ndimage.affine_transform(plane, matrix, offset, order=1, mode="grid-constant")
            for plane in planes
        ]
        assert_close(view, torch.from_numpy(np.stack(moved)) + fill)


def jittered(view: Tensor, order: int, factors: Sequence[float]) -> Tensor:
    """The four changes by torchvision."""
    for kind in JITTER_ORDERS[order]:
        if kind == BRIGHTNESS:  # torchvision takes one or three channels; each by itself
            view = torch.cat([functional.adjust_brightness(p[None], factors[0]) for p in view])
        elif kind == CONTRAST:
            view = contrasted(view, factors[1])
        elif kind == SATURATION and len(view) == 3:
            view = functional.adjust_saturation(view, factors[2])
        elif kind == HUE and len(view) == 3:
            view = functional.adjust_hue(view, factors[3])
    return view


def contrasted(view: Tensor, factor: float) -> Tensor:
    """Torchvision knows the contrast of one and of three channels."""
    if len(view) in (1, 3):
        return functional.adjust_contrast(view, factor)
    return (factor * view + (1 - factor) * view.mean()).clamp(0, 1)


@everywhere
def test_color_equals_torchvisions_in_every_order(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    images = [picture(rng, side, side, channels, kind) for _ in range(24)]
    factors = np.column_stack([rng.uniform(0, 1.8, (24, 3)), rng.uniform(-0.5, 0.5, 24)])
    factors[::5, 1], factors[1::5, 2], factors[2::5, 3] = 1.0, 0.0, 0.0
    steps = [(codes.COLOR, order, *factors[order]) for order in range(24)]
    for order, view in enumerate(run(apply, images, steps)):
        wanted = jittered(exact(images[order]), order, factors[order].tolist())
        assert_close(view, wanted, atol=CLOSE)


@pytest.mark.parametrize("channel", range(4))
def test_each_change_of_color_alone(apply: Applier, channel: int, rng: np.random.Generator) -> None:
    """One at a time, on pure colours and grays too: there the hue is at the end of its range."""
    image = picture(rng, 24, 24, 3)
    image[:6] = rng.choice([0, 255], (6, 24, 3))
    image[6:9] = image[6:9, :, :1]
    amounts = (0.0, 0.3, 1.7) if channel != HUE else (-0.5, -0.21, 0.5)
    factors = [[1.0, 1.0, 1.0, 0.0] for _ in amounts]
    for row, amount in zip(factors, amounts, strict=True):
        row[channel] = amount
    views = run(apply, [image] * 3, [(codes.COLOR, 0, *row) for row in factors])
    for view, row in zip(views, factors, strict=True):
        assert_close(view, jittered(exact(image), 0, row))


@everywhere
def test_gray(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    image = picture(rng, side, side, channels, kind)
    wanted = exact(image).mean(dim=0, keepdim=True)
    if channels == 3:
        wanted = functional.rgb_to_grayscale(exact(image), 1)
    view = run(apply, [image], [(codes.GRAY,)])[0]
    assert_close(view, wanted.expand_as(view), atol=1e-4)


@everywhere
def test_blurs_equal_torchvisions(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    widths = [(sigma, radius) for radius in range(side // 4 + 1) for sigma in (0.001, 0.6, 9.0)]
    images = [picture(rng, side, side, channels, kind) for _ in widths]
    views = run(apply, images, [(codes.BLUR, *width) for width in widths])
    for view, image, (sigma, radius) in zip(views, images, widths, strict=True):
        size = [2 * radius + 1] * 2
        assert_close(view, functional.gaussian_blur(exact(image), size, [sigma] * 2))


def test_large_blurs_equal_torchvisions(apply: Applier, rng: np.random.Generator) -> None:
    image = picture(rng, 96, 96, 3)
    view = run(apply, [image], [(codes.BLUR, 8.0, 24)])[0]
    assert_close(view, functional.gaussian_blur(exact(image), [49, 49], [8.0, 8.0]))


@everywhere
def test_solarize_and_posterize_equal_torchvisions(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    thresholds, bits = (0.0, 0.31, 0.5, 1.0), (1, 3, 7, 8)
    image = picture(rng, side, side, channels, kind)
    image[0, 0], image[0, 1] = 0, np.iinfo(kind).max
    steps = [(codes.SOLARIZE, t) for t in thresholds] + [(codes.POSTERIZE, 2.0**b) for b in bits]
    views = run(apply, [image] * 8, steps)
    for view, threshold in zip(views[:4], thresholds, strict=True):
        assert_close(view, functional.solarize(exact(image), threshold), apart=0.01)
    for view, left in zip(views[4:], bits, strict=True):
        assert_close(view, functional.posterize(exact(image), left), apart=0.01)


@everywhere
def test_equalize_and_auto_contrast_equal_torchvisions(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    image = picture(rng, side, side, channels, kind)
    dark: Pixels = (image // 3).astype(
        kind
    )  # 33 x 33 pixels and more make the histogram's steps 1 or more
    flat = np.full_like(image, np.iinfo(kind).max // 3)
    flat[..., 0] = 0
    white = np.full_like(image, np.iinfo(kind).max)
    images = [image, dark, flat, white]
    equal = run(apply, images, [(codes.EQUALIZE,)] * 4)
    stretched = run(apply, images, [(codes.AUTO_CONTRAST,)] * 4)
    for view, other, one in zip(equal, stretched, images, strict=True):
        planes = [plane[None] for plane in exact(one)]  # torchvision takes one or three channels
        assert_close(view, torch.cat([functional.equalize(p) for p in planes]), apart=0.01)
        assert_close(other, torch.cat([functional.autocontrast(p) for p in planes]))


def test_auto_contrast_does_not_stretch_rounding(apply: Applier, rng: np.random.Generator) -> None:
    """A resized flat image is not flat to the last digit."""
    image = np.full((61, 47, 3), 255, dtype=np.uint8)
    image[..., 1:] = 77, 200
    images = batch_of(image, image)
    drawn = drawn_from(["crop + auto_contrast(1)"], images, 24)
    for view in apply(images, drawn, 24)[0]:
        assert_close(view, exact(image)[:, :24, :24])


@everywhere
def test_sharpen_equals_torchvisions(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    factors = (0.0, 0.4, 1.0, 1.9)
    images = [picture(rng, side, side, channels, kind) for _ in factors]
    views = run(apply, images, [(codes.SHARPEN, factor) for factor in factors])
    for view, image, factor in zip(views, images, factors, strict=True):
        # torchvision sharpens one or three channels; each by itself
        wanted = [functional.adjust_sharpness(plane[None], factor) for plane in exact(image)]
        assert_close(view, torch.cat(wanted))


@everywhere
def test_cutout_fills_its_rectangle(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    boxes = [(0, 0, 1, 1), (0, 0, side, side), (2, 3, 5, 1), (side - 2, side - 3, 2, 3)]
    images = [picture(rng, side, side, channels, kind) for _ in boxes]
    views = run(apply, images, [(codes.CUTOUT, *box) for box in boxes])
    for view, image, (top, left, height, width) in zip(views, images, boxes, strict=True):
        wanted = exact(image)
        for y in range(top, top + height):
            for x in range(left, left + width):
                wanted[:, y, x] = _mean_of(channels)[:, 0, 0]
        assert_close(view, wanted, atol=1e-6)


@everywhere
def test_sobel_equals_scipys(
    apply: Applier, side: int, channels: int, kind: type, rng: np.random.Generator
) -> None:
    image = picture(rng, side, side, channels, kind)
    image[:, : side // 2] //= 8  # a step
    planes = exact(image).numpy()
    slopes = [[scipy.ndimage.sobel(p, axis, mode="mirror") for axis in (0, 1)] for p in planes]
    wanted = np.stack([np.minimum(np.hypot(*two) / 4, 1) for two in slopes])
    assert_close(run(apply, [image], [(codes.SOBEL,)])[0], torch.from_numpy(wanted))


def test_sobel_of_a_step_from_black_to_white_is_one(apply: Applier) -> None:
    image = np.zeros((9, 9, 1), dtype=np.uint8)
    image[:, 4:] = 255
    view = run(apply, [image], [(codes.SOBEL,)])[0, 0]
    assert view[:, [3, 4]] == pytest.approx(torch.ones(9, 2), abs=1e-6)
    assert view[:, [0, 1, 2, 5, 6, 7, 8]].abs().max() < 1e-6


# --- noise ---------------------------------------------------------------------------------------

NOISY_KEY = (0x243F6A88, 0xFFFFFFFF)


def philox_by_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox4x32-10 with Python's whole numbers."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = divmod(c0 * 0xD2511F53, 2**32)
        high1, low1 = divmod(c2 * 0xCD9E8D57, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return c0, c1, c2, c3


def test_philox_gives_the_published_numbers() -> None:
    """The known answers of Random123, kat_vectors."""
    zeros = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
    ones = (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
    assert philox_by_integers((0, 0, 0, 0), (0, 0)) == zeros
    assert philox_by_integers((2**32 - 1,) * 4, (2**32 - 1,) * 2) == ones
    assert tuple(int(n) for n in small_philox(*[np.uint64(0)] * 4)) == zeros
    none = torch.zeros(1, dtype=torch.int64)
    assert tuple(int(n) for n in device_operations.philox(none, none, none, none)) == zeros


@pytest.mark.parametrize("key", [(0, 1), NOISY_KEY, (2**32 - 1, 2**32 - 1)])
@pytest.mark.parametrize("counter", [(0, 0), (12543, 5), (2**32 - 1, 2**32 - 1)])
def test_both_philoxes_equal_that_of_whole_numbers(
    key: tuple[int, int], counter: tuple[int, int]
) -> None:
    wanted = philox_by_integers((*counter, 0, 0), key)
    assert tuple(int(n) for n in small_philox(*map(np.uint64, (*key, *counter)))) == wanted
    tensors = [torch.tensor([n]) for n in (*key, *counter)]
    assert tuple(int(n) for n in device_operations.philox(*tensors)) == wanted


@pytest.mark.parametrize(("side", "channels"), [(9, 3), (8, 1), (11, 6)])
def test_noise_is_philoxs_made_normal(
    apply: Applier, side: int, channels: int, rng: np.random.Generator
) -> None:
    images = [picture(rng, side, side, channels) for _ in range(2)]
    keys = [(1, 2), NOISY_KEY]
    views = run(apply, images, [(codes.NOISE, 0.07, *key) for key in keys])
    for view, image, key in zip(views, images, keys, strict=True):
        wanted = exact(image)
        for channel in range(channels):
            for number in range(side * side):
                words = philox_by_integers((number // 4, channel, 0, 0), key)
                at = number % 4 // 2 * 2
                long = math.sqrt(-2 * math.log((words[at] + 0.5) / 2**32))
                angle = 2 * math.pi * words[at + 1] / 2**32
                normal = long * (math.sin(angle) if number % 2 else math.cos(angle))
                wanted[channel, number // side, number % side] += 0.07 * normal
        assert_close(view, wanted.clamp(0, 1), atol=1e-6)


def test_noise_is_normal_and_its_channels_and_pixels_independent(apply: Applier) -> None:
    images = [np.full((96, 96, 3), 128, dtype=np.uint8)] * 2
    steps = [(codes.NOISE, 0.05, 77, 88), (codes.NOISE, 0.05, 77, 89)]
    views = run(apply, images, steps)
    noise = ((views - 128 / 255) / 0.05).double().numpy()
    assert kstest(noise.ravel(), "norm").pvalue > 1e-3
    rows = [noise[0, 0].ravel(), noise[0, 1].ravel(), noise[1, 0].ravel(), noise[0, 0].T.ravel()]
    together = np.corrcoef([*rows, np.roll(rows[0], 1), np.roll(rows[0], 96)])
    assert np.abs(together - np.eye(6)).max() < 5 / 96  # five standard deviations


def test_lengths_of_noise_hold_at_both_ends() -> None:
    """In float32 the quotient rounds to 1 long before its logarithm is 0."""
    words = [0, 1, 2**31 - 1, 2**31, 2**32 - 300, 2**32 - 1]
    lengths = device_operations._length(torch.tensor(words), torch.float32)
    wanted = [math.sqrt(-2 * math.log1p(-(2**32 - n - 0.5) / 2**32)) for n in words]
    assert lengths.tolist() == pytest.approx(wanted, rel=1e-6)


# --- whole policies ------------------------------------------------------------------------------

SMOOTH = (
    "crop(0.9, area=0.05..1, interpolation=bicubic) + flip + vertical_flip + quarter_turns + "
    "rotate(0.5) + color(0.8, brightness=0.6, contrast=0.6, saturation=0.8, hue=0.4) + gray(0.3) + "
    "blur(0.5, kernel=0.3) + auto_contrast(0.3) + sharpen(0.5) + noise(0.5) + cutout + "
    "sobel(0.2) + blur(0.3) + flip"
)
"""Everything in which a small difference stays small."""

STEPPED = "crop + color(0.5) + solarize(0.5) + posterize(0.5) + equalize(0.5) + rand_augment"


def drawn_from(
    policies: Sequence[str], images: PixelBatch, side: int, seed: int = 5
) -> ViewParameters:
    return draw_views(
        [parse_policy(policy) for policy in policies],
        side_pixels=side,
        seed=seed,
        epoch=2,
        indices=np.arange(len(images)),
        heights=images.heights,
        widths=images.widths,
    )


def several_sizes(rng: np.random.Generator, channels: int = 3, count: int = 24) -> PixelBatch:
    return batch_of(*(picture(rng, *SOURCES[i % len(SOURCES)], channels) for i in range(count)))


@pytest.mark.parametrize("preset", PRESETS)
def test_the_appliers_agree_on_presets(preset: str, rng: np.random.Generator) -> None:
    images = several_sizes(rng)
    two = branches(preset, None)
    drawn = draw_views(
        two,
        side_pixels=32,
        seed=1,
        epoch=0,
        indices=np.arange(len(images)),
        heights=images.heights,
        widths=images.widths,
    )
    # A pixel at the threshold may fall on either side.
    apart = 1e-4 if "solarize" in str(PRESETS[preset]) else 0.0
    ours, theirs = on_cpu(images, drawn, 32), on_device(images, drawn, 32)
    assert_close(theirs, ours, atol=CLOSE, apart=apart)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_the_appliers_agree_on_everything(channels: int, rng: np.random.Generator) -> None:
    """Policies of several lengths: the shorter one's rows end with steps that are none."""
    images = several_sizes(rng, channels)
    drawn = drawn_from([SMOOTH, "center", "crop + gray(1) + flip(1)", SMOOTH], images, 29)
    assert (drawn.steps[1] == codes.NOTHING).all()
    assert_close(on_device(images, drawn, 29), on_cpu(images, drawn, 29), atol=CLOSE)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_appliers_agree_but_for_pixels_at_steps(
    channels: int, rng: np.random.Generator
) -> None:
    images = several_sizes(rng, channels, count=48)
    drawn = drawn_from([STEPPED, STEPPED], images, 29)
    ours, theirs = on_cpu(images, drawn, 29), on_device(images, drawn, 29)
    same = (theirs - ours).abs().amax(dim=(2, 3, 4)) <= CLOSE
    assert same.double().mean() > 0.9
    # A flat image falls as a whole; one pixel moves a histogram, and with it all of its shade.
    assert_close(theirs, ours, atol=CLOSE, apart=0.02)


def test_device_views_do_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    images = several_sizes(rng)
    drawn = drawn_from([SMOOTH], images, 16)
    some = np.array([20, 3, 9])
    part = ViewParameters(drawn.crops[:, some], drawn.steps[:, some])
    together = on_device(images, drawn, 16)[:, some]
    # Sums of another length come in another order.
    assert_close(on_device(images.select(some), part, 16), together, atol=CLOSE)


def test_stacks_are_padded_by_half_at_most(rng: np.random.Generator) -> None:
    images = several_sizes(rng, count=40)
    stacks = move_pixels(images, CPU).stacks
    assert sorted(np.concatenate([stack.images for stack in stacks])) == list(range(40))
    assert len(stacks) < len(SOURCES) + 1
    for stack in stacks:
        own = int((stack.heights * stack.widths).sum())
        assert stack.pixels[..., 0].numel() <= 1.5 * own
    same = PixelBatch.of_stack(np.zeros((7, 8, 9, 3), dtype=np.uint8))
    (only,) = move_pixels(same, CPU).stacks
    assert only.pixels.shape == (7, 8, 9, 3)
    assert only.images.tolist() == list(range(7))


def test_a_large_batch_is_resized_in_parts(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    images = several_sizes(rng, count=9)
    drawn = drawn_from(["crop", "crop"], images, 16)
    whole = on_device(images, drawn, 16)
    monkeypatch.setattr("diptych.views.device._VALUES_AT_ONCE", 20_000)
    assert_close(on_device(images, drawn, 16), whole, atol=1e-6)


def test_autocast_does_not_coarsen_views(rng: np.random.Generator) -> None:
    images = several_sizes(rng, count=4)
    drawn = drawn_from(["crop + blur(1)"], images, 16)
    plain = on_device(images, drawn, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(on_device(images, drawn, 16), plain)


# --- gradients -----------------------------------------------------------------------------------

DIFFERENTIABLE: dict[str, Sequence[float]] = {
    "flip": (codes.FLIP,),
    "vertical_flip": (codes.VERTICAL_FLIP,),
    "turn": (codes.TURN, 3),
    "affine": (codes.AFFINE, 0.9, 0.2, 1.3, -0.3, 1.1, 0.4),
    "color": (codes.COLOR, 13, 1.1, 0.9, 1.1, 0.07),
    "gray": (codes.GRAY,),
    "blur": (codes.BLUR, 1.2, 2),
    "solarize": (codes.SOLARIZE, 0.5),
    "auto_contrast": (codes.AUTO_CONTRAST,),
    "sharpen": (codes.SHARPEN, 1.4),
    "noise": (codes.NOISE, 0.02, 3, 4),
    "cutout": (codes.CUTOUT, 1, 2, 4, 3),
    "sobel": (codes.SOBEL,),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_gradients_equal_finite_differences(name: str) -> None:
    step = DIFFERENTIABLE[name]
    generator = torch.Generator().manual_seed(3)
    shape = (2, 3, 13, 11)
    images = 0.3 + 0.4 * torch.rand(shape, generator=generator, dtype=torch.float64)
    crops = np.array([[(1, 2, 10, 8, 0), (0, 0, 13, 11, 1)]], dtype=CROP)
    table = np.zeros((1, 2, 2, codes.STEP_WIDTH))
    table[0, :, 0, : len(step)] = step
    table[0, 1, 1, 0] = codes.GRAY  # of one row alone: rows that are put back pass gradients too
    drawn = ViewParameters(crops, table)

    def views(images: Tensor) -> Tensor:
        return apply_parameters(images, drawn, CONFIG, side_pixels=8)

    assert views(images).dtype == torch.float64
    assert torch.autograd.gradcheck(views, images.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("kind", [codes.SOBEL, codes.AUTO_CONTRAST, codes.COLOR])
def test_gradients_of_flat_images_are_finite(kind: int) -> None:
    images = torch.full((1, 3, 8, 8), 0.5, requires_grad=True)
    drawn = one_each([(kind, 0, 1.2, 1.2, 1.2, 0.1)], 8)
    apply_parameters(images, drawn, CONFIG, side_pixels=8).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert images.grad.isfinite().all()


def test_float_images_give_the_views_of_their_pixels(rng: np.random.Generator) -> None:
    pixels = np.stack([picture(rng, 20, 30, 3) for _ in range(4)])
    images = PixelBatch.of_stack(pixels)
    drawn = drawn_from([SMOOTH, "center"], images, 16)
    floats = torch.stack([exact(image) for image in pixels]).float()
    views = apply_parameters(floats, drawn, CONFIG, side_pixels=16) + _mean_of(3)
    assert_close(views, on_cpu(images, drawn, 16), atol=CLOSE)


def test_a_step_of_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no step of kind 99"):
        apply_parameters(torch.zeros(1, 3, 8, 8), one_each([(99,)], 8), CONFIG, side_pixels=8)
