"""Pixels: equal to torchvision's functional transforms on the same parameters."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from diptych.configs import ViewsConfig
from diptych.images.pixels import PixelBatch
from diptych.views.cpu import make_views, normalisation, to_pixels
from diptych.views.draw import centre_views, draw_views
from diptych.views.kernels import BRIGHTNESS, CONTRAST, HUE, JITTER_ORDERS, SATURATION

EVERYTHING = ViewsConfig(
    side_pixels=24,
    crop_area=(0.05, 1.0),
    jitter_probability=1.0,
    brightness=0.8,
    contrast=0.8,
    saturation=0.8,
    hue=0.4,
    gray_probability=0.3,
    blur_probability=0.7,
    blur_kernel_share=0.3,
)
ONLY_CROP = replace(
    EVERYTHING,
    flip_probability=0.0,
    jitter_probability=0.0,
    gray_probability=0.0,
    blur_probability=0.0,
)
SIZES = [(32, 32), (480, 640), (37, 91), (200, 13), (24, 24), (9, 9), (1, 50), (1, 1)]


def reference(image: NDArray[np.uint8], p: np.void, config: ViewsConfig) -> Tensor:
    """The same view by torchvision, (channels, side, side) in 0 .. 1, before normalisation."""
    view = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
    side = [config.side_pixels, config.side_pixels]
    crop = [int(p[name]) for name in ("top", "left", "height", "width")]
    view = functional.resized_crop(view, *crop, side, antialias=True)
    if p["flip"]:
        view = functional.horizontal_flip(view)
    if p["jitter"]:
        for kind in JITTER_ORDERS[p["jitter_order"]]:
            if kind == BRIGHTNESS:
                view = functional.adjust_brightness(view, float(p["brightness"]))
            elif kind == CONTRAST:
                view = functional.adjust_contrast(view, float(p["contrast"]))
            elif kind == SATURATION and len(view) == 3:
                view = functional.adjust_saturation(view, float(p["saturation"]))
            elif kind == HUE and len(view) == 3:
                view = functional.adjust_hue(view, float(p["hue"]))
    if p["gray"]:
        view = functional.rgb_to_grayscale(view, len(view))
    if p["blur"]:
        kernel = [config.blur_kernel_pixels] * 2
        view = functional.gaussian_blur(view, kernel, [float(p["blur_sigma"])] * 2)
    return view


def smooth(rng: np.random.Generator, size: tuple[int, int], channels: int) -> NDArray[np.uint8]:
    """Random colour gradients with a little noise: pictures have both."""
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    phase = rng.uniform(0, 6, (3, channels))
    waves = np.sin(4 * rows[..., None] + phase[0]) * np.cos(5 * columns[..., None] + phase[1])
    noisy = 127 + 110 * waves + rng.normal(0, 6, (*size, channels))
    return np.clip(noisy, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("config", [EVERYTHING, ONLY_CROP], ids=["everything", "only_crop"])
def test_views_equal_torchvisions(
    config: ViewsConfig,
    size: tuple[int, int],
    channels: int,
    rng: np.random.Generator,
    executor: ThreadPoolExecutor,
) -> None:
    images = PixelBatch.of([smooth(rng, size, channels) for _ in range(12)])
    drawn = draw_views(
        (config, config),
        seed=1,
        epoch=0,
        indices=np.arange(12),
        heights=images.heights,
        widths=images.widths,
    )
    views = make_views(images, drawn, config, executor)
    mean, scale = normalisation(config, channels)
    for view in range(2):
        for i in range(12):
            wanted = reference(images.image(i), drawn[view, i], config).permute(1, 2, 0).numpy()
            # float32 on both sides, in another order of summation
            np.testing.assert_allclose(views[view, i] / scale + mean, wanted, atol=3e-5)


def test_large_blurs_equal_torchvisions(
    rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    config = replace(EVERYTHING, side_pixels=64, blur_probability=1.0, blur_kernel_share=0.4)
    images = PixelBatch.of([smooth(rng, (80, 70), 3)] * 4)
    indices = np.arange(4)
    drawn = draw_views(
        [config], seed=2, epoch=0, indices=indices, heights=images.heights, widths=images.widths
    )
    views = make_views(images, drawn, config, executor)
    mean, scale = normalisation(config, 3)
    for i in range(4):
        wanted = reference(images.image(i), drawn[0, i], config).permute(1, 2, 0).numpy()
        np.testing.assert_allclose(views[0, i] / scale + mean, wanted, atol=3e-5)


def test_bits_do_not_depend_on_threads_or_batch(rng: np.random.Generator) -> None:
    images = PixelBatch.of([smooth(rng, SIZES[i % len(SIZES)], 3) for i in range(70)])
    indices = np.arange(70)
    drawn = draw_views(
        (EVERYTHING, EVERYTHING),
        seed=3,
        epoch=1,
        indices=indices,
        heights=images.heights,
        widths=images.widths,
    )
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(5) as five:
        alone = make_views(images, drawn, EVERYTHING, one)
        shared = make_views(images, drawn, EVERYTHING, five)
        part = make_views(images.select(indices[40:]), drawn[:, 40:], EVERYTHING, five)
    assert np.array_equal(alone, shared)
    assert np.array_equal(alone[:, 40:], part)


def test_an_untouched_image_comes_back(
    rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    pixels = rng.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    images = PixelBatch.of_stack(pixels)
    views = make_views(images, centre_views(images.heights, images.widths), EVERYTHING, executor)
    assert np.array_equal(to_pixels(views[0], EVERYTHING), pixels)


def test_rows_out_of_order_share_one_buffer(executor: ThreadPoolExecutor) -> None:
    pixels = np.arange(4 * 8 * 8 * 3, dtype=np.uint8).reshape(4, 8, 8, 3)
    chosen = PixelBatch.of_stack(pixels).select(np.array([2, 0]))
    assert np.array_equal(chosen.image(0), pixels[2])
    assert np.array_equal(chosen.image(1), pixels[0])
