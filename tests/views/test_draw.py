"""ViewParameters: a pure function with the right distributions."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import ColorJitter, GaussianBlur, RandomResizedCrop

from diptych.config.data import ViewsConfig
from diptych.config.policies import (
    OPERATIONS,
    PRESETS,
    Blur,
    Center,
    Color,
    Crop,
    Policy,
    branches,
    parse_policy,
)
from diptych.views import parameters as codes
from diptych.views.draw import centre_views, draw_views, five_views
from diptych.views.parameters import (
    AFFINE,
    BLUR,
    COLOR,
    CUTOUT,
    JITTER_ORDERS,
    NOISE,
    ViewParameters,
)
from diptych.views.philox import philox

PLAIN = parse_policy("crop + flip + color + gray(0.2) + blur(0.5)")
SLOTS = {"flip": 0, "color": 1, "gray": 2, "blur": 3}
SIDE = 32


def draw(
    policy: Policy | str = PLAIN,
    *,
    indices: NDArray[np.int64] | None = None,
    count: int = 4000,
    size: tuple[int, int] = (480, 640),
    epoch: int = 3,
    seed: int = 11,
    strength: float = 1.0,
    first_view: int = 0,
) -> ViewParameters:
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    indices = np.arange(count) if indices is None else indices
    heights, widths = (np.full(len(indices), n, dtype=np.int64) for n in size)
    return draw_views(
        (policy, policy),
        strength=strength,
        side_pixels=SIDE,
        seed=seed,
        epoch=epoch,
        indices=indices,
        heights=heights,
        widths=widths,
        first_view=first_view,
    )


def same(one: ViewParameters, other: ViewParameters) -> bool:
    return np.array_equal(one.crops, other.crops) and np.array_equal(one.steps, other.steps)


@pytest.mark.parametrize("key", [(0, 0), (7, 0x56494557), (2**63 - 1, 2**64 - 1)])
@pytest.mark.parametrize("counter", [(1, 0, 0, 0), (12, 1, 10**12, 2**40), (5, 6, 7, 8)])
def test_philox_equals_numpys(key: tuple[int, int], counter: tuple[int, int, int, int]) -> None:
    # NumPy steps its counter before it draws.
    before = np.array([counter[0] - 1, *counter[1:]], dtype=np.uint64)
    theirs = np.random.Philox(key=np.array(key, dtype=np.uint64), counter=before).random_raw(4)
    ours = philox(*(np.uint64(n) for n in (*key, *counter)))
    assert [int(n) for n in ours] == theirs.tolist()


@pytest.mark.parametrize(
    "policy", [PLAIN, "crop(0.5) + rand_augment(0.7, count=3) + noise + cutout"]
)
def test_parameters_do_not_depend_on_the_batch(policy: Policy | str) -> None:
    together = draw(policy, count=64)
    order = np.random.default_rng(0).permutation(64)
    shuffled = draw(policy, indices=order)
    assert np.array_equal(together.crops[:, order], shuffled.crops)
    assert np.array_equal(together.steps[:, order], shuffled.steps)
    assert same(together.images(slice(17, 18)), draw(policy, indices=np.array([17])))


@pytest.mark.parametrize("change", [{"epoch": 4}, {"seed": 12}, {"first_view": 2}])
def test_parameters_change_with_epoch_seed_and_view(change: dict[str, int]) -> None:
    one, other = draw("crop + color(1)", count=100), draw("crop + color(1)", count=100, **change)  # type: ignore[arg-type]
    assert not (one.steps[..., 2] == other.steps[..., 2]).any()


def test_the_views_of_an_image_differ_and_keep_their_numbers() -> None:
    pair = draw("crop + color(1)", count=200)
    assert not (pair.steps[0, :, 0, 2] == pair.steps[1, :, 0, 2]).any()
    assert same(
        pair.views(slice(1, 2)), draw("crop + color(1)", count=200, first_view=1).views(slice(1))
    )


def test_leaving_an_operation_out_leaves_the_others_alone() -> None:
    whole, without = draw(), draw("crop + color + gray(0.2)")
    assert np.array_equal(whole.crops, without.crops)
    assert np.array_equal(whole.steps[:, :, 1:3], without.steps)


def test_an_order_of_operations_is_kept() -> None:
    whole, turned = draw(), draw("crop + blur(0.5) + gray(0.2) + color + flip")
    assert np.array_equal(whole.steps[:, :, ::-1], turned.steps)


def test_two_of_a_kind_draw_apart() -> None:
    twice = draw("crop + flip + flip", count=400).steps[0, :, :, 0]
    agree = (twice[:, 0] == twice[:, 1]).mean()
    assert 0.35 < agree < 0.65


@pytest.mark.parametrize("size", [(480, 640), (32, 32), (300, 100)])
def test_crops_are_distributed_as_torchvisions(size: tuple[int, int]) -> None:
    ours = draw("crop(area=0.08..1)", count=6000, size=size).crops[0]
    torch.manual_seed(0)
    image = torch.empty(1, *size)
    theirs = np.array(
        [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(6000)]
    )
    for column, name in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(ours[name], theirs[:, column]).pvalue > 1e-3, name


@pytest.mark.slow
@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "identity"])
@pytest.mark.parametrize("branch", [0, 1])
def test_presets_are_distributed_as_torchvisions_sampling(preset: str, branch: int) -> None:
    """Every parameter against 100,000 draws of torchvision's own transforms."""
    count = 100_000
    policy = branches(preset, None)[branch]
    drawn = draw(policy, count=count)
    torch.manual_seed(1)
    crop = next(one for one in policy if isinstance(one, Crop))
    image = torch.empty(1, 480, 640)
    theirs = np.array(
        [
            RandomResizedCrop.get_params(image, list(crop.area), list(crop.aspect))
            for _ in range(count)
        ]
    )
    for column, name in enumerate(("top", "left", "height", "width")):
        assert ks_2samp(drawn.crops[name][0], theirs[:, column]).pvalue > 1e-4, name
    for slot, operation in enumerate(policy[1:]):
        assert not isinstance(operation, Center)
        steps = drawn.steps[0, :, slot]
        happened = steps[:, 0] != codes.NOTHING
        error = 4 * math.sqrt(
            max(operation.probability * (1 - operation.probability), 1e-9) / count
        )
        assert happened.mean() == pytest.approx(operation.probability, abs=error)
        if isinstance(operation, Color):
            jitter = ColorJitter(
                operation.brightness, operation.contrast, operation.saturation, operation.hue
            )
            sampled = [
                ColorJitter.get_params(
                    jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
                )
                for _ in range(count)
            ]
            for number in range(4):
                theirs = np.array([one[1 + number] for one in sampled])
                assert ks_2samp(steps[happened, 2 + number], theirs).pvalue > 1e-4, number
            orders = np.array([tuple(one[0].tolist()) for one in sampled])
            ours = JITTER_ORDERS[steps[happened, 1].astype(int)]
            for position in range(4):  # which change comes at which place
                a, b = (np.bincount(o[:, position], minlength=4) / len(o) for o in (ours, orders))
                assert np.abs(a - b).max() < 0.01
        if isinstance(operation, Blur):
            sigma = [GaussianBlur.get_params(*operation.sigma) for _ in range(count)]
            assert ks_2samp(steps[happened, 1], np.array(sigma)).pvalue > 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2), (33, 47)])
