"""A policy whose operations leave in the views what the labels say, and words on why."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from diptych.config.policies import (
    Blur,
    Center,
    Color,
    Crop,
    Cutout,
    Noise,
    Operation,
    Policy,
    Posterize,
    RandAugment,
    Rotate,
    as_text,
    name_of,
)
from diptych.evaluation.operations.costs import DESTROYS, KEEPS, TOUCHES, Cost, Costs
from diptych.evaluation.operations.trials import COLOR_CHANGES, Trial, is_weaker

WORDS: Final[Mapping[str, str]] = {
    KEEPS: "a classifier of the images as they are answers as well",
    TOUCHES: "its answers change, but what the labels say can still be read from the views",
    DESTROYS: "less of it can be read from the views, even by a classifier that has learned from "
    "such views",
}


def words_of(costs: Costs) -> list[tuple[Cost, str]]:
    """Each cost with its word: ``keeps``, ``touches`` or ``destroys``.

    Views under a strong operation have those under the same one at a weaker strength among them. So
    where labels can be read under the strong one, the weak one is not said to destroy them,
    whatever its own figure, which has an error.
    """
    return [(cost, _word(cost, costs.costs)) for cost in costs.costs]


def _word(cost: Cost, others: Sequence[Cost]) -> str:
    stronger = [
        other
        for other in others
        if other.trial.name == cost.trial.name and is_weaker(cost.trial, other.trial)
    ]
    if cost.word == DESTROYS and any(other.word != DESTROYS for other in stronger):
        return TOUCHES
    return cost.word


def proposed(policy: Policy, costs: Costs, *, strength: float = 1.0) -> Policy:
    """The policy with what destroys the labels weakened to what does not, or dropped.

    Args:
        policy: of a branch.
        costs: of trials of all operations in it.
        strength: ``views.strength``, which multiplies the changes of ``color`` in it.
    """
    found = [_weakened(one, words_of(costs), strength) for one in policy]
    return tuple(one for one in found if one is not None)


_Judged = Sequence[tuple[Cost, str]]


def _weakened(operation: Operation, judged: _Judged, strength: float) -> Operation | None:
    """An operation as it may stay; None where it may not."""
    match operation:
        case Center():
            return operation
        case Crop(_, area):
            low = _allowed("crop", area[0], judged)
            if low is None:
                return Center(operation.interpolation)
            return replace(operation, area=(low, max(low, area[1])))
        case Rotate(_, (low, high)):
            most = _allowed("rotate", max(abs(low), abs(high)), judged)
            if most is None:
                return None
            return replace(operation, degrees=(max(low, -most), min(high, most)))
        case Color():
            return _weaker_color(operation, judged, strength)
        case Blur(_, bounds) | Noise(_, bounds):
            most = _allowed(name_of(operation), bounds[1], judged)
            return None if most is None else replace(operation, sigma=(min(bounds[0], most), most))
        case Cutout(_, area):
            most = _allowed("cutout", area[1], judged)
            return None if most is None else replace(operation, area=(min(area[0], most), most))
        case Posterize(_, bits):
            low = _allowed("posterize", bits[0], judged)
            return None if low is None else replace(operation, bits=(low, max(low, bits[1])))
        case RandAugment():
            most = _allowed("rand_augment", operation.magnitude, judged)
            return None if most is None else replace(operation, magnitude=most)
        case _:
            return None if _is_destroyed(name_of(operation), judged) else operation


def _weaker_color(operation: Color, judged: _Judged, strength: float) -> Color | None:
    changes = {}
    for part in COLOR_CHANGES:
        change = getattr(operation, part)
        allowed = _allowed(part, change * strength, judged)
        if allowed is None or not strength:
            changes[part] = 0.0
        else:
            changes[part] = change if allowed >= change * strength else allowed / strength
    return replace(operation, **changes) if any(changes.values()) else None


def _allowed(name: str, wanted: float, judged: _Judged) -> float | None:
    """The strength that may be, the wanted one if it may; None where no strength may.

    The strongest of those tried that does not destroy, where the wanted one is stronger than that
    and some strength up to it destroys.
    """
    mine = [(cost.trial, word) for cost, word in judged if cost.trial.name == name]
    asked = Trial(name, wanted, "", Center())
    destroyed = [one for one, word in mine if word == DESTROYS]
    if all(is_weaker(asked, one) for one in destroyed):
        return wanted
    kept = [one.strength for one, word in mine if word != DESTROYS and is_weaker(one, asked)]
    return kept[-1] if kept else None  # trials stand from weak to strong


def _is_destroyed(name: str, judged: _Judged) -> bool:
    return any(cost.trial.name == name and word == DESTROYS for cost, word in judged)


def advice_on_costs(
    costs: Costs, policies: tuple[Policy, Policy], *, strength: float = 1.0
) -> list[str]:
    """Sentences on what was measured and what to change, the flags last.

    Args:
        costs: of all operations.
        policies: of the two branches of the recipe.
        strength: ``views.strength``.
    """
    clean = costs.clean[costs.best]
    begin = (
        f"As they are, {clean.value:.1%} of {costs.test_images:,} held-out images are told right "
        f"by {READ_BY[costs.best]} (mean over classes; chance is {costs.chance:.1%}; fitted "
        f"on {costs.train_images:,})."
    )
    if not costs.readable:
        return [
            f"{begin} That is too little to see what operations cost: give more labelled images, "
            "or weights whose features show them (--weights)."
        ]
    judged = words_of(costs)
    worst = _worst(judged)
    if not worst:
        return [begin, "No operation destroys what the labels say: keep the recipe's views."]
    words = "; ".join(
        f"{_called(cost.trial)} costs {100 * cost.destroyed.value:.0f} points" for cost in worst
    )
    first, second = (proposed(one, costs, strength=strength) for one in policies)
    if (first, second) == policies:
        return [begin, f"Not in the recipe's policy, and to be left out of it: {words}."]
    flags = f'--views.policy "{as_text(first)}"'
    if second != first:
        flags += f' --views.second "{as_text(second)}"'
    return [
        begin,
        f"What the labels say is not in the views any more under these: {words}. An encoder that "
        "matches such views cannot keep it.",
        *_further(judged, first),
        *_without_crops(policies[0], first),
        f"Proposed: {flags}",
    ]


def _without_crops(recipe: Policy, left: Policy) -> list[str]:
    """A warning where a policy has lost its crops, which contrast learns from most."""
    if not (isinstance(recipe[0], Crop) and isinstance(left[0], Center)):
        return []
    return [
        "Every crop that was tried costs that. Without crops both views are nearly the same "
        "picture, and matching them teaches little: see first whether several photographs show "
        "one thing (images.group_by), and begin from weights (--weights)."
    ]


READ_BY: Final[Mapping[str, str]] = {
    "pixels": "a linear classifier of raw pixels",
    "patches": "a linear classifier of small patches",
    "encoder": "a linear classifier of the encoder's features",
}


def _called(trial: Trial) -> str:
    return f"{trial.name} {trial.words}".strip()


_NAMED: Final = 4


def _worst(judged: _Judged) -> list[Cost]:
    """Of each operation that destroys, the strength that costs most; the worst first."""
    most: dict[str, Cost] = {}
    for cost, word in judged:
        name = cost.trial.name
        if word == DESTROYS and (
            name not in most or cost.destroyed.value > most[name].destroyed.value
        ):
            most[name] = cost
    return sorted(most.values(), key=lambda cost: -cost.destroyed.value)[:_NAMED]


_ADDED: Final = ("flip", "vertical_flip", "quarter_turns", "noise")


def _further(judged: _Judged, policy: Policy) -> list[str]:
    """What may be added to a policy that has become weak."""
    there = {name_of(one) for one in policy}
    free = [
        name
        for name in _ADDED
        if name not in there
        and any(cost.trial.name == name for cost, _ in judged)
        and not _is_destroyed(name, judged)
    ]
    if not free:
        return []
    return [
        "Weaker views are easier to match, and teach less; these leave the labels readable and may "
        f"be added: {', '.join(free)}."
    ]
