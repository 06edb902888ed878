"""Policies: what a view goes through, in order, and how that is written.

A policy is a sequence of operations. It is written as their names, joined by ``+``, with what
differs from the defaults in parentheses, the probability first::

    crop(area=0.08..1) + flip + color(0.8, brightness=0.8, hue=0.2) + gray + blur(0.5)

The same text serves in TOML, as a flag and in Python. A preset's name stands for its text.
"""

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from functools import cache
from typing import Final

from diptych.config.operations import OPERATIONS, Center, Crop, Operation, name_of
from diptych.errors import ConfigError

Policy = tuple[Operation, ...]
"""The operations of one branch, in order."""

_COLOR_HALF: Final = "color(0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)"
_COLOR_FULL: Final = "color(0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)"
_COLOR_V3: Final = "color(0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)"

PRESETS: Final[Mapping[str, tuple[str, str | None]]] = {
    # MoCo (1911.05722), section 3.3; the published code's order: gray, colour, flip.
    "moco_v1": ("crop + gray + color(1, hue=0.4) + flip", None),
    # MoCo v2 (2003.04297), section 3.
    "moco_v2": (f"crop + {_COLOR_HALF} + gray + blur + flip", None),
    # MoCo v3 (2104.02057), section 4.3, after BYOL: blur and solarize differ between the branches.
    "moco_v3": (
        f"crop + {_COLOR_V3} + gray + blur(1) + flip",
        f"crop + {_COLOR_V3} + gray + blur(0.1) + solarize(0.2) + flip",
    ),
    # SimCLR (2002.05709), appendix A.
    "simclr": (f"crop(area=0.08..1) + flip + {_COLOR_FULL} + gray + blur", None),
    # SimCLR, appendix B.9: no blur; views.strength is 0.5 there.
    "simclr_cifar": (f"crop(area=0.08..1) + flip + {_COLOR_FULL} + gray", None),
    # SimCLR v2 (2006.10029): as SimCLR.
    "simclr_v2": (f"crop(area=0.08..1) + flip + {_COLOR_FULL} + gray + blur", None),
    "identity": ("center", None),
}
"""The text of the first branch, and of the second where it differs."""


def branches(policy: str, second: str | None) -> tuple[Policy, Policy]:
    """The policies of the two branches.

    Args:
        policy: text or preset of the first branch.
        second: of the other; None for the same, or for the preset's own second.

    >>> first, other = branches("moco_v3", None)
    >>> first[3].probability, other[3].probability
    (1.0, 0.1)
    """
    if second is None:
        second = PRESETS.get(policy.strip(), (policy, None))[1] or policy
    return parse_policy(policy), parse_policy(second)


@cache
def parse_policy(text: str) -> Policy:
    """Reads a policy.

    Raises:
        ConfigError: an operation or one of its parameters is unknown (the nearest is named), out
            of range or in the wrong place.

    >>> parse_policy("crop + color(0.5, hue=0.2)")[1].hue
    0.2
    """
    preset = PRESETS.get(text.strip())
    if preset is not None:
        return parse_policy(preset[0])
    operations = tuple(_parse_operation(part.strip(), text) for part in _split(text))
    geometry = [isinstance(operation, Crop | Center) for operation in operations]
    if any(geometry[1:]):
        raise ConfigError(
            f"the policy {text!r} crops in the middle: crop or center comes first, and once, as "
            "all else works on what it resized."
        )
    return operations if geometry[:1] == [True] else (Center(), *operations)


def as_text(policy: Sequence[Operation]) -> str:
    """The text of a policy; ``parse_policy`` gives the policy again.

    >>> as_text(parse_policy("crop(area=0.5..1)+flip(0.5)"))
    'crop(area=0.5..1) + flip'
    """
    return " + ".join(_operation_text(operation) for operation in policy)


def _split(text: str) -> list[str]:
    """At each plus outside of parentheses."""
    if not text.strip():
        raise ConfigError(
            "a policy is empty; wanted operations as 'crop + flip + color', or a preset: "
            f"{', '.join(PRESETS)}."
        )
    return re.split(r"\+(?![^()]*\))", text)


def _parse_operation(part: str, text: str) -> Operation:
    found = re.fullmatch(r"(\w+)\s*(?:\(([^()]*)\))?", part)
    if found is None:
        raise ConfigError(
            f"cannot read {part!r} in the policy {text!r}; wanted NAME or NAME(PROBABILITY, "
            "KEY=VALUE), joined by +."
        )
    name, inside = found[1], found[2] or ""
    if name not in OPERATIONS:
        known = [*OPERATIONS, *PRESETS]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(OPERATIONS)}."
        alone = " Presets stand alone." if name in PRESETS else ""
        raise ConfigError(f"there is no operation {name!r}.{alone} {hint}")
    kind = OPERATIONS[name]
    types = typing.get_type_hints(kind)
    given: dict[str, object] = {}
    for position, argument in enumerate(a.strip() for a in inside.split(",") if a.strip()):
        key, equals, value = (piece.strip() for piece in argument.partition("="))
        if not equals:
            key, value = "probability", key
        if key not in types or key in given or (not equals and position):
            near = difflib.get_close_matches(key, list(types), n=1)
            hint = f" Did you mean {near[0]}?" if near and key not in types else ""
            raise ConfigError(
                f"{name}: cannot take {argument!r}; its parameters are {', '.join(types)}.{hint}"
            )
        given[key] = _parse_value(value, types[key], f"{name}: {key}")
    return kind(**given)  # type: ignore[arg-type]


def _parse_value(value: str, wanted: object, where: str) -> object:
    try:
        if wanted is float:
            return float(value)
        if wanted is int:
            return int(value)
        if typing.get_origin(wanted) is tuple:
            low, dots, high = value.partition("..")
            return float(low), float(high if dots else low)
    except ValueError:
        what = {float: "a number", int: "a whole number"}.get(wanted, "a range LOW..HIGH")  # type: ignore[call-overload]
        raise ConfigError(f"{where} must be {what}; got {value!r}.") from None
    return value


def _operation_text(operation: Operation) -> str:
    arguments = []
    for one in fields(operation):
        value = getattr(operation, one.name)
        if one.default is not MISSING and value != one.default:
            text = _value_text(value)
            arguments.append(text if one.name == "probability" else f"{one.name}={text}")
    return name_of(operation) + (f"({', '.join(arguments)})" if arguments else "")


def _value_text(value: object) -> str:
    if isinstance(value, tuple):
        return "..".join(_value_text(one) for one in value)
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)
