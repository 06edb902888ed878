"""Advice: none for a sound set; for each fault how many, an example, and what to change."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.config.data import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.images.pixels import HeldPixels, PixelBatch
from diptych.views.preview.advice import LEAST_IMAGES, advise, survey

COUNT = LEAST_IMAGES
CONFIG = ViewsConfig(side_pixels=16, policy="crop(area=0.3..1) + color")


def image_set(stack: NDArray[np.uint8 | np.uint16]) -> ImageSet:
    batch = PixelBatch.of_stack(stack)
    names = [f"{index}.png" for index in range(len(stack))]
    return ImageSet(HeldPixels(batch), names, batch.heights, batch.widths, batch.channels)


@pytest.fixture
def sound(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Images, mean and spread about those of photographs."""
    light = rng.normal(115, 58, (COUNT, 16, 16, 3))
    return np.clip(light, 0, 255).astype(np.uint8)


def test_a_sound_set_gets_none(sound: NDArray[np.uint8], executor: ThreadPoolExecutor) -> None:
    assert advise(image_set(sound), CONFIG, executor) == []


def only(stack: NDArray[np.uint8], config: ViewsConfig, executor: ThreadPoolExecutor) -> str:
    (sentence,) = advise(image_set(stack), config, executor)
    return sentence


def test_few_images(sound: NDArray[np.uint8], executor: ThreadPoolExecutor) -> None:
    sentence = only(sound[: COUNT - 1], CONFIG, executor)
    assert "only 999 images" in sentence


def test_images_smaller_than_the_views(
    sound: NDArray[np.uint8], executor: ThreadPoolExecutor
) -> None:
    config = ViewsConfig(side_pixels=32, policy="crop(area=0.3..1)")
    sentence = only(sound, config, executor)
    assert "1,000 of 1,000 images (such as 0.png) are smaller than the views' 32" in sentence
    assert "--views.side-pixels 16 would fit" in sentence
    fitted = ViewsConfig(side_pixels=16, policy="crop(area=0.3..1)")
    assert advise(image_set(sound), fitted, executor) == []


def test_crops_of_too_few_pixels(sound: NDArray[np.uint8], executor: ThreadPoolExecutor) -> None:
    config = ViewsConfig(side_pixels=16, policy="crop(area=0.1..0.2) + flip")
    sentence = only(sound, config, executor)
    assert "1,000 of 1,000 images" in sentence
    assert '--views.policy with "crop(area=0.25..0.25)"' in sentence
    assert not advise(image_set(sound), ViewsConfig(16, "crop(area=0.25)"), executor)
    small = ViewsConfig(16, "crop(area=0.3..1)", small_views=2)
    assert "--views.small-policy" in only(sound, small, executor)


def of_sides(sides: NDArray[np.int64]) -> ImageSet:
    """Squares of these sides; the pixels that are looked at are of a sound set."""
    light = np.random.default_rng(0).normal(115, 58, (len(sides), 16, 16, 3))
    found = image_set(np.clip(light, 0, 255).astype(np.uint8))
    return replace(found, heights=sides, widths=sides)


def test_a_few_small_images_are_no_reason_to_change_the_views(
    executor: ThreadPoolExecutor,
) -> None:
    """Ninety-five in a hundred of 48 pixels, five of 16: a larger side or smaller crops would
    make it worse for all."""
    sides = np.where(np.arange(COUNT) % 20 == 7, 16, 48)
    config = ViewsConfig(side_pixels=32, policy="crop(area=0.08..1) + color")
    assert advise(of_sides(sides), config, executor) == []