def test_crops_lie_inside_the_image(size: tuple[int, int]) -> None:
    crops = draw("crop(area=0.001..1)", size=size, count=500).crops
    assert (crops["top"] >= 0).all()
    assert (crops["left"] >= 0).all()
    assert (crops["height"] >= 1).all()
    assert (crops["width"] >= 1).all()
    assert (crops["top"] + crops["height"] <= size[0]).all()
    assert (crops["left"] + crops["width"] <= size[1]).all()


def test_a_crop_that_does_not_happen_is_the_centre() -> None:
    drawn = draw("crop(0.5)", count=4000)
    centre = centre_views(np.array([480]), np.array([640])).crops[0, 0]
    assert np.mean(drawn.crops[0] == centre) == pytest.approx(0.5, abs=0.04)
    assert (draw("center", count=10).crops == centre).all()


def test_factors_are_uniform_and_switches_have_their_probabilities() -> None:
    steps = draw(count=20000).steps[1]
    for name, wanted in (("flip", 0.5), ("color", 0.8), ("gray", 0.2), ("blur", 0.5)):
        happened = steps[:, SLOTS[name], 0] != codes.NOTHING
        assert happened.mean() == pytest.approx(wanted, abs=0.015), name
    color = steps[steps[:, 1, 0] == COLOR, 1]
    for column, low, span in ((2, 0.6, 0.8), (3, 0.6, 0.8), (4, 0.6, 0.8), (5, -0.1, 0.2)):
        assert kstest(color[:, column], "uniform", args=(low, span)).pvalue > 1e-3, column
    blur = steps[steps[:, 3, 0] == BLUR, 3]
    assert kstest(blur[:, 1], "uniform", args=(0.1, 1.9)).pvalue > 1e-3
    orders = np.bincount(color[:, 1].astype(int), minlength=24)
    assert len(orders) == 24
    assert abs(orders - len(color) / 24).max() < 150


