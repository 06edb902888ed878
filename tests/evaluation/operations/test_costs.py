"""Sets whose labels say a known thing: what must destroy it does, and what must not does not."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.policies import parse_policy
from diptych.errors import ImagesError
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.operations.costs import DESTROYS, Costs, measure_costs
from diptych.evaluation.operations.proposal import words_of
from diptych.evaluation.operations.trials import trial_of
from diptych.images.collection import Collection
from diptych.images.open import from_array

SIDE = 24
VIEWS = ViewsConfig(side_pixels=SIDE)


def labelled_of(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Labelled:
    """The last two fifths are measured on."""
    cut = len(images) * 3 // 5
    config = ImagesConfig()
    train = from_array(images[:cut], labels[:cut], config)
    test = from_array(images[cut:], labels[cut:], config)
    found = labelled_parts(Collection(train, test, ""))
    assert found is not None
    return found


def by_color(count: int = 150) -> Labelled:
    rng = np.random.default_rng(0)
    labels = np.arange(count) % 3
    images = rng.integers(60, 100, (count, SIDE, SIDE, 3))
    images[np.arange(count), :, :, labels] += 80
    return labelled_of(images.astype(np.uint8), labels)


def by_side(count: int = 150) -> Labelled:
    """Left or right is bright."""
    rng = np.random.default_rng(1)
    labels = np.arange(count) % 2
    images = rng.integers(60, 120, (count, SIDE, SIDE, 3))
    images[labels == 0, :, : SIDE // 2] += 80
    images[labels == 1, :, SIDE // 2 :] += 80
    return labelled_of(images.astype(np.uint8), labels)


def by_small_object(count: int = 240) -> Labelled:
    """A dot somewhere, or none."""
    rng = np.random.default_rng(2)
    labels = np.arange(count) % 2
    images = rng.integers(100, 112, (count, SIDE, SIDE, 3))
    for index in np.flatnonzero(labels):
        top, left = rng.integers(0, SIDE - 6, 2)
        images[index, top : top + 6, left : left + 6] = 250
    return labelled_of(images.astype(np.uint8), labels)


def words(labelled: Labelled, *operations: str) -> dict[str, str]:
    """What is said of operations, each as in a policy."""
    trials = [trial_of(parse_policy(one)[-1]) for one in operations]
    with ThreadPoolExecutor(1) as executor:
        found = measure_costs(labelled, trials, VIEWS, executor)
    assert found.readable
    return dict(zip(operations, (word for _, word in words_of(found)), strict=True))


def test_labels_of_colour_are_destroyed_by_hue_and_not_by_crops() -> None:
    hue = "center + color(1, brightness=0, contrast=0, saturation=0, hue=0.5)"
    found = words(by_color(), hue, "center + gray(1)", "crop(area=0.08..1)", "center + flip")
    assert [word == DESTROYS for word in found.values()] == [True, True, False, False]


def test_labels_of_orientation_are_destroyed_by_flips_and_turns() -> None:
    found = words(
        by_side(),
        *("center + flip", "center + quarter_turns", "center + rotate(degrees=-180..180)"),
        *("center + vertical_flip", "crop(area=0.8..1)", "center + gray(1)"),
    )
    assert [word == DESTROYS for word in found.values()] == [True] * 3 + [False] * 3


def test_labels_of_a_small_object_are_destroyed_by_crops() -> None:
    found = words(
        by_small_object(),
        *("crop(area=0.08..1)", "center + flip", "center + vertical_flip"),
    )
    assert [word == DESTROYS for word in found.values()] == [True, False, False]


def test_what_is_destroyed_was_in_the_clean_images() -> None:
    labelled = by_side()
    with ThreadPoolExecutor(1) as executor:
        found: Costs = measure_costs(labelled, [trial_of(parse_policy("flip")[1])], VIEWS, executor)
    (cost,) = found.costs
    assert cost.clean == pytest.approx(1.0)
    assert cost.fixed == pytest.approx(0.5, abs=0.1)  # half of the views are flipped
    assert cost.destroyed.low > 0.2
    assert found.chance == 0.5
    assert (found.train_images, found.test_images) == (90, 60)


def test_labels_that_nothing_reads_say_nothing_of_operations() -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 255, (100, SIDE, SIDE, 3)).astype(np.uint8)
    with ThreadPoolExecutor(1) as executor:
        found = measure_costs(labelled_of(images, np.arange(100) % 2), [], VIEWS, executor)
    assert not found.readable


def test_one_class_on_both_sides_is_refused() -> None:
    images = np.zeros((10, SIDE, SIDE, 3), dtype=np.uint8)
    labels = np.arange(10) % 2
    config = ImagesConfig()
    train = from_array(images[:6], labels[:6], config)
    test = from_array(images[:2], labels[:2], config)
    both = labelled_parts(Collection(train, test, ""))
    assert both is not None
    labelled = both.select(np.arange(6), np.array([0]))  # of class 1 nothing is left to measure on
    with ThreadPoolExecutor(1) as executor, pytest.raises(ImagesError, match="two classes or more"):
        measure_costs(labelled, [], VIEWS, executor)