@pytest.mark.parametrize("seed", range(40))
def test_advice_on_sizes_never_makes_it_worse(seed: int, executor: ThreadPoolExecutor) -> None:
    """Whatever the mixture: a smaller side of views, larger crops, and fewer images concerned."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(8, 130, rng.integers(1, 5))
    sides = rng.choice(kinds, COUNT, p=rng.dirichlet(np.full(len(kinds), 0.5)))
    area, side = float(rng.choice([0.02, 0.08, 0.3])), int(rng.choice([16, 32, 64, 96]))
    config = ViewsConfig(side_pixels=side, policy=f"crop(area={area}..1) + color")
    sentences = advise(of_sides(sides), config, executor)
    for sentence in sentences:
        if "--views.side-pixels" in sentence:
            wanted = int(sentence.split("--views.side-pixels ")[1].split()[0])
            assert wanted < side
            assert (sides < wanted).mean() < (sides < side).mean()
        else:
            larger = float(sentence.split("crop(area=")[1].split("..")[0])
            assert larger > area
            few = [(sides**2 * one < 64).mean() for one in (larger, area)]
            assert few[0] < few[1] or few[0] == few[1] == (sides**2 < 64).mean()
    if not sentences:
        assert (sides < side).mean() <= 0.1 or side <= 8
        assert (sides**2 * area < 64).mean() <= 0.1


@pytest.mark.parametrize(
    ("count", "words"), [(100, "makes all alike"), (600, "makes all alike"), (COUNT, "saves two")]
)
def test_gray_images_under_a_colour_policy(
    count: int, words: str, sound: NDArray[np.uint8], executor: ThreadPoolExecutor
) -> None:
    sound[:count] = sound[:count, :, :, :1]
    sentence = only(sound, CONFIG, executor)
    assert sentence.startswith(f"{count:,} of 1,000 images (such as 0.png) are gray")
    assert "--images.color gray" in sentence
    assert words in sentence
    plain = ViewsConfig(16, "crop(area=0.3..1) + flip + color(0) + color(saturation=0, hue=0)")
    assert advise(image_set(sound), plain, executor) == []


def test_constant_images(
    sound: NDArray[np.uint8], rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    color = rng.integers(0, 255, (50, 1, 1, 3), dtype=np.uint8)
    sound[7:57] = color + rng.integers(0, 2, (50, 16, 16, 3), dtype=np.uint8)
    sentence = only(sound, CONFIG, executor)
    assert sentence.startswith("50 of 1,000 images (such as 7.png) are all but constant")


def test_a_set_that_is_flat_as_a_whole_is_stretched_and_not_left_out(
    sound: NDArray[np.uint8], executor: ThreadPoolExecutor
) -> None:
    """Such as ten bits stored as sixteen, or frames of an infrared camera."""
    flat, _ = advise(image_set((128 + sound // 64).astype(np.uint8)), CONFIG, executor)
    assert flat.startswith("1,000 of 1,000 images (such as 0.png) are all but constant")
    assert "auto_contrast(1)" in flat
    assert "Leave them out" not in flat


def test_exact_copies(sound: NDArray[np.uint8], executor: ThreadPoolExecutor) -> None:
    sound[500] = sound[20]
    sound[600] = sound[20]
    sentence = only(sound, CONFIG, executor)
    assert sentence.startswith("2 of 1,000 images are copies of an earlier one (500.png of 20.png)")
    turned = replace(image_set(sound[:21]), heights=np.array([16] * 20 + [8]))  # another shape
    assert survey(turned, executor).digests[20] != survey(image_set(sound), executor).digests[20]
    sound[500, 3, 3, 0] ^= 1
    sound[600, 3, 3, 0] ^= 2
    assert advise(image_set(sound), CONFIG, executor) == []


@pytest.mark.parametrize("channels", [3, 5])
def test_twelve_bits_stored_as_sixteen_are_dark(
    channels: int, rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    stack = rng.integers(0, 4096, (COUNT, 16, 16, channels), dtype=np.uint16)
    dark, normalisation = advise(image_set(stack), CONFIG, executor)
    assert dark.startswith("1,000 of 1,000 images (such as 0.png) are very dark (mean 0.031")
    assert "auto_contrast(1)" in dark
    assert "--views.pixel-mean 0.031" in normalisation


def test_a_normalisation_far_from_the_data(
    sound: NDArray[np.uint8], executor: ThreadPoolExecutor
) -> None:
    bright = (160 + sound // 4).astype(np.uint8)
    sentence = only(bright, CONFIG, executor)
    given = [float(n) for n in sentence.partition("--views.pixel-mean ")[2].split()[:3]]
    spread = [float(n) for n in sentence.partition("--views.pixel-std ")[2].split()[:3]]
    pixels = bright / 255.0
    assert given == pytest.approx(pixels.mean(axis=(0, 1, 2)).tolist(), rel=0.01)
    assert spread == pytest.approx(pixels.std(axis=(0, 1, 2)).tolist(), rel=0.01)
    fitted = ViewsConfig(16, CONFIG.policy, pixel_mean=tuple(given), pixel_std=tuple(spread))  # type: ignore[arg-type]
    assert advise(image_set(bright), fitted, executor) == []


def test_of_a_large_set_a_sample_is_looked_at(
    sound: NDArray[np.uint8], rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    many = np.concatenate([sound] * 3)
    (sentence,) = advise(image_set(many), CONFIG, executor)
    assert "of 2,000 images looked at are copies" in sentence
