"""What may be done to an image to make a view: one frozen class for each operation.

An operation says how likely it is and the ranges that its parameters are drawn from. It does
nothing itself: ``views/draw.py`` draws, ``views/cpu.py`` and ``views/device.py`` apply. All but the
crop work on the resized crop, with pixels in 0 .. 1.
"""

import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields
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
