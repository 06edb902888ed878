"""Policies: the operations that make a view of an image, in order, and how that is written.

An operation is a frozen class that says how likely it is, and the ranges that its parameters are
drawn from: ``views/draw.py`` draws them, ``views/cpu.py`` and ``views/device.py`` apply it. All but
the crop work on the resized crop, with pixels in 0 .. 1. A policy is written as the names of its
operations, joined by ``+``, with what differs from the defaults in parentheses, the probability
first::

    crop(area=0.08..1) + flip + color(0.8, brightness=0.8, hue=0.2) + gray + blur(0.5)

The same text serves in TOML, as a flag and in Python. A preset's name stands for its text.
"""

import difflib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from functools import cache
from typing import Final, Literal

from diptych.errors import ConfigError

Range = tuple[float, float]
"""Lowest and highest value that may be drawn, uniformly between."""


_BOUNDS: Final[Mapping[str, tuple[float, float]]] = {
    "probability": (0.0, 1.0),
    "area": (1e-6, 1.0),
    "aspect": (1e-3, 1e3),
    "degrees": (-360.0, 360.0),
    "brightness": (0.0, 10.0),
    "contrast": (0.0, 10.0),
    "saturation": (0.0, 10.0),
    "hue": (0.0, 0.5),
    "blur.sigma": (1e-3, 1e3),
    "kernel": (1e-3, 0.5),
    "threshold": (0.0, 1.0),
    "bits": (1.0, 8.0),
    "factor": (0.0, 10.0),
    "noise.sigma": (0.0, 10.0),
    "count": (1, 8),
    "magnitude": (0.0, 30.0),
}
"""Between what a parameter lies, by its name, or by its operation's and its own."""


class _Checked:
    """An operation whose parameters are within their bounds."""

    def __post_init__(self) -> None:
        operation = name_of(self)
        for one in fields(self):  # type: ignore[arg-type]
            value = getattr(self, one.name)
            if isinstance(value, str):
                if value not in ("bilinear", "bicubic"):
                    raise ConfigError(
                        f"{operation}: {one.name} is bilinear or bicubic; got {value!r}."
                    )
                continue
            low, high = _BOUNDS.get(f"{operation}.{one.name}") or _BOUNDS[one.name]
            bounds = value if isinstance(value, tuple) else (value, value)
            if not low <= bounds[0] <= bounds[1] <= high:  # also refuses NaN
                wanted = (
                    f"be a range LOW..HIGH with {low:g} <= LOW <= HIGH <= {high:g}"
                    if isinstance(value, tuple)
                    else f"lie between {low:g} and {high:g}"
                )
                raise ConfigError(f"{operation}: {one.name} must {wanted}; got {value!r}.")


@dataclass(frozen=True)
class Crop(_Checked):
    """A random part of the image, resized to the view (Inception's crop; SimCLR, appendix A).

    Attributes:
        probability: else the largest centred square is resized.
        area: share of the image's area.
        aspect: width over height; its logarithm is uniform.
        interpolation: of the resize, which is antialiased.
    """

    probability: float = 1.0
    area: Range = (0.2, 1.0)
    aspect: Range = (3 / 4, 4 / 3)
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class Center(_Checked):
    """The largest centred square, resized to the view.

    Attributes:
        interpolation: of the resize, which is antialiased.
    """

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"


@dataclass(frozen=True)
class Flip(_Checked):
    """Left and right change places."""

    probability: float = 0.5


@dataclass(frozen=True)
class VerticalFlip(_Checked):
    """Top and bottom change places."""

    probability: float = 0.5


@dataclass(frozen=True)
class QuarterTurns(_Checked):
    """A turn by 90, 180 or 270 degrees, each as likely."""

    probability: float = 0.75


@dataclass(frozen=True)
class Rotate(_Checked):
    """A turn about the centre; what comes in from outside has the mean colour.

    Attributes:
        probability: that it happens.
        degrees: counter-clockwise.
    """

    probability: float = 1.0
    degrees: Range = (-30.0, 30.0)


@dataclass(frozen=True)
class Color(_Checked):
    """Changes of brightness, contrast, saturation and hue, in random order (SimCLR, appendix A).

    ``views.strength`` multiplies the four.

    Attributes:
        probability: that it happens.
        brightness: largest change: the factor lies in 1 - x .. 1 + x, cut at 0.
        contrast: the same.
        saturation: the same; for three channels.
        hue: largest shift, as a share of the colour circle; for three channels.
    """

    probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.1


@dataclass(frozen=True)
class Gray(_Checked):
    """Colour dropped: each channel becomes the luma, or the mean where there are not three."""

    probability: float = 0.2


