"""Sets whose labels say a known thing: what must destroy it does, and what must not does not."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.policies import parse_policy
from diptych.errors import ImagesError
from diptych.evaluation.confidence import estimate
from diptych.evaluation.labelled import Labelled, labelled_parts
from diptych.evaluation.operations import costs as costs_module
from diptych.evaluation.operations.costs import DESTROYS, Costs, _parts, measure_costs
from diptych.evaluation.operations.of_run import measure_views
from diptych.evaluation.operations.proposal import words_of
from diptych.evaluation.operations.readers import fit_ridge
from diptych.evaluation.operations.trials import trial_of
from diptych.evaluation.subject import PIXELS, TRAINED
from diptych.images.collection import Collection, ImageSet
from diptych.images.open import from_array

SIDE = 24
VIEWS = ViewsConfig(side_pixels=SIDE)


def labelled_of(images: NDArray[np.uint8], labels: NDArray[np.int64]) -> Labelled:
    """One set, of which a fifth is what a run is measured on."""
    found = labelled_parts(Collection(from_array(images, labels, ImagesConfig()), None, ""))
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


def by_small_object(count: int = 400) -> Labelled:
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
    assert (found.train_images, found.test_images) == (96, 24)


def test_labels_that_nothing_reads_say_nothing_of_operations() -> None:
    rng = np.random.default_rng(3)
    images = rng.integers(0, 255, (100, SIDE, SIDE, 3)).astype(np.uint8)
    with ThreadPoolExecutor(1) as executor:
        found = measure_costs(labelled_of(images, np.arange(100) % 2), [], VIEWS, executor)
    assert not found.readable


def unseen(labelled: Labelled) -> Labelled:
    """The same without the images that a run is measured on: who reads them fails."""
    nothing: Any = None
    return replace(labelled, test=nothing, test_labels=nothing, groups=nothing)


def test_no_image_is_looked_at_that_a_run_is_measured_on() -> None:
    labelled = by_side()
    trials = [trial_of(parse_policy("flip")[1])]
    with ThreadPoolExecutor(1) as executor:
        found, blind = (
            measure_costs(one, trials, VIEWS, executor) for one in (labelled, unseen(labelled))
        )
    assert found == blind
    assert "fitted on 96, measured on 24 others" in found.on_images


def test_parts_of_a_sets_own_are_kept_apart_as_they_are() -> None:
    """Whoever made them may have known which images are of one thing."""
    images = by_side().whole
    assert images is not None
    assert images.labels is not None
    train, test = images.select(np.arange(110)), images.select(np.arange(110, 150))
    labelled = labelled_parts(Collection(train, test, ""))
    assert labelled is not None
    fitted, measured = _parts(labelled, 1000, 1000)
    assert (len(fitted.images), len(measured.images)) == (110, 40)
    assert measured.labels.tolist() == images.labels[110:].tolist()
    with ThreadPoolExecutor(1) as executor:
        found = measure_costs(labelled, [], VIEWS, executor)
    assert "fitted on 110 images, measured on 40 that it holds out" in found.on_images
    assert "flatters a run with views that were chosen by them" in found.on_images


def of_videos(count: int, frames: int) -> ImageSet:
    """Of two classes in turn; every video is brighter at one side, and each frame has noise."""
    videos = np.repeat(np.arange(count), frames)
    rng = np.random.default_rng(6)
    pixels = rng.integers(60, 120, (len(videos), SIDE, SIDE, 3))
    pixels[videos % 2 == 0, :, : SIDE // 2] += 60
    images = from_array(pixels.astype(np.uint8), videos % 2, ImagesConfig())
    return replace(images, names=[f"v{one:02}_{row:03}.png" for row, one in enumerate(videos)])


def test_a_video_is_fitted_or_measured_on_and_drawn_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = labelled_parts(Collection(of_videos(40, 5), None, ""), group_by="name:(v[0-9]+)_")
    assert labelled is not None
    fitted, measured = _parts(labelled, 60, 1000)
    sides = [{name[:3] for name in part.images.names} for part in (fitted, measured)]
    assert not sides[0] & sides[1]
    assert (len(fitted.images), len(measured.images)) == (60, 30)
    for part in (fitted, measured):
        assert part.units is not None
        pairs = {*zip((n[:3] for n in part.images.names), part.units.tolist(), strict=True)}
        assert len(pairs) == len({name for name, _ in pairs}) == len({unit for _, unit in pairs})
        assert part.labels.tolist() == [int(name[1:3]) % 2 for name in part.images.names]
    drawn, left_out = list[int](), list[int]()

    def drawing(*given: Any, units: NDArray[np.int64]) -> Any:
        drawn.append(len(np.unique(units)))
        return estimate(*given, units=units)

    def fitting(features: Any, labels: Any, units: NDArray[np.int64]) -> Any:
        left_out.append(len(np.unique(units)))
        return fit_ridge(features, labels, units)

    monkeypatch.setattr(costs_module, "estimate", drawing)
    monkeypatch.setattr(costs_module, "fit_ridge", fitting)
    with ThreadPoolExecutor(1) as executor:
        measure_costs(labelled, [trial_of(parse_policy("flip")[1])], VIEWS, executor)
    assert set(drawn) == {6}
    assert set(left_out) == {26}


def test_what_a_run_lost_is_measured_apart_from_what_its_views_cost() -> None:
    labelled = labelled_parts(Collection(of_videos(40, 5), None, ""), group_by="name:(v[0-9]+)_")
    assert labelled is not None
    truth = labelled.train_labels, labelled.test_labels
    features = {
        TRAINED: tuple(torch.zeros(len(one), 1) for one in truth),
        PIXELS: tuple(one[:, None].float() for one in truth),
    }
    with ThreadPoolExecutor(1) as executor:
        runtime = SimpleNamespace(executor=executor, counting=lambda words: lambda *done: None)
        config = SimpleNamespace(views=replace(VIEWS, policy="center + flip"))
        subject: Any = SimpleNamespace(
            labelled=labelled, features=features, config=config, runtime=runtime
        )
        found = measure_views(subject)["views"]
    assert found["clean"][PIXELS]["value"] == 1.0
    # Eight videos of which all frames are right say no more than eight images.
    assert found["clean"][PIXELS]["low"] == pytest.approx(0.025 ** (1 / 8))
    assert found["split"]["test_units"] == 8
    assert "fitted on 130, measured on 30 others" in found["operations_on"]


@pytest.mark.parametrize(("videos", "frames", "classes"), [(5, 5, 1), (4, 1, 0)])
def test_too_few_groups_to_cut_once_more_are_refused(
    videos: int, frames: int, classes: int
) -> None:
    images = of_videos(videos, frames)
    labelled = labelled_parts(Collection(images, None, ""), group_by="name:(v[0-9]+)_")
    assert labelled is not None
    words = f"two classes or more .* among the {frames * (videos - 2)} to fit on; got {classes}"
    with ThreadPoolExecutor(1) as executor, pytest.raises(ImagesError, match=words):
        measure_costs(labelled, [], VIEWS, executor)