def test_switches_of_different_operations_are_independent() -> None:
    happened = draw(count=20000).steps[0, :, :, 0] != codes.NOTHING
    for a in range(4):
        for b in range(a):
            both, apart = (happened[:, a] & happened[:, b]).mean(), happened[:, [a, b]].mean(axis=0)
            assert both == pytest.approx(apart.prod(), abs=0.015)


def test_strength_multiplies_the_colour_and_nothing_else() -> None:
    one, half = draw(), draw(strength=0.5)
    assert np.array_equal(one.crops, half.crops)
    assert np.array_equal(np.delete(one.steps, 1, axis=2), np.delete(half.steps, 1, axis=2))
    color, weaker = one.steps[0, :, 1], half.steps[0, :, 1]
    happened = color[:, 0] == COLOR
    np.testing.assert_allclose(color[happened, 2:5] - 1, 2 * (weaker[happened, 2:5] - 1))
    np.testing.assert_allclose(color[happened, 5], 2 * weaker[happened, 5])


def test_a_change_above_one_is_cut_at_zero() -> None:
    factors = draw("crop + color(1, brightness=1.5)", count=5000).steps[0, :, 0, 2]
    assert kstest(factors, "uniform", args=(0.0, 2.5)).pvalue > 1e-3


def test_other_operations_draw_from_their_ranges() -> None:
    policy = (
        "crop + rotate(degrees=-20..50) + solarize(1, threshold=0.3..0.9) + posterize(1, bits=3..5)"
        " + sharpen(1, factor=0.5..1.5) + noise(1, sigma=0.1..0.2) + quarter_turns(1) + cutout(1)"
    )
    steps = draw(policy, count=5000).steps[0]
    angle = np.rad2deg(np.arctan2(steps[:, 0, 4], steps[:, 0, 1]))
    for values, low, span in (
        (angle, -20, 70),
        (steps[:, 1, 1], 0.3, 0.6),
        (steps[:, 3, 1], 0.5, 1.0),
        (steps[:, 4, 1], 0.1, 0.1),
    ):
        assert kstest(values, "uniform", args=(low, span)).pvalue > 1e-3
    for values, wanted in ((steps[:, 2, 1], [8, 16, 32]), (steps[:, 5, 1], [1, 2, 3])):
        found, counts = np.unique(values, return_counts=True)
        assert found.tolist() == wanted
        assert abs(counts - 5000 / 3).max() < 150
    assert (steps[:, 4, 2:4] == np.floor(steps[:, 4, 2:4])).all()  # keys of the noise
    assert len(np.unique(steps[:, 4, 2])) > 4990
    assert steps[0, 4, 0] == NOISE
    top, left, height, width = steps[:, 6, 1:5].T
    assert steps[0, 6, 0] == CUTOUT
    assert ((top >= 0) & (left >= 0) & (top + height <= SIDE) & (left + width <= SIDE)).all()
    assert (height * width / SIDE**2).mean() == pytest.approx(0.15, abs=0.01)


