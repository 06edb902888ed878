"""What the head throws away: encoders and heads that keep a known part of an image, and no more."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.errors import ImagesError
from diptych.evaluation.features import layered_network
from diptych.evaluation.transformations import (
    TASKS,
    VERSIONS,
    draw_versions,
    probe,
    probe_layers,
    split_images,
)
from diptych.images.collection import ImageSet
from diptych.images.open import from_array
from diptych.runtime.devices import Runtime
from diptych.views.cpu import SizedViews, load_views, to_pixels

RUNTIME = Runtime(threads=1)
VIEWS = ViewsConfig(side_pixels=16)


class Known(nn.Module):
    """Gives statistics of normalised images that are known in closed form."""

    def __init__(self, parts: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.parts = parts
        self.nothing = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.parts(images)


def colourfulness(images: Tensor) -> Tensor:
    """How far channels are apart, after undoing the normalisation: 0 for gray. (batch, 1)"""
    mean, std = torch.tensor(VIEWS.pixel_mean), torch.tensor(VIEWS.pixel_std)
    pixels = images * std[:, None, None] + mean[:, None, None]
    return (pixels.amax(dim=1) - pixels.amin(dim=1)).mean(dim=(1, 2))[:, None]


def tilt(images: Tensor) -> Tensor:
    """Brightness from top to bottom and from left to right. (batch, 2)"""
    ramp = torch.linspace(-1, 1, images.shape[-1])
    down = (images.mean(dim=(1, 3)) * ramp).mean(dim=1)
    return torch.stack([down, (images.mean(dim=(1, 2)) * ramp).mean(dim=1)], dim=1)


@pytest.fixture
def lit() -> ImageSet:
    """Colourful images, each brighter at its top."""
    rng = np.random.default_rng(2)
    light = np.linspace(1.0, 0.2, 20)[None, :, None, None]
    color = rng.uniform(150, 250, (240, 1, 1, 1)) * np.array([1.0, 0.55, 0.2])
    pixels = light * color + rng.normal(0, 4, (240, 20, 20, 3))
    return from_array(np.clip(pixels, 0, 255).astype(np.uint8), None, ImagesConfig())


def accuracies(found: dict[str, Any], layer: str) -> dict[str, float]:
    return {task: one["value"] for task, one in found["layers"][layer].items()}


def test_an_encoder_of_colour_knows_gray_and_no_rotation(lit: ImageSet) -> None:
    found = probe_layers(layered_network(Known(colourfulness), None), lit, VIEWS, RUNTIME)
    reached = accuracies(found, "h")
    assert reached["color or gray"] == 1.0
    rotation = found["layers"]["h"]["rotation"]
    assert rotation["low"] - 0.02 <= 0.25 <= rotation["high"] + 0.02
    assert found["tasks"]["rotation"]["chance"] == 0.25
    assert (found["train_images"], found["test_images"]) == (160, 80)


def test_an_encoder_of_light_knows_rotation_and_no_gray(lit: ImageSet) -> None:
    found = probe_layers(layered_network(Known(tilt), None), lit, VIEWS, RUNTIME)
    reached = accuracies(found, "h")
    assert reached["rotation"] > 0.97
    assert reached["color or gray"] < 0.75


def test_a_head_throws_away_what_it_projects_away(lit: ImageSet) -> None:
    encoder = Known(lambda images: torch.cat([colourfulness(images), tilt(images)], dim=1))
    keep_tilt, keep_color = nn.Linear(3, 2, bias=False), nn.Linear(3, 1, bias=False)
    keep_tilt.weight.data = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    keep_color.weight.data = torch.tensor([[1.0, 0.0, 0.0]])
    no_color = probe_layers(layered_network(encoder, keep_tilt), lit, VIEWS, RUNTIME)
    no_tilt = probe_layers(layered_network(encoder, keep_color), lit, VIEWS, RUNTIME)
    for found in (no_color, no_tilt):
        assert accuracies(found, "h")["color or gray"] == 1.0
        assert accuracies(found, "h")["rotation"] > 0.97
    assert accuracies(no_color, "g(h)")["rotation"] > 0.97
    assert accuracies(no_color, "g(h)")["color or gray"] < 0.75
    assert accuracies(no_tilt, "g(h)")["color or gray"] == 1.0
    assert accuracies(no_tilt, "g(h)")["rotation"] < 0.35
    lost = no_tilt["thrown_away"]
    assert lost["rotation"]["low"] > 0.5
    assert lost["color or gray"]["value"] == 0.0
    assert lost["color or gray"]["low"] == -lost["color or gray"]["high"]


@pytest.mark.slow
def test_every_layer_of_a_head_is_probed_and_pixels(lit: ImageSet) -> None:
    head = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    encoder = Known(lambda images: torch.cat([colourfulness(images), tilt(images)], dim=1))
    found = probe_layers(layered_network(encoder, head), lit, VIEWS, RUNTIME, pixels=True)
    assert list(found["layers"]) == ["h", "hidden 1", "g(h)", "pixels"]
    assert accuracies(found, "pixels")["rotation"] > 0.97
    assert accuracies(found, "pixels")["original or Sobel"] > 0.97
    again = probe_layers(layered_network(encoder, head), lit, VIEWS, RUNTIME, pixels=True)
    assert again == found


def test_versions_are_what_they_say(lit: ImageSet, executor: ThreadPoolExecutor) -> None:
    indices, names = np.arange(6), list(VERSIONS)
    drawn = draw_versions(names, indices, lit.heights[:6], lit.widths[:6], side_pixels=16, seed=4)
    made = load_views(lit, indices, [SizedViews(drawn, 16)], VIEWS, executor)[0]
    pixels: NDArray[np.uint8] = to_pixels(made, VIEWS)
    shown = dict(zip(names, pixels, strict=True))
    original = shown["original"]
    for turns in (1, 2, 3):
        turned = np.rot90(original, turns, axes=(1, 2))
        np.testing.assert_array_equal(shown[f"turned {90 * turns}"], turned)
    luma = np.rint(original @ np.array([0.299, 0.587, 0.114]))[..., None]
    assert np.abs(shown["gray"].astype(int) - luma).max() <= 1
    noise = shown["noisy"].astype(float) - original
    assert noise[(original > 60) & (original < 190)].std() == pytest.approx(25.5, rel=0.1)
    assert shown["edges"].mean() < original.mean()


def test_no_image_is_on_both_sides() -> None:
    train, test = split_images(100, 0)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(100))


def test_a_probe_that_cannot_know_is_at_chance() -> None:
    same = torch.randn(900, 5, generator=torch.Generator().manual_seed(0))
    train, test = split_images(900, 1)
    # Versions that are equal: whatever is said is right for exactly one of the two.
    assert probe([same, same], train, test).value == 0.5


def test_the_interval_draws_images(rng: np.random.Generator) -> None:
    features = torch.from_numpy(rng.normal(size=(3000, 1))).float()
    train, test = split_images(3000, 0)
    _, low, high = probe([features, features + 1.5], train, test).interval()
    # Shifted normals: the best bound is right with Phi(0.75).
    assert low < 0.7734 < high
    assert 0.02 < high - low < 0.06


def test_the_interval_draws_whole_groups(rng: np.random.Generator) -> None:
    groups = np.repeat(np.arange(300), 5)
    offsets = torch.from_numpy(rng.normal(size=300)).float()[groups][:, None]
    train, test = split_images(1500, 0, groups)
    # By a threshold at 0.75: all images of a group are right in as many versions.
    found = probe([offsets, offsets + 1.5], train, test, groups=groups)
    images = probe([offsets, offsets + 1.5], train, test)
    bound = float((offsets[train].mean() + (offsets + 1.5)[train].mean()) / 2)
    of = np.unique(groups[test.numpy()])
    one_of_each = torch.from_numpy(np.searchsorted(groups, of))
    first, second = offsets[one_of_each, 0], offsets[one_of_each, 0] + 1.5
    shares = (((first < bound).double() + (second >= bound).double()) / 2).numpy()
    theirs = stats.bootstrap(
        (shares,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(0)
    ).confidence_interval
    assert found.value == pytest.approx(shares.mean(), abs=0.03)
    half = (found.interval().high - found.interval().low) / 2
    assert half == pytest.approx((theirs.high - theirs.low) / 2, rel=0.2)
    assert half > 0.8 * images.interval().high - 0.8 * images.interval().low  # 5 ** 0.5 / 2 of it
    alone = probe([offsets, offsets + 1.5], train, test, groups=np.arange(1500))
    assert alone.draws.tobytes() == images.draws.tobytes()


def test_gray_images_are_not_asked_for_colour() -> None:
    rng = np.random.default_rng(0)
    images = from_array(
        rng.integers(0, 255, (60, 16, 16), np.uint8), None, ImagesConfig(color="gray")
    )
    found = probe_layers(layered_network(Known(tilt), None), images, VIEWS, RUNTIME)
    assert set(found["tasks"]) == set(TASKS) - {"color or gray"}


def test_the_groups_that_are_drawn_are_counted(lit: ImageSet) -> None:
    groups = np.arange(240) // 4
    found = probe_layers(layered_network(Known(tilt), None), lit, VIEWS, RUNTIME, groups=groups)
    assert (found["test_images"], found["test_units"]) == (80, 20)


def test_too_few_images_are_refused() -> None:
    images = from_array(np.zeros((5, 16, 16, 3), np.uint8), None, ImagesConfig())
    with pytest.raises(ImagesError, match="wanted 30 images or more"):
        probe_layers(layered_network(Known(tilt), None), images, VIEWS, RUNTIME)
