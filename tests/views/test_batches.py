"""A batch says what it shows; views of groups show other images of the group."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.images.collection import ImageSet
from diptych.images.groups import Groups
from diptych.images.open import from_array, open_images
from diptych.views.batches import Batch, Order, ViewBatches

VIEWS = ViewsConfig(side_pixels=16)
GROUPS = Groups.of(np.array([0, 0, 0, 1, 1, 2, 3, 3]))

Make = Callable[..., ViewBatches]


@pytest.fixture
def images(rng: np.random.Generator) -> ImageSet:
    pixels = rng.integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)
    return from_array(pixels, np.arange(8) % 2, ImagesConfig())


@pytest.fixture
def make(executor: ThreadPoolExecutor, images: ImageSet) -> Make:
    def build(
        groups: Groups | None, views: int = 2, config: ViewsConfig = VIEWS, **options: object
    ) -> ViewBatches:
        order = Order(3, 8, 4)
        return ViewBatches(images, order, config, executor, views, groups, **options)  # type: ignore[arg-type]

    return build


def test_a_batch_names_its_images_step_groups_and_labels(make: Make) -> None:
    batch = make(GROUPS, views=3).at(1)
    assert isinstance(batch, Batch)
    assert len(batch) == 4
    assert (len(batch.views), batch.step) == (3, 1)
    indices = batch.indices.numpy()
    assert (indices == Order(3, 8, 4).batch(1)[1]).all()
    assert batch.groups is not None
    assert (batch.groups.numpy() == GROUPS.numbers[indices]).all()
    assert batch.labels is not None
    assert (batch.labels.numpy() == indices % 2).all()
    assert make(None).at(0).groups is None


def test_views_of_a_group_are_those_of_the_partners(make: Make) -> None:
    """View v of a row is view v of the image that it shows, as that image would have it alone."""
    config = replace(VIEWS, small_views=2)
    alone, grouped = make(None, views=3, config=config), make(GROUPS, views=3, config=config)
    indices = np.arange(8)
    shown = GROUPS.partners(indices, seed=3, epoch=5, views=3)
    views = grouped.of(indices, epoch=5)
    for view in range(3):
        assert torch.equal(views[view], alone.of(shown[view], epoch=5)[view])
    assert torch.equal(views[0], alone.of(indices, epoch=5)[0])
    assert not torch.equal(views[1], alone.of(indices, epoch=5)[1])
    for view in (3, 4):  # small views show the image itself
        assert torch.equal(views[view], alone.of(indices, epoch=5)[view])


def test_more_views_leave_the_first_two_as_they_were(make: Make) -> None:
    two, four = make(None, 2).at(0), make(None, 4).at(0)
    assert len(four.views) == 4
    for one, other in zip(two.views, four.views[:2], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(four.views[2], four.views[3])


def test_branches_take_turns_over_the_views(make: Make) -> None:
    config = replace(VIEWS, policy="identity", second="center + gray(1)")
    first, second, third, fourth = make(None, 4, config).at(0).views
    assert torch.equal(first, third)
    assert torch.equal(second, fourth)
    assert not torch.equal(first, second)
    std = torch.tensor(VIEWS.pixel_std)[:, None, None]
    mean = torch.tensor(VIEWS.pixel_mean)[:, None, None]
    red, green, _ = (second * std + mean).unbind(dim=1)
    torch.testing.assert_close(red, green)


def test_small_views_are_small_parts(make: Make) -> None:
    config = replace(VIEWS, side_pixels=32, policy="crop", small_views=3, small_side_pixels=10)
    views = make(None, config=config).at(0).views
    assert [view.shape[-1] for view in views] == [32, 32, 10, 10, 10]
    plain = make(None, config=replace(config, small_views=0)).at(0).views
    for one, other in zip(views[:2], plain, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(views[2], views[3])
    assert replace(config, small_side_pixels=None).small_side == 14
    assert config.small_branch[0].area == (0.05, 0.14)  # type: ignore[union-attr]


@pytest.mark.parametrize("policy", ["simclr", "moco_v3", "crop + rand_augment + noise(1)"])
def test_device_views_equal_cpu_views(make: Make, policy: str) -> None:
    config = replace(VIEWS, policy=policy, small_views=1, small_side_pixels=8)
    wanted = make(None, config=config).at(1).views
    found = make(None, config=config, device=torch.device("cpu")).at(1).views
    for one, other in zip(wanted, found, strict=True):
        assert one.shape == other.shape
        # At a threshold (solarize, equalize, posterize) rounding decides about a pixel.
        assert ((one - other).abs() > 1e-4).float().mean() < 0.005


def test_the_number_of_threads_changes_no_bit(images: ImageSet, class_folder: Path) -> None:
    config = ImagesConfig(path=str(class_folder), cache="none")
    views = replace(VIEWS, policy="simclr", small_views=1)
    found = []
    for threads in (1, 2, 4):
        with ThreadPoolExecutor(threads) as executor:
            read = open_images(config, executor).train
            for some in (images, read):
                order = Order(3, len(some), 8)
                found.append(ViewBatches(some, order, views, executor).at(0).views)
    for number in (0, 1):
        for other in found[number + 2 :: 2]:
            assert all(torch.equal(a, b) for a, b in zip(found[number], other, strict=True))


def test_prefetched_batches_are_those_of_the_steps(make: Make) -> None:
    batches = make(None)
    ahead = batches.prefetched(range(1, 4), total_steps=lambda: 4)
    for step, batch in zip(range(1, 4), ahead, strict=True):
        assert batch.step == step
        assert torch.equal(batch.views[0], batches.at(step).views[0])
    assert list(batches.prefetched(range(0), total_steps=lambda: 4)) == []


def test_the_first_part_of_a_run_sees_smaller_views(make: Make) -> None:
    config = ViewsConfig(
        *(32, "simclr"), small_views=1, small_side_pixels=10, early_side=0.7, early_share=0.5
    )
    batches = make(None, config=config)
    ahead = batches.prefetched(range(4), total_steps=lambda: 4)
    for step, batch in enumerate(ahead):
        side = 24 if step < 2 else 32
        assert [view.shape[-1] for view in batch.views] == [side, side, 10]
        # A run that has this side from the start to the end would see the same.
        plain = replace(config, side_pixels=side, early_side=1.0)
        wanted = make(None, config=plain).at(step).views
        for found in (batch.views, batches.sized_for(step, total_steps=4).at(step).views):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_side_of_the_first_part_is_a_multiple_of_eight_and_never_larger() -> None:
    sides = {
        (side, share): ViewsConfig(side_pixels=side, early_side=share).early_side_pixels
        for side, share in [(32, 0.75), (32, 0.1), (224, 0.5), (20, 0.9), (8, 0.5), (30, 1.0)]
    }
    assert list(sides.values()) == [24, 8, 112, 16, 8, 30]
    views = ViewsConfig(side_pixels=32, early_side=0.75, early_share=0.75)
    found = [views.side_at(step, total_steps=10) for step in range(10)]
    assert found == [24] * 8 + [32] * 2
    assert ViewsConfig(early_side=0.75, early_share=0.0).side_at(0, total_steps=10) == 32


def test_a_batch_goes_to_a_device_whole(make: Make) -> None:
    moved = make(GROUPS).at(0).to(torch.device("meta"))
    assert {view.device.type for view in moved.views} == {"meta"}
    assert moved.groups is not None
    assert moved.labels is not None
    assert moved.indices.device.type == moved.groups.device.type == "meta"
    assert moved.labels.device.type == "meta"
    assert moved.step == 0
