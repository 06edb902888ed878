"""Views on the CPU: the bits are a function of an image and its draws."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.config.data import ViewsConfig
from diptych.config.policies import Policy, parse_policy
from diptych.images.pixels import PixelBatch
from diptych.views.cpu import make_views, normalisation, to_pixels
from diptych.views.draw import centre_views, draw_views
from diptych.views.parameters import ViewParameters

CONFIG = ViewsConfig(side_pixels=24)
EVERYTHING = parse_policy(
    "crop(area=0.05..1) + flip + vertical_flip + quarter_turns + rotate(0.5) + color + gray + "
    "blur(0.7, kernel=0.3) + solarize + posterize + equalize + auto_contrast + sharpen + noise + "
    "cutout + rand_augment(0.5) + sobel(0.2)"
)
SIZES = [(32, 32), (480, 640), (37, 91), (200, 13), (24, 24), (9, 9), (1, 50), (1, 1)]


def images_of(rng: np.random.Generator, count: int) -> PixelBatch:
    sizes = [SIZES[i % len(SIZES)] for i in range(count)]
    return PixelBatch.of([rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes])


def drawn_for(images: PixelBatch, policy: Policy = EVERYTHING) -> ViewParameters:
    return draw_views(
        (policy, policy),
        side_pixels=24,
        seed=3,
        epoch=1,
        indices=np.arange(len(images)),
        heights=images.heights,
        widths=images.widths,
    )


def test_bits_do_not_depend_on_threads_or_batch(rng: np.random.Generator) -> None:
    images = images_of(rng, 70)
    drawn = drawn_for(images)
    alone = make_views(images, drawn, CONFIG)
    shared = np.empty_like(alone)
    parts = [slice(start, start + 7) for start in range(0, 70, 7)]

    def work(part: slice) -> None:
        some = images.select(np.arange(70)[part])
        make_views(some, drawn.images(part), CONFIG, out=shared, begin=part.start)

    with ThreadPoolExecutor(5) as five:
        list(five.map(work, parts))
    assert np.array_equal(alone, shared)
    assert np.array_equal(alone[1:], make_views(images, drawn.views(slice(1, 2)), CONFIG))


def test_an_untouched_image_comes_back(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (5, 24, 24, 3), dtype=np.uint8)
    images = PixelBatch.of_stack(pixels)
    views = make_views(images, centre_views(images.heights, images.widths), CONFIG)
    assert np.array_equal(to_pixels(views[0], CONFIG), pixels)


def test_rows_out_of_order_share_one_buffer(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (4, 24, 24, 3), dtype=np.uint8)
    chosen = PixelBatch.of_stack(pixels).select(np.array([2, 0]))
    assert np.shares_memory(chosen.image(1), pixels)
    views = make_views(chosen, centre_views(chosen.heights, chosen.widths), CONFIG)
    assert np.array_equal(to_pixels(views[0], CONFIG), pixels[[2, 0]])


def test_a_side_may_be_given(rng: np.random.Generator) -> None:
    images = images_of(rng, 8)
    drawn = drawn_for(images, parse_policy("crop + flip"))
    views = make_views(images, drawn, CONFIG, side_pixels=10)
    assert np.array_equal(views, make_views(images, drawn, ViewsConfig(side_pixels=10)))


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_views_of_other_channels_take_the_mean_normalisation(channels: int) -> None:
    mean, scale = normalisation(CONFIG, channels)
    assert mean.tolist() == pytest.approx([sum(CONFIG.pixel_mean) / 3] * channels)
    assert (1 / scale).tolist() == pytest.approx([sum(CONFIG.pixel_std) / 3] * channels)


def test_views_are_normalised(rng: np.random.Generator) -> None:
    pixels: NDArray[np.uint8] = rng.integers(0, 256, (1, 24, 24, 3), dtype=np.uint8)
    images = PixelBatch.of_stack(pixels)
    view = make_views(images, centre_views(images.heights, images.widths), CONFIG)[0, 0]
    wanted = (pixels[0] / 255 - np.array(CONFIG.pixel_mean)) / np.array(CONFIG.pixel_std)
    np.testing.assert_allclose(view, wanted, atol=1e-5)
