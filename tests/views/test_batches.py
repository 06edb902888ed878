"""A batch says what it shows; views of groups show other images of the group."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from diptych.configs import ImagesConfig, ViewsConfig
from diptych.images.groups import Groups
from diptych.images.order import Order
from diptych.images.sources import from_array
from diptych.views.batches import Batch, ViewBatches

VIEWS = ViewsConfig(side_pixels=16)
GROUPS = Groups.of(np.array([0, 0, 0, 1, 1, 2, 3, 3]))


@pytest.fixture
def make(executor: ThreadPoolExecutor, rng: np.random.Generator):  # type: ignore[no-untyped-def]
    pixels = rng.integers(0, 256, (8, 20, 20, 3), dtype=np.uint8)
    images = from_array(pixels, np.arange(8) % 2, ImagesConfig())

    def build(groups: Groups | None, views: int = 2) -> ViewBatches:
        return ViewBatches(images, Order(3, 8, 4), (VIEWS,) * views, executor, groups)

    return build


def test_a_batch_names_its_images_step_groups_and_labels(make) -> None:  # type: ignore[no-untyped-def]
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


def test_views_of_a_group_are_those_of_the_partners(make) -> None:  # type: ignore[no-untyped-def]
    """View v of a row is view v of the image that it shows, as that image would have it alone."""
    alone, grouped = make(None, views=3), make(GROUPS, views=3)
    indices = np.arange(8)
    shown = GROUPS.partners(indices, seed=3, epoch=5, views=3)
    views = grouped.of(indices, epoch=5)
    for view in range(3):
        assert torch.equal(views[view], alone.of(shown[view], epoch=5)[view])
    assert torch.equal(views[0], alone.of(indices, epoch=5)[0])
    assert not torch.equal(views[1], alone.of(indices, epoch=5)[1])


def test_more_views_leave_the_first_two_as_they_were(make) -> None:  # type: ignore[no-untyped-def]
    two, four = make(None, 2).at(0), make(None, 4).at(0)
    assert len(four.views) == 4
    for one, other in zip(two.views, four.views[:2], strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(four.views[2], four.views[3])


def test_a_batch_goes_to_a_device_whole(make) -> None:  # type: ignore[no-untyped-def]
    moved = make(GROUPS).at(0).to(torch.device("meta"))
    assert {view.device.type for view in moved.views} == {"meta"}
    assert moved.indices.device.type == moved.groups.device.type == "meta"
    assert moved.labels.device.type == "meta"
    assert moved.step == 0
