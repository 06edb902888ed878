"""What may be done to an image to make a view: one frozen class for each operation.

An operation says how likely it is and the ranges that its parameters are drawn from. It does
nothing itself: ``views/draw.py`` draws, ``views/cpu.py`` and ``views/device.py`` apply. All but the
crop work on the resized crop, with pixels in 0 .. 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from diptych.errors import ConfigError

Range = tuple[float, float]
"""Lowest and highest value that may be drawn, uniformly between."""


@dataclass(frozen=True)
class Crop:
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

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "area", 1e-6, 1.0)
        _check_range(self, "aspect", 1e-3, 1e3)
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"crop: interpolation is bilinear or bicubic; got {self!r}.")


@dataclass(frozen=True)
class Center:
    """The largest centred square, resized to the view.

    Attributes:
        interpolation: of the resize, which is antialiased.
    """

    interpolation: Literal["bilinear", "bicubic"] = "bilinear"

    def __post_init__(self) -> None:
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"center: interpolation is bilinear or bicubic; got {self!r}.")


@dataclass(frozen=True)
class Flip:
    """Left and right change places."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class VerticalFlip:
    """Top and bottom change places."""

    probability: float = 0.5

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class QuarterTurns:
    """A turn by 90, 180 or 270 degrees, each as likely."""

    probability: float = 0.75

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class Rotate:
    """A turn about the centre; what comes in from outside has the mean colour.

    Attributes:
        probability: that it happens.
        degrees: counter-clockwise.
    """

    probability: float = 1.0
    degrees: Range = (-30.0, 30.0)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "degrees", -360.0, 360.0)


@dataclass(frozen=True)
class Color:
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

    def __post_init__(self) -> None:
        _check_probability(self)
        for name in ("brightness", "contrast", "saturation"):
            _check_between(self, name, 0.0, 10.0)
        _check_between(self, "hue", 0.0, 0.5)


@dataclass(frozen=True)
class Gray:
    """Colour dropped: each channel becomes the luma, or the mean where there are not three."""

    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class Blur:
    """Gaussian blur with mirrored borders (SimCLR, appendix A).

    Attributes:
        probability: that it happens.
        sigma: standard deviation, in pixels of the view.
        kernel: width of the kernel as a share of the side, made odd.
    """

    probability: float = 0.5
    sigma: Range = (0.1, 2.0)
    kernel: float = 0.1

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "sigma", 1e-3, 1e3)
        _check_between(self, "kernel", 1e-3, 0.5)


@dataclass(frozen=True)
class Solarize:
    """Pixels at or above a threshold are inverted (BYOL, appendix B; MoCo v3).

    Attributes:
        probability: that it happens.
        threshold: of pixels in 0 .. 1.
    """

    probability: float = 0.2
    threshold: Range = (0.5, 0.5)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "threshold", 0.0, 1.0)


@dataclass(frozen=True)
class Posterize:
    """Fewer shades.

    Attributes:
        probability: that it happens.
        bits: left of each channel; a whole number is drawn.
    """

    probability: float = 0.2
    bits: Range = (4.0, 7.0)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "bits", 1.0, 8.0)


@dataclass(frozen=True)
class Equalize:
    """Each channel's histogram, of 256 shades, is made even."""

    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class AutoContrast:
    """Each channel is stretched to 0 .. 1."""

    probability: float = 0.2

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class Sharpen:
    """A blend of the image with a smoothed copy of itself: 0 is the copy, 1 the image.

    Attributes:
        probability: that it happens.
        factor: of the blend; above 1 sharpens.
    """

    probability: float = 0.2
    factor: Range = (0.1, 1.9)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "factor", 0.0, 10.0)


@dataclass(frozen=True)
class Noise:
    """Gaussian noise on every pixel and channel, cut at 0 and 1.

    Attributes:
        probability: that it happens.
        sigma: standard deviation, of pixels in 0 .. 1.
    """

    probability: float = 0.5
    sigma: Range = (0.02, 0.1)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "sigma", 0.0, 10.0)


@dataclass(frozen=True)
class Cutout:
    """A rectangle of the mean colour (DeVries and Taylor 2017), all inside of the view.

    Attributes:
        probability: that it happens.
        area: share of the view's area.
        aspect: width over height; its logarithm is uniform.
    """

    probability: float = 0.5
    area: Range = (0.05, 0.25)
    aspect: Range = (0.5, 2.0)

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_range(self, "area", 1e-6, 1.0)
        _check_range(self, "aspect", 1e-3, 1e3)


@dataclass(frozen=True)
class Sobel:
    """The length of each channel's gradient by Sobel's filter, with mirrored borders.

    A step from black to white gives 1.
    """

    probability: float = 1.0

    def __post_init__(self) -> None:
        _check_probability(self)


@dataclass(frozen=True)
class RandAugment:
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

    def __post_init__(self) -> None:
        _check_probability(self)
        _check_between(self, "count", 1, 8)
        _check_between(self, "magnitude", 0.0, 30.0)


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
    "crop": Crop,
    "center": Center,
    "flip": Flip,
    "vertical_flip": VerticalFlip,
    "quarter_turns": QuarterTurns,
    "rotate": Rotate,
    "color": Color,
    "gray": Gray,
    "blur": Blur,
    "solarize": Solarize,
    "posterize": Posterize,
    "equalize": Equalize,
    "auto_contrast": AutoContrast,
    "sharpen": Sharpen,
    "noise": Noise,
    "cutout": Cutout,
    "sobel": Sobel,
    "rand_augment": RandAugment,
}
"""Every operation by the name it has in a policy."""


def name_of(operation: Operation) -> str:
    """The name of an operation in a policy."""
    return next(name for name, kind in OPERATIONS.items() if type(operation) is kind)


def _check_probability(operation: Operation) -> None:
    _check_between(operation, "probability", 0.0, 1.0)


def _check_between(operation: Operation, field: str, low: float, high: float) -> None:
    value = getattr(operation, field)
    if not low <= value <= high:  # also refuses NaN
        raise ConfigError(
            f"{name_of(operation)}: {field} must lie between {low:g} and {high:g}; got {value!r}."
        )


def _check_range(operation: Operation, field: str, low: float, high: float) -> None:
    bounds = getattr(operation, field)
    if not low <= bounds[0] <= bounds[1] <= high:
        raise ConfigError(
            f"{name_of(operation)}: {field} must be a range LOW..HIGH with {low:g} <= LOW <= HIGH "
            f"<= {high:g}; got {bounds!r}."
        )