@dataclass(frozen=True)
class Blur(_Checked):
    """Gaussian blur with mirrored borders (SimCLR, appendix A).

    Attributes:
        probability: that it happens.
        sigma: standard deviation, in pixels of the view.
        kernel: width of the kernel as a share of the side, made odd.
    """

    probability: float = 0.5
    sigma: Range = (0.1, 2.0)
    kernel: float = 0.1


@dataclass(frozen=True)
class Solarize(_Checked):
    """Pixels at or above a threshold are inverted (BYOL, appendix B; MoCo v3).

    Attributes:
        probability: that it happens.
        threshold: of pixels in 0 .. 1.
    """

    probability: float = 0.2
    threshold: Range = (0.5, 0.5)


@dataclass(frozen=True)
class Posterize(_Checked):
    """Fewer shades.

    Attributes:
        probability: that it happens.
        bits: left of each channel; a whole number is drawn.
    """

    probability: float = 0.2
    bits: Range = (4.0, 7.0)


@dataclass(frozen=True)
class Equalize(_Checked):
    """Each channel's histogram, of 256 shades, is made even."""

    probability: float = 0.2


@dataclass(frozen=True)
class AutoContrast(_Checked):
    """Each channel is stretched to 0 .. 1."""

    probability: float = 0.2


@dataclass(frozen=True)
class Sharpen(_Checked):
    """A blend of the image with a smoothed copy of itself: 0 is the copy, 1 the image.

    Attributes:
        probability: that it happens.
        factor: of the blend; above 1 sharpens.
    """

    probability: float = 0.2
    factor: Range = (0.1, 1.9)


@dataclass(frozen=True)
class Noise(_Checked):
    """Gaussian noise on every pixel and channel, cut at 0 and 1.

    Attributes:
        probability: that it happens.
        sigma: standard deviation, of pixels in 0 .. 1.
    """

    probability: float = 0.5
    sigma: Range = (0.02, 0.1)


@dataclass(frozen=True)
class Cutout(_Checked):
    """A rectangle of the mean colour (DeVries and Taylor 2017), all inside of the view.

    Attributes:
        probability: that it happens.
        area: share of the view's area.
        aspect: width over height; its logarithm is uniform.
    """

    probability: float = 0.5
    area: Range = (0.05, 0.25)
    aspect: Range = (0.5, 2.0)


@dataclass(frozen=True)
class Sobel(_Checked):
    """The length of each channel's gradient by Sobel's filter, with mirrored borders.

    A step from black to white gives 1.
    """

    probability: float = 1.0


@dataclass(frozen=True)
class RandAugment(_Checked):
    """A few operations, drawn anew for each view (Cubuk et al. 2019, section 3).

    From nothing, turn, shear and shift along x and y, brightness, contrast, saturation, sharpness,
    posterize, solarize, equalize and stretched contrast. The same one may be drawn twice.

    Attributes:
        probability: that any happens.
        count: how many.
        magnitude: 0 .. 30, of each where it has one; their signs are random.
    """

    probability: float = 1.0
    count: int = 2
    magnitude: float = 9.0


Operation = (
    Crop
    | Center
    | Flip
    | VerticalFlip
    | QuarterTurns
    | Rotate
    | Color
    | Gray
    | Blur
    | Solarize
    | Posterize
    | Equalize
    | AutoContrast
    | Sharpen
    | Noise
    | Cutout
    | Sobel
    | RandAugment
)

OPERATIONS: Final[Mapping[str, type[Operation]]] = {
    re.sub(r"(?<=[a-z])(?=[A-Z])", "_", kind.__name__).lower(): kind
    for kind in typing.get_args(Operation)
}
"""Every operation by the name it has in a policy, as ``vertical_flip``."""


def name_of(operation: object) -> str:
    """The name of an operation in a policy."""
    return next(name for name, kind in OPERATIONS.items() if type(operation) is kind)


Policy = tuple[Operation, ...]
"""The operations of one branch, in order."""

_COLOR_HALF: Final = "color(0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)"
_COLOR_FULL: Final = "color(0.8, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2)"
_COLOR_V3: Final = "color(0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)"

_CROP_BYOL: Final = "crop(area=0.08..1, interpolation=bicubic)"

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
    # BYOL (2006.07733), appendix B, whose smallest crops are SimCLR's. The code of Barlow Twins,
    # VICReg and DINO resizes likewise.
    "byol": (
        f"{_CROP_BYOL} + {_COLOR_V3} + gray + blur(1) + flip",
        f"{_CROP_BYOL} + {_COLOR_V3} + gray + blur(0.1) + solarize(0.2) + flip",
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
    # A plus inside of parentheses may be part of a number, as 1e+3.
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
