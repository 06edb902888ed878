"""Operations to try alone, from weak to strong: each as it could stand in a policy."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from diptych.config.policies import (
    AutoContrast,
    Blur,
    Center,
    Color,
    Crop,
    Cutout,
    Equalize,
    Flip,
    Gray,
    Noise,
    Operation,
    Policy,
    Posterize,
    QuarterTurns,
    RandAugment,
    Rotate,
    Sharpen,
    Sobel,
    Solarize,
    VerticalFlip,
    name_of,
)

COLOR_CHANGES: Final = ("brightness", "contrast", "saturation", "hue")
"""The parts of ``color``, which are tried one by one."""


@dataclass(frozen=True)
class Trial:
    """An operation at one strength.

    Attributes:
        name: of the operation in a policy; of a part of ``color``, the part.
        strength: the value that says how strong it is; None where there is only one strength.
        words: the strength in words.
        operation: as it stands in a policy, so often that its result says least of the image: a
            flip of every second view, a blur of all.
    """

    name: str
    strength: float | None
    words: str
    operation: Operation


_AREAS: Final = (0.8, 0.6, 0.4, 0.2, 0.08)
_DEGREES: Final = (10.0, 30.0, 90.0, 180.0)
_FACTORS: Final = (0.1, 0.2, 0.4, 0.8)
_HUES: Final = (0.05, 0.1, 0.2, 0.5)
_SIGMAS: Final = (0.5, 1.0, 2.0)
_BITS: Final = (6.0, 4.0, 2.0)
_NOISES: Final = (0.05, 0.1, 0.2)
_CUTS: Final = (0.1, 0.25, 0.5)
_MAGNITUDES: Final = (3.0, 9.0, 15.0)

Family = tuple[Trial, ...]
"""One operation, from weak to strong."""


def all_trials(channels: int) -> tuple[Family, ...]:
    """Every operation of a policy that does something to images of so many channels."""
    parts = COLOR_CHANGES if channels == 3 else COLOR_CHANGES[:2]
    changes = [
        tuple(trial_of(_color(part, value)) for value in (_HUES if part == "hue" else _FACTORS))
        for part in parts
    ]
    alone = [Gray(1.0)] if channels > 1 else []
    return (
        tuple(trial_of(Crop(area=(area, 1.0))) for area in _AREAS),
        *((trial_of(one),) for one in (Flip(), VerticalFlip(), QuarterTurns())),
        tuple(trial_of(Rotate(degrees=(-most, most))) for most in _DEGREES),
        *changes,
        *((trial_of(one),) for one in alone),
        tuple(trial_of(Blur(1.0, sigma=(0.1, sigma))) for sigma in _SIGMAS),
        tuple(trial_of(Noise(1.0, sigma=(0.0, sigma))) for sigma in _NOISES),
        tuple(trial_of(Cutout(1.0, area=(0.02, most))) for most in _CUTS),
        tuple(trial_of(Posterize(1.0, bits=(fewest, 8.0))) for fewest in _BITS),
        *(
            (trial_of(one),)
            for one in (Sharpen(1.0), Solarize(0.5), Equalize(0.5), AutoContrast(0.5), Sobel())
        ),
        tuple(trial_of(RandAugment(magnitude=magnitude)) for magnitude in _MAGNITUDES),
    )


def trials_for(
    policies: Sequence[Policy], channels: int, strength: float, *, others: bool
) -> tuple[Trial, ...]:
    """Every operation of policies at several strengths, its own there among them.

    Args:
        policies: of the branches.
        channels: of the images.
        strength: ``views.strength``, which multiplies the changes of ``color``.
        others: try operations that are not in the policies too.
    """
    own = [
        trial_of(one)
        for policy in policies
        for operation in policy
        for one in _separate(operation, channels, strength)
    ]
    names = {one.name for one in own}
    tried = [
        one for family in all_trials(channels) for one in family if others or one.name in names
    ]
    known = {(one.name, one.strength) for one in tried}
    for one in own:
        if (one.name, one.strength) not in known:
            # In its family, before the first that is stronger.
            family = [place for place, other in enumerate(tried) if other.name == one.name]
            weaker = [place for place in family if is_weaker(tried[place], one)]
            tried.insert(weaker[-1] + 1 if weaker else family[0] if family else len(tried), one)
            known.add((one.name, one.strength))
    return tuple(tried)


def _separate(operation: Operation, channels: int, strength: float) -> Iterator[Operation]:
    """Parts of ``color`` one by one, and others as they are, unless they do nothing."""
    never = isinstance(operation, Center) or operation.probability == 0.0
    if never or (isinstance(operation, Gray) and channels == 1):
        return
    if not isinstance(operation, Color):
        yield replace(operation, probability=_OFTEN.get(type(operation), 1.0))  # type: ignore[arg-type]
        return
    for part in COLOR_CHANGES if channels == 3 else COLOR_CHANGES[:2]:
        change = getattr(operation, part) * strength
        if change > 0.0:
            yield _color(part, min(0.5, change) if part == "hue" else change)


_OFTEN: Final[Mapping[type, float]] = {
    Flip: 0.5,
    VerticalFlip: 0.5,
    QuarterTurns: 0.75,
    # What is done to every view is no change that an encoder learns to ignore; half and half is.
    Solarize: 0.5,
    Equalize: 0.5,
    AutoContrast: 0.5,
}
"""How often a trial does an operation, where not always."""


def trial_of(operation: Operation) -> Trial:
    """The trial of an operation; of ``color``, one with a single change."""
    match operation:
        case Crop(_, area):
            return Trial("crop", area[0], f"down to {100 * area[0]:g}% of the area", operation)
        case Rotate(_, degrees):
            most = max(map(abs, degrees))
            return Trial("rotate", most, f"up to {most:g} degrees", operation)
        case Color():
            part = next(name for name in COLOR_CHANGES if getattr(operation, name))
            change = getattr(operation, part)
            return Trial(part, change, f"by up to {change:g}", operation)
        case Blur(_, sigma):
            return Trial("blur", sigma[1], f"sigma up to {sigma[1]:g} pixels", operation)
        case Noise(_, sigma):
            return Trial("noise", sigma[1], f"sigma up to {sigma[1]:g}", operation)
        case Cutout(_, area):
            return Trial("cutout", area[1], f"up to {100 * area[1]:g}% of the area", operation)
        case Posterize(_, bits):
            return Trial("posterize", bits[0], f"down to {bits[0]:g} bits", operation)
        case RandAugment(_, _, magnitude):
            return Trial("rand_augment", magnitude, f"magnitude {magnitude:g}", operation)
        case _:
            return Trial(name_of(operation), None, "", operation)


WEAKER_IS_MORE: Final = ("crop", "posterize")
"""Operations of which a high value is a weak one: area that is left, bits that are left."""


def is_weaker(one: Trial, other: Trial) -> bool:
    """Whether the first of two trials of one operation changes less."""
    if one.strength is None or other.strength is None:
        return False
    sign = -1.0 if one.name in WEAKER_IS_MORE else 1.0
    return sign * one.strength < sign * other.strength


def _color(part: str, change: float) -> Color:
    still = dict.fromkeys(COLOR_CHANGES, 0.0)
    return Color(1.0, **{**still, part: change})