def test_rand_augment_draws_all_of_its_operations_as_often() -> None:
    steps = draw("crop + rand_augment(count=2, magnitude=30)", count=14000).steps[0]
    assert steps.shape[1] == 2
    for slot in range(2):
        kinds = np.bincount(steps[:, slot, 0].astype(int), minlength=16)
        # Five of fourteen are affine, three change one part of the colour.
        expected = {AFFINE: 5, COLOR: 3, codes.NOTHING: 1, codes.SHARPEN: 1, codes.POSTERIZE: 1}
        expected |= {codes.SOLARIZE: 1, codes.EQUALIZE: 1, codes.AUTO_CONTRAST: 1}
        for kind, share in expected.items():
            assert kinds[kind] == pytest.approx(1000 * share, rel=0.12)
        assert kinds.sum() == 14000
    turns = steps[(steps[..., 0] == AFFINE) & (steps[..., 1] != 1.0)]
    np.testing.assert_allclose(np.abs(np.rad2deg(np.arcsin(turns[:, 4]))), 30)
    together = (steps[:, 0, 0] == codes.EQUALIZE) & (steps[:, 1, 0] == codes.EQUALIZE)
    assert together.mean() == pytest.approx(1 / 196, abs=0.003)


def test_every_operation_can_be_drawn() -> None:
    for name in OPERATIONS:
        alone = name if name in ("crop", "center") else f"center + {name}"
        steps = draw(alone, count=300).steps
        assert (steps != 0).any() or steps.shape[2] == 0, name


def test_policies_of_different_lengths_share_a_table() -> None:
    views = draw_views(
        (parse_policy("crop + gray(1)"), PLAIN),
        side_pixels=SIDE,
        seed=0,
        epoch=0,
        indices=np.arange(5),
        heights=np.full(5, 40),
        widths=np.full(5, 40),
    )
    assert views.steps.shape[:3] == (2, 5, 4)
    assert (views.steps[0, :, 0, 0] == codes.GRAY).all()
    assert (views.steps[0, :, 1:] == 0).all()


def test_centre_is_the_largest_square() -> None:
    view = centre_views(np.array([480]), np.array([640]))
    assert view.crops[0, 0].tolist() == (0, 80, 480, 480, 0)
    assert view.steps.shape[2] == 0


def test_five_views_are_the_corners_and_the_centre() -> None:
    crops = five_views(np.array([480]), np.array([640])).crops[:, 0]
    assert crops["height"].tolist() == [420] * 5
    assert list(zip(crops["top"], crops["left"], strict=True)) == [
        (0, 0),
        (0, 220),
        (60, 0),
        (60, 220),
        (30, 110),
    ]


@pytest.mark.parametrize("policy", ["crop(area=0.3..1)", "crop(area=0.08..0.1, aspect=0.5..1)"])
def test_no_crop_of_an_image_as_large_as_the_views_need_is_enlarged(policy: str) -> None:
    least = ViewsConfig(side_pixels=SIDE, policy=policy).image_side
    drawn = [draw(policy, count=3000, size=(least, width)) for width in (least, 3 * least)]
    shorter = [np.minimum(one.crops["height"], one.crops["width"]).min() for one in drawn]
    assert min(shorter) >= SIDE - 1  # crops are whole pixels
    assert shorter[0] < 1.1 * SIDE  # and hardly larger than it has to be


def test_evaluation_enlarges_no_image_as_large_as_the_views_need() -> None:
    least = ViewsConfig(side_pixels=SIDE, policy="identity").image_side
    assert five_views(np.array([least]), np.array([least])).crops["height"].min() >= SIDE - 1


def test_scaled_crops_keep_their_share_of_the_image() -> None:
    drawn = draw(count=4)
    half = drawn.scaled(np.full(4, 0.5), np.full(4, 0.25))
    np.testing.assert_array_equal(half.crops["top"] * 2, drawn.crops["top"])
    np.testing.assert_array_equal(half.crops["width"] * 4, drawn.crops["width"])
    assert half.steps is drawn.steps


def test_areas_of_crops_follow_their_range() -> None:
    shares = [
        (draw(f"crop(area={low}..{low})", count=50).crops[["height", "width"]], low)
        for low in (0.1, 0.4, 0.8)
    ]
    means = [np.mean(crops["height"] * crops["width"]) / (480 * 640) for crops, _ in shares]
    for mean, (_, low) in zip(means, shares, strict=True):
        assert mean == pytest.approx(low, rel=0.02)
    assert all(a < b for a, b in pairwise(means))
