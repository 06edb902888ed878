"""Policies: written and read, refused with the nearest right name."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.config.policies import (
    OPERATIONS,
    PRESETS,
    Blur,
    Center,
    Color,
    Crop,
    Flip,
    Gray,
    Operation,
    RandAugment,
    Solarize,
    as_text,
    branches,
    name_of,
    parse_policy,
)
from diptych.errors import ConfigError


def test_a_policy_is_read_in_order_with_its_defaults() -> None:
    assert parse_policy("crop+color") == (Crop(), Color())
    assert parse_policy(" crop(area=0.08..1)+flip( 0.3 ) + color(1, hue = 0.2)") == (
        Crop(area=(0.08, 1.0)),
        Flip(0.3),
        Color(1.0, hue=0.2),
    )
    assert parse_policy("crop(interpolation=bicubic)")[0] == Crop(interpolation="bicubic")
    assert parse_policy("crop + rand_augment(count=3)")[1] == RandAugment(count=3)


def test_without_a_crop_the_centre_is_taken() -> None:
    assert parse_policy("gray(1)") == (Center(), Gray(1.0))
    assert parse_policy("identity") == (Center(),)


def test_a_single_number_is_a_range_of_one() -> None:
    assert parse_policy("crop + solarize(threshold=0.4)")[1] == Solarize(threshold=(0.4, 0.4))


_probability = st.floats(0, 1)


@st.composite
def operations(draw: st.DrawFn) -> Operation:
    kind = draw(st.sampled_from([k for k in OPERATIONS.values() if k not in (Crop, Center)]))
    operation = kind(probability=draw(_probability))  # type: ignore[call-arg]
    if isinstance(operation, Color):
        hue = draw(st.floats(0, 0.5, allow_subnormal=False))
        return dataclasses.replace(operation, hue=hue, brightness=draw(st.floats(0, 10)))
    if isinstance(operation, Blur):
        low, high = sorted(draw(st.tuples(st.floats(0.001, 1000), st.floats(0.001, 1000))))
        return dataclasses.replace(operation, sigma=(low, high))
    return operation


@given(
    st.lists(operations(), max_size=6), st.sampled_from([Crop(), Center(), Crop(area=(0.1, 0.7))])
)
def test_what_is_written_is_read_again(some: list[Operation], first: Operation) -> None:
    policy = (first, *some)
    assert parse_policy(as_text(policy)) == policy


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_are_policies(preset: str) -> None:
    first, second = branches(preset, None)
    assert parse_policy(as_text(first)) == first
    assert isinstance(first[0], Crop | Center)
    assert (first == second) == (preset not in ("moco_v3", "byol"))


def test_presets_carry_the_papers_numbers() -> None:
    simclr = {name_of(one): one for one in parse_policy("simclr")}
    assert simclr["crop"].area == (0.08, 1.0)  # type: ignore[union-attr]
    assert simclr["color"] == Color(0.8, 0.8, 0.8, 0.8, 0.2)
    assert (simclr["gray"], simclr["blur"]) == (Gray(0.2), Blur(0.5, (0.1, 2.0), 0.1))
    assert [name_of(one) for one in parse_policy("simclr_cifar")] == [
        "crop",
        "flip",
        "color",
        "gray",
    ]
    v1 = {name_of(one): one for one in parse_policy("moco_v1")}
    assert v1["color"] == Color(1.0, 0.4, 0.4, 0.4, 0.4)
    assert "blur" not in v1
    v2 = {name_of(one): one for one in parse_policy("moco_v2")}
    assert (v2["color"], v2["blur"]) == (Color(0.8, 0.4, 0.4, 0.4, 0.1), Blur(0.5))
    first, second = (dict(zip(map(name_of, b), b, strict=True)) for b in branches("moco_v3", None))
    assert (first["blur"].probability, second["blur"].probability) == (1.0, 0.1)  # type: ignore[union-attr]
    assert "solarize" not in first
    assert second["solarize"] == Solarize(0.2)
    for ours, theirs in zip(branches("byol", None), branches("moco_v3", None), strict=True):
        assert ours == (Crop(area=(0.08, 1.0), interpolation="bicubic"), *theirs[1:])


def test_a_second_policy_takes_the_place_of_the_presets_own() -> None:
    first, second = branches("moco_v3", "identity")
    assert second == (Center(),)
    assert first == parse_policy("moco_v3")
    assert branches("crop+gray", None)[1] == (Crop(), Gray())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("crp + flip", "no operation 'crp'. Did you mean crop?"),
        ("crop + simclr", "Presets stand alone"),
        ("zzzz", "Known are crop"),
        ("crop(aria=0.1..1)", "Did you mean area?"),
        ("crop(area=0.1..1, 0.5)", "cannot take '0.5'"),
        ("flip(0.5, 0.5)", "cannot take '0.5'"),
        ("flip(0.5, probability=0.5)", "cannot take"),
        ("flip(x)", "probability must be a number; got 'x'"),
        ("crop + rand_augment(count=1.5)", "a whole number"),
        ("crop(area=0.1..z)", "a range LOW..HIGH"),
        ("crop(area=0.5..0.1)", "area must be a range"),
        ("crop(area=0..1)", "area must be a range"),
        ("crop(area=nan..1)", "area must be a range"),
        ("crop(interpolation=cubic)", "bilinear or bicubic"),
        ("flip(1.5)", "probability must lie between 0 and 1"),
        ("flip(nan)", "probability must lie between 0 and 1"),
        ("color(hue=0.6)", "hue must lie between 0 and 0.5"),
        ("flip + crop", "comes first"),
        ("crop + crop", "comes first"),
        ("", "is empty"),
        ("crop + + flip", "cannot read ''"),
        ("crop(area=0.1..1", "cannot read"),
        ("crop(flip(0.5))", "cannot read"),
    ],
)
def test_wrong_policies_are_refused_and_say_why(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_policy(text)
    assert words in str(caught.value)


def test_every_operation_refuses_what_it_cannot_do() -> None:
    for kind in OPERATIONS.values():
        for one in dataclasses.fields(kind):
            if one.type in (float, "float", "Range"):
                wrong = (3.0, -3.0) if one.type == "Range" else -1.0
                with pytest.raises(ConfigError):
                    kind(**{one.name: wrong})  # type: ignore[arg-type]
