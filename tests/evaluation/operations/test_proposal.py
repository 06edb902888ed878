"""The policy that is proposed follows from the words of each strength."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from diptych.config.policies import as_text, branches, parse_policy
from diptych.evaluation.confidence import Interval
from diptych.evaluation.operations.costs import DESTROYS, KEEPS, TOUCHES, Cost, Costs
from diptych.evaluation.operations.of_run import words_on_views
from diptych.evaluation.operations.proposal import advice_on_costs, proposed, words_of
from diptych.evaluation.operations.trials import all_trials, is_weaker, trial_of, trials_for

LOST, SAME = Interval(0.3, 0.2, 0.4), Interval(0.0, -0.05, 0.05)


def costs_of(destroyed: Mapping[str, float | None]) -> Costs:
    """Every operation, of which some destroy from a strength on; None for all of an operation."""

    def is_lost(name: str, strength: float | None) -> bool:
        if name not in destroyed:
            return False
        limit = destroyed[name]
        falling = name in ("crop", "posterize")
        return (
            limit is None
            or strength is None
            or (strength <= limit) == falling
            or (strength == limit)
        )

    costs = tuple(
        Cost(one, 0.9, 0.6, 0.6, LOST, LOST if is_lost(one.name, one.strength) else SAME, 0.3, {})
        for family in all_trials(3)
        for one in family
    )
    return Costs(costs, {"pixels": Interval(0.9, 0.85, 0.95)}, "pixels", 0.1, 100, 100, True)


@pytest.mark.parametrize(
    ("policy", "destroyed", "wanted"),
    [
        ("crop(area=0.08..1) + flip", {"crop": 0.4}, "crop(area=0.6..1) + flip"),
        ("crop(area=0.5..1) + flip", {"crop": 0.4}, "crop(area=0.5..1) + flip"),
        ("crop(area=0.3..1)", {"crop": 0.4}, "crop(area=0.6..1)"),
        ("crop(area=0.08..1) + flip", {"crop": None}, "center + flip"),
        ("crop + flip + gray", {"flip": None, "gray": None}, "crop"),
        ("crop + color(hue=0.2)", {"hue": 0.1}, "crop + color(hue=0.05)"),
        (
            "crop + color(brightness=0.8)",
            {"hue": None, "saturation": None, "brightness": 0.8},
            "crop + color(saturation=0.0, hue=0.0)",
        ),
        ("crop + blur", {"blur": 1.0}, "crop + blur(sigma=0.1..0.5)"),
        ("crop + rotate(degrees=-90..45)", {"rotate": 90.0}, "crop + rotate"),
        ("crop + cutout + noise", {"cutout": 0.25, "noise": None}, "crop + cutout(area=0.05..0.1)"),
        ("crop + posterize(bits=2..7)", {"posterize": 4.0}, "crop + posterize(bits=6..7)"),
        ("crop + rand_augment", {"rand_augment": 9.0}, "crop + rand_augment(magnitude=3)"),
    ],
)
def test_operations_are_weakened_to_the_strongest_strength_that_keeps(
    policy: str, destroyed: dict[str, float | None], wanted: str
) -> None:
    found = as_text(proposed(parse_policy(policy), costs_of(destroyed)))
    assert found == as_text(parse_policy(wanted))
    assert parse_policy(found)  # it can be given as a flag


def test_the_strength_of_the_views_counts() -> None:
    policy = parse_policy("crop + color(hue=0.2, brightness=0, contrast=0, saturation=0)")
    kept = proposed(policy, costs_of({"hue": 0.2}), strength=0.5)
    assert kept == policy  # half of 0.2 is what was found to keep
    weaker = proposed(policy, costs_of({"hue": 0.1}), strength=0.5)
    assert as_text(weaker) == as_text(
        parse_policy("crop + color(hue=0.1, brightness=0, contrast=0, saturation=0)")
    )


def test_a_weak_strength_destroys_no_more_than_a_strong_one() -> None:
    weak, strong = (trial_of(parse_policy(f"crop(area={area}..1)")[0]) for area in (0.8, 0.4))
    assert is_weaker(weak, strong)
    lost = Cost(weak, 0.9, 0.6, 0.6, LOST, LOST, 0.3, {})
    costs = (lost, Cost(strong, 0.9, 0.9, 0.9, SAME, SAME, 0.0, {}))
    found = Costs(costs, {"pixels": SAME}, "pixels", 0.1, 10, 10, True)
    assert [word for _, word in words_of(found)] == [TOUCHES, KEEPS]


def test_a_loss_that_the_training_images_do_not_show_is_one_of_the_fit() -> None:
    trial = trial_of(parse_policy("crop")[0])
    assert Cost(trial, 0.9, 0.6, 0.6, LOST, LOST, 0.3, {}).word == DESTROYS
    assert Cost(trial, 0.9, 0.6, 0.6, LOST, LOST, 0.0, {}).word == TOUCHES
    assert Cost(trial, 0.9, 0.9, 0.6, SAME, LOST, 0.0, {}).word == KEEPS


def test_the_advice_ends_with_flags_that_can_be_pasted() -> None:
    found = advice_on_costs(costs_of({"crop": 0.4, "gray": None}), branches("moco_v3", None))
    assert found[-1].startswith('Proposed: --views.policy "crop(area=0.6..1.0)') or found[
        -1
    ].startswith('Proposed: --views.policy "crop(area=0.6..1)')
    assert "--views.second" in found[-1]
    assert "gray" not in found[-1]
    assert "crop down to" in found[1]


def test_a_policy_without_crops_is_warned_of() -> None:
    def advice(destroyed: float | None) -> list[str]:
        return advice_on_costs(costs_of({"crop": destroyed}), branches("simclr", None))

    assert advice(None)[-1].startswith('Proposed: --views.policy "center')
    assert "matching them teaches little" in advice(None)[-2]
    assert not any("matching them teaches little" in one for one in advice(0.4))


def test_a_policy_that_destroys_nothing_stays() -> None:
    found = advice_on_costs(costs_of({}), branches("simclr", None))
    assert "keep the recipe's views" in found[-1]
    assert (
        "to be left out" in advice_on_costs(costs_of({"sobel": None}), branches("simclr", None))[1]
    )


def test_labels_that_cannot_be_read_propose_nothing() -> None:
    costs = costs_of({"crop": None})
    unread = replace(costs, clean={"pixels": Interval(0.1, 0.05, 0.15)})
    (only,) = advice_on_costs(unread, branches("simclr", None))
    assert "--weights" in only


def test_trials_of_a_run_have_its_own_strengths_in_order() -> None:
    policies = [parse_policy("crop(area=0.3..1) + flip(0.2) + color(hue=0.3) + gray")]
    found = trials_for(policies, 3, 0.5, others=False)
    assert [one.strength for one in found if one.name == "crop"] == [0.8, 0.6, 0.4, 0.3, 0.2, 0.08]
    assert [one.strength for one in found if one.name == "hue"] == [0.05, 0.1, 0.15, 0.2, 0.5]
    assert "noise" not in {one.name for one in found}
    assert {"saturation", "hue", "gray"}.isdisjoint(
        one.name for one in trials_for(policies, 1, 1.0, others=True)
    )


ROW = {"operation": "crop(area=0.08..1)", "name": "crop", "words": "down to 8% of the area"}


def evaluation(pixels: float, low: float) -> dict[str, object]:
    lost = {"value": pixels - 0.5, "low": low, "high": pixels}
    row = {**ROW, "pixels_lost": 0.41, "lost": {"value": 0.33, "low": 0.2, "high": 0.4}}
    return {
        "views": {
            "clean": {"trained": {"value": 0.5}, "pixels": {"value": pixels}},
            "lost_to": {"pixels": lost},
            "operations": [{**row, "labels": DESTROYS}],
            "proposed": '--views.policy "center"',
        }
    }


def test_an_encoder_that_lost_to_pixels_is_told_by_what() -> None:
    first, second, third = words_on_views(evaluation(0.8, 0.2))
    assert "80.0% right with raw pixels and 50.0% with the trained encoder" in first
    assert "crop down to 8% of the area 41 points (33 even" in second
    assert '--views.policy "center"' in third
    told = evaluation(0.8, 0.2)
    told["views"]["operations_on"] = "Tried on some images."  # type: ignore[index]
    assert words_on_views(told)[1] == f"{second} Tried on some images."


def test_an_encoder_that_did_not_lose_is_told_nothing() -> None:
    assert words_on_views(evaluation(0.55, -0.02)) == []
    assert words_on_views({}) == []
