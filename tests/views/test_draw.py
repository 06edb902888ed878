"""Draws: a pure function with the right distributions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop

from diptych.configs import ViewsConfig
from diptych.views.draw import VIEW, centre_views, draw_views, philox

CONFIG = ViewsConfig()


def draw(
    config: ViewsConfig = CONFIG,
    *,
    indices: NDArray[np.int64] | None = None,
    count: int = 4000,
    size: tuple[int, int] = (480, 640),
    epoch: int = 3,
    seed: int = 11,
) -> NDArray[np.void]:
    indices = np.arange(count) if indices is None else indices
    heights, widths = (np.full(len(indices), n, dtype=np.int64) for n in size)
    return draw_views(
        (config, config), seed=seed, epoch=epoch, indices=indices, heights=heights, widths=widths
    )


@pytest.mark.parametrize("key", [(0, 0), (7, 0x56494557), (2**63 - 1, 2**64 - 1)])
@pytest.mark.parametrize("counter", [(1, 0, 0, 0), (12, 1, 10**12, 2**40), (5, 6, 7, 8)])
def test_philox_equals_numpys(key: tuple[int, int], counter: tuple[int, int, int, int]) -> None:
    # NumPy steps its counter before it draws.
    before = np.array([counter[0] - 1, *counter[1:]], dtype=np.uint64)
    theirs = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=before).random_raw(4)
    ours = philox(*(np.uint64(n) for n in (*key, *counter)))
    assert [int(n) for n in ours] == theirs.tolist()


def test_parameters_do_not_depend_on_the_batch() -> None:
    together = draw(count=64)
    order = np.random.default_rng(0).permutation(64)
    shuffled = draw(indices=order)
    assert np.array_equal(together[:, order], shuffled)
    alone = draw(indices=np.array([17]))
    assert np.array_equal(together[:, 17:18], alone)


@pytest.mark.parametrize("change", [{"epoch": 4}, {"seed": 12}])
def test_parameters_change_with_epoch_and_seed(change: dict[str, int]) -> None:
    same = draw(count=100)["brightness"] == draw(count=100, **change)["brightness"]  # type: ignore[arg-type]
    assert not same.any()


def test_the_two_views_of_an_image_differ() -> None:
    first, second = draw(count=200)
    assert not (first["brightness"] == second["brightness"]).any()


def test_switching_an_operation_off_leaves_the_others_alone() -> None:
    plain, without = draw(), draw(replace(CONFIG, flip_probability=0.0, blur_probability=0.0))
    for name in set(VIEW.names or ()) - {"flip", "blur"}:
        assert np.array_equal(plain[name], without[name]), name
    assert not without["flip"].any()


@pytest.mark.parametrize("size", [(480, 640), (32, 32), (300, 100)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    config = replace(CONFIG, crop_area=(0.08, 1.0))
    ours = draw(config, count=6000, size=size)[0]
    torch.manual_seed(0)
    image = torch.empty(1, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)]
    )
    for column, name in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(ours[name], theirs[:, column]).pvalue > 1e-3, name


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (33, 47)])
def test_crops_lie_inside_the_image(size: tuple[int, int]) -> None:
    drawn = draw(size=size, count=500)
    assert (drawn["top"] >= 0).all()
    assert (drawn["left"] >= 0).all()
    assert (drawn["height"] >= 1).all()
    assert (drawn["width"] >= 1).all()
    assert (drawn["top"] + drawn["height"] <= size[0]).all()
    assert (drawn["left"] + drawn["width"] <= size[1]).all()


def test_factors_are_uniform_and_switches_have_their_probabilities() -> None:
    drawn = draw(count=20000)[1]
    for name, low, span in (
        ("brightness", 0.6, 0.8),
        ("contrast", 0.6, 0.8),
        ("saturation", 0.6, 0.8),
        ("hue", -0.1, 0.2),
        ("blur_sigma", 0.1, 1.9),
    ):
        assert kstest(drawn[name], "uniform", args=(low, span)).pvalue > 1e-3, name
    for name, wanted in (("flip", 0.5), ("jitter", 0.8), ("gray", 0.2), ("blur", 0.5)):
        assert drawn[name].mean() == pytest.approx(wanted, abs=0.015), name
    orders = np.bincount(drawn["jitter_order"], minlength=24)
    assert len(orders) == 24
    assert abs(orders - 20000 / 24).max() < 150


def test_a_change_above_one_is_cut_at_zero() -> None:
    drawn = draw(replace(CONFIG, brightness=1.5), count=5000)[0]
    assert kstest(drawn["brightness"], "uniform", args=(0.0, 2.5)).pvalue > 1e-3


def test_centre_is_the_largest_square() -> None:
    view = centre_views(np.array([480]), np.array([640]))[0, 0]
    assert (view["top"], view["left"], view["height"], view["width"]) == (0, 80, 480, 480)
    assert not any(view[name] for name in ("flip", "jitter", "gray", "blur"))
