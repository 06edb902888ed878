"""Policies in words: they say what the pixels show; docs/views.md lists every operation."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from diptych.config.data import ViewsConfig
from diptych.config.policies import OPERATIONS, PRESETS, parse_policy
from diptych.images.pixels import PixelBatch
from diptych.views.cpu import make_views
from diptych.views.draw import centre_views, draw_views
from diptych.views.preview.policy_in_words import (
    branches_in_words,
    operation_in_words,
    policy_as_toml,
)
from diptych.views.preview.policy_in_words import policy_in_words as in_words

DOCS = Path(__file__).parents[3] / "docs" / "views.md"
ODD = ("color(brightness=0,contrast=0)", "color(hue=0)", "sharpen(factor=1)", "noise(sigma=0)")


def test_one_operation_a_line_in_order() -> None:
    assert in_words(ViewsConfig(policy="simclr", side_pixels=96), 3) == [
        "crop, always: 8% to 100% of the area, width over height 0.75 to 1.33, resized to 96 x 96",
        "left-right flip, 50%",
        "colour jitter, 80%: brightness 0.8, contrast 0.8, saturation 0.8, hue 0.2",
        "colour dropped, 20%: each channel becomes the luma",
        "Gaussian blur, 50%: sigma 0.1 to 2 pixels, kernel 9 pixels wide",
    ]


@pytest.mark.parametrize(
    ("channels", "gray"),
    [
        (1, "nothing to drop in one channel"),
        (2, "each channel becomes the mean of the 2"),
        (6, "each channel becomes the mean of the 6"),
    ],
)
def test_without_three_channels_it_says_what_is_left_out(channels: int, gray: str) -> None:
    lines = in_words(ViewsConfig(policy="color + gray"), channels)
    assert lines[1] == (
        "colour jitter, 80%: brightness 0.4, contrast 0.4; saturation and hue need three channels "
        "and are left out"
    )
    assert lines[2] == f"colour dropped, 20%: {gray}"
    (hue,) = in_words(ViewsConfig(policy="color(brightness=0, contrast=0, saturation=0)"), 1)[1:]
    assert hue.endswith(": nothing; hue needs three channels and is left out")


def test_strength_is_multiplied_in() -> None:
    config = ViewsConfig(policy="color(brightness=0.8, hue=0.4)", strength=2.0)
    assert in_words(config, 3)[1].endswith("brightness 1.6, contrast 0.8, saturation 0.8, hue 0.5")
    assert in_words(ViewsConfig(policy="color", strength=0.0), 3)[1].endswith(
        "nothing, as every change is 0"
    )


def test_branches_and_small_views_have_headings() -> None:
    lines = in_words(ViewsConfig(policy="moco_v3", side_pixels=112, small_views=4), 3)
    assert [line for line in lines if not line.startswith("  ")] == [
        "first views:",
        "second views:",
        "4 small views:",
    ]
    assert lines[4].startswith("  Gaussian blur, always: ")
    assert "  Gaussian blur, 10%: sigma 0.1 to 2 pixels, kernel 11 pixels wide" in lines
    assert lines[lines.index("4 small views:") + 1] == (
        "  crop, always: 5% to 14% of the area, width over height 0.75 to 1.33, resized to 48 x 48"
    )


def test_what_never_or_seldom_happens_is_said() -> None:
    lines = in_words(ViewsConfig(policy="crop(0.75) + flip(0) + gray(0.005)", side_pixels=32), 3)
    assert lines[0].startswith("crop, 75%: ")
    assert lines[0].endswith("; else the largest centred square")
    assert lines[1] == "left-right flip, never"
    assert lines[2].startswith("colour dropped, 0.5%: ")


@pytest.mark.parametrize("channels", [1, 2, 3, 6])
@pytest.mark.parametrize("text", [*sorted(set(OPERATIONS) - {"crop", "center"}), *ODD])
def test_it_says_nothing_where_nothing_happens(
    text: str, channels: int, rng: np.random.Generator
) -> None:
    """An operation leaves the pixels alone if and only if the words say so."""
    side = 16  # at which the default blur has a kernel of one pixel
    operation = parse_policy(f"{text}")[1]
    certain = type(operation)(**(vars(operation) | {"probability": 1.0}))
    stack = rng.integers(40, 200, (12, side, side, channels), dtype=np.uint8)
    images, sizes = PixelBatch.of_stack(stack), np.full(12, side)
    config = ViewsConfig(side_pixels=side)
    drawn = draw_views(
        [(parse_policy("center")[0], certain)],
        side_pixels=side,
        seed=1,
        epoch=0,
        indices=np.arange(12),
        heights=sizes,
        widths=sizes,
    )
    made = make_views(images, drawn, config)
    centred = make_views(images, centre_views(sizes, sizes), config)
    unchanged = np.abs(made - centred).max() < 1e-5
    words = operation_in_words(operation, channels, side_pixels=side, strength=1.0)
    assert (": nothing" in words) == unchanged, words


@pytest.mark.parametrize("policy", [*PRESETS, "crop(interpolation=bicubic) + noise"])
def test_the_toml_reads_back_as_the_same_views(policy: str) -> None:
    config = ViewsConfig(
        *(64, policy), strength=0.5, small_views=2, early_side=0.5, early_share=0.3
    )
    again = ViewsConfig(**tomllib.loads(policy_as_toml(config))["views"])
    assert again.branches == config.branches
    assert (again.early_side_pixels, again.early_share) == (32, 0.3)
    assert again.small_branch == config.small_branch
    assert branches_in_words(again, 3) == branches_in_words(config, 3)


def test_the_docs_name_every_operation_with_its_defaults() -> None:
    rows = re.findall(r"^\| `((\w+)\(.*?\))` \|", DOCS.read_text(), flags=re.MULTILINE)
    written = {name: text for text, name in rows}
    assert list(written) == list(OPERATIONS)
    for name, kind in OPERATIONS.items():
        text = written[name]
        documented = next(one for one in parse_policy(text) if type(one) is kind)
        for one in fields(kind):
            if one.name != "probability":
                assert f"{one.name}=" in text, name
            expected = one.default
            if not isinstance(expected, str):
                expected = pytest.approx(expected, rel=1e-3)  # 4/3 is written with three digits
            assert getattr(documented, one.name) == expected, name


def test_the_docs_name_every_preset() -> None:
    presets = DOCS.read_text().partition("## Presets")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", presets, flags=re.MULTILINE)
    assert [name for name, _ in rows] == list(PRESETS)
    for name, row in rows:
        policies = re.findall(r"`(.*?)`", row.partition(";")[0] if name == "simclr_cifar" else row)
        if row.startswith("`"):
            wanted = [parse_policy(text) for text in PRESETS[name] if text is not None]
            assert [parse_policy(text) for text in policies] == wanted, name
