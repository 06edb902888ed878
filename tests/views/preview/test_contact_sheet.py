"""Pictures of views: those of the run, and each operation alone from weak to strong."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.config.data import ViewsConfig
from diptych.config.policies import OPERATIONS
from diptych.images.collection import ImageSet
from diptych.images.groups import Groups
from diptych.images.pixels import HeldPixels, PixelBatch
from diptych.views.batches import Order, ViewBatches
from diptych.views.cpu import to_pixels
from diptych.views.preview.contact_sheet import (
    TILE_PIXELS,
    SingleOperation,
    contact_sheet,
    example_image,
    show_single_operations,
    show_views,
    to_picture,
)


def image_set(stack: NDArray[np.uint8 | np.uint16]) -> ImageSet:
    batch = PixelBatch.of_stack(stack)
    names = [f"{index}.png" for index in range(len(stack))]
    return ImageSet(HeldPixels(batch), names, batch.heights, batch.widths, batch.channels)


@pytest.fixture
def images(rng: np.random.Generator) -> ImageSet:
    return image_set(rng.integers(0, 256, (10, 40, 48, 3), dtype=np.uint8))


def alone_of(
    policy: str, images: ImageSet, executor: ThreadPoolExecutor, **options: float
) -> list[SingleOperation]:
    config = ViewsConfig(side_pixels=32, policy=policy, **options)  # type: ignore[arg-type]
    return show_single_operations(images, 3, config, executor, seed=2)


def test_the_views_shown_are_those_of_the_run(
    images: ImageSet, executor: ThreadPoolExecutor
) -> None:
    config = ViewsConfig(side_pixels=24, policy="moco_v3", small_views=2)
    shown = show_views(images, config, executor, seed=5, image_count=4, view_count=4, run_views=2)
    assert shown.indices.tolist() == [0, 3, 6, 9]
    run = ViewBatches(images, Order(5, 10, 4), config, executor, 2).of(shown.indices, epoch=0)
    made = [to_pixels(view.permute(0, 2, 3, 1).numpy(), config) for view in run]
    for view, expected in zip([*shown.views[:2], *shown.small], made, strict=True):
        assert np.array_equal(view, expected)
    assert shown.labels[:2] == ("view 1 first", "view 2 second")
    assert shown.labels[4:] == ("small 1", "small 2")
    assert [len(one) for one in shown.of(0)] == [24] * 4 + [10] * 2


def test_second_views_show_other_images_of_the_group_as_in_the_run(
    images: ImageSet, executor: ThreadPoolExecutor
) -> None:
    config = ViewsConfig(side_pixels=24, policy="moco_v3", small_views=1)
    groups = Groups.of(np.arange(10) // 5)
    shown = show_views(
        images, config, executor, seed=5, image_count=4, view_count=4, run_views=2, groups=groups
    )
    batches = ViewBatches(images, Order(5, 10, 4), config, executor, 2, groups)
    run = batches.of(shown.indices, epoch=0)
    made = [to_pixels(view.permute(0, 2, 3, 1).numpy(), config) for view in run]
    for view, expected in zip([*shown.views[:2], *shown.small], made, strict=True):
        assert np.array_equal(view, expected)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 6])
def test_any_channels_make_a_picture(channels: int, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (20, 20, channels), dtype=np.uint8)
    picture = np.asarray(to_picture(pixels, 70))
    assert picture.shape == (60, 60, 3)  # three whole pixels for one
    expected = pixels[..., :3] if channels > 2 else np.repeat(pixels[..., :1], 3, axis=2)
    assert np.array_equal(picture[1::3, 2::3], expected)
    assert to_picture(pixels, 12).size == (12, 12)


@pytest.mark.parametrize("channels", [1, 3, 6])
def test_every_operation_is_shown_alone(
    channels: int, rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    images = image_set(rng.integers(0, 65536, (4, 40, 40, channels), dtype=np.uint16))
    policy = "crop + " + " + ".join(list(OPERATIONS)[2:])
    rows = alone_of(policy, images, executor, small_views=1)
    assert len(rows) == len(OPERATIONS) - 1 + 1  # no center, and the small views' crop
    centred = rows[0].pictures[0]
    for row in rows[:-1]:
        assert len(row.labels) == len(row.pictures) >= 2
        assert np.array_equal(row.pictures[0], centred), row.text
    assert rows[-1].words.startswith("small views: crop")
    assert rows[-1].pictures.shape[1:] == (14, 14, channels)


def test_strengths_go_from_weak_to_strong(images: ImageSet, executor: ThreadPoolExecutor) -> None:
    noise, blur, cut, crop = (
        alone_of(text, images, executor)[0]
        for text in ("noise", "blur(kernel=0.3)", "cutout(aspect=1)", "crop(area=0.1..0.9)")
    )
    assert noise.labels == ("off", *(f"sigma {s}" for s in ("0.02", "0.04", "0.06", "0.08", "0.1")))
    change = [np.abs(one.astype(float) - noise.pictures[0]).mean() for one in noise.pictures]
    assert change == sorted(change)
    roughness = [one.astype(float).std() for one in blur.pictures[1:]]
    assert roughness == sorted(roughness, reverse=True)
    changed = [(one != cut.pictures[0]).any(axis=-1).mean() for one in cut.pictures]
    assert changed == pytest.approx([0, 0.05, 0.1, 0.15, 0.2, 0.25], abs=0.02)
    assert crop.labels == ("off", "area 90%", "area 70%", "area 50%", "area 30%", "area 10%")


def test_strengths_of_colour_share_a_draw(images: ImageSet, executor: ThreadPoolExecutor) -> None:
    (color,) = alone_of("color(brightness=0.1)", images, executor, strength=0.5)
    assert color.labels == (
        "off",
        *(f"strength {s}" for s in ("0.125", "0.25", "0.5", "0.75", "1")),
    )
    change = [np.abs(one.astype(float) - color.pictures[0]).mean() for one in color.pictures]
    assert change == sorted(change)
    (stronger,) = alone_of("color(brightness=0.1)", images, executor, strength=1.0)
    assert np.array_equal(stronger.pictures[1], color.pictures[2])  # both of strength 0.25
    assert np.array_equal(stronger.pictures[2], color.pictures[3])


def test_one_value_is_shown_once_and_whole_bits(
    images: ImageSet, executor: ThreadPoolExecutor
) -> None:
    solarize, posterize, flip = alone_of("solarize + posterize + flip", images, executor)
    assert solarize.labels == ("off", "threshold 0.5")
    assert posterize.labels == ("off", "bits 7", "bits 6", "bits 5", "bits 4")
    assert np.array_equal(flip.pictures[1], flip.pictures[0][:, ::-1])


def test_branches_that_differ_in_probability_show_an_operation_once(
    images: ImageSet, executor: ThreadPoolExecutor
) -> None:
    rows = alone_of("moco_v3", images, executor)
    assert [row.text.partition("(")[0] for row in rows] == (
        ["crop", "color", "gray", "blur", "flip", "solarize"]
    )
    assert alone_of("identity", images, executor) == []


def test_the_example_has_contrast_and_colour(executor: ThreadPoolExecutor) -> None:
    stack = np.zeros((6, 32, 32, 3), dtype=np.uint8)
    stack[1, :16] = 200  # gray, with contrast
    stack[4, :16] = (200, 40, 60)
    stack[5] = (200, 40, 60)  # colour, without contrast
    assert example_image(image_set(stack), ViewsConfig(), executor) == 4


def test_the_sheet_holds_the_images_and_cuts_nothing(
    images: ImageSet, executor: ThreadPoolExecutor
) -> None:
    config = ViewsConfig(side_pixels=32, policy="identity")
    sheet = np.asarray(contact_sheet(images, config, executor, seed=0, image_count=3, view_count=2))
    shown = show_views(images, config, executor, seed=0, image_count=3, view_count=2)
    for pixels in shown.centred:
        picture = np.asarray(to_picture(pixels, TILE_PIXELS))
        places = np.argwhere((sheet[:-95, :-95] == picture[0, 0]).all(axis=-1))
        found = [np.array_equal(sheet[y : y + 96, x : x + 96], picture) for y, x in places.tolist()]
        assert sum(found) == 3  # the image, and two views that are the same
    assert (sheet[:, -12:] == 255).all()
    assert (sheet[-12:] == 255).all()


def test_the_whole_sheet_wraps_its_words(
    rng: np.random.Generator, executor: ThreadPoolExecutor
) -> None:
    images = image_set(rng.integers(0, 256, (3, 32, 32, 1), dtype=np.uint8))
    config = ViewsConfig(side_pixels=32, policy="crop + rand_augment + solarize + rotate")
    whole = contact_sheet(
        images, config, executor, seed=0, image_count=2, view_count=1, single_operations=True
    )
    assert isinstance(whole, Image.Image)
    assert (np.asarray(whole)[:, -12:] == 255).all()
    first = contact_sheet(images, config, executor, seed=0, image_count=2, view_count=1)
    assert whole.height > first.height + 4 * TILE_PIXELS
