"""What a view goes through, in words: for the command line, the report and the preview."""

from typing import Final

from diptych.config.data import ImagesConfig, ViewsConfig
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
    Range,
    Rotate,
    Sharpen,
    Sobel,
    Solarize,
    VerticalFlip,
    as_text,
)


def policy_in_words(config: ViewsConfig, channels: int) -> list[str]:
    """What a view goes through, one operation a line, in order.

    Where views differ (two branches, small views) each kind has a heading that ends in a colon,
    and its operations are indented.

    >>> policy_in_words(ViewsConfig(policy="crop + gray"), channels=1)[1]
    'colour dropped, 20%: nothing to drop in one channel'
    """
    sections = branches_in_words(config, channels)
    if len(sections) == 1:
        return sections[0][1]
    return [
        line
        for heading, lines in sections
        for line in (f"{heading}:", *(f"  {line}" for line in lines))
    ]


def branches_in_words(config: ViewsConfig, channels: int) -> list[tuple[str, list[str]]]:
    """The same in sections: which views, and their operations, one a line."""

    def words(policy: Policy, side_pixels: int) -> list[str]:
        return [
            operation_in_words(
                operation, channels, side_pixels=side_pixels, strength=config.strength
            )
            for operation in policy
        ]

    first, second = (words(policy, config.side_pixels) for policy in config.branches)
    same = config.branches[0] == config.branches[1]
    sections = [("views", first)] if same else [("first views", first), ("second views", second)]
    if config.small_views:
        kind = "1 small view" if config.small_views == 1 else f"{config.small_views} small views"
        sections.append((kind, words(config.small_branch, config.small_side)))
    return sections


def images_in_words(config: ImagesConfig) -> str:
    """What an image is, and what its views show, where that is not one whole file; else empty.

    >>> images_in_words(ImagesConfig(windows=2))
    'Each image is one of the 2 x 2 windows of a photograph (images.windows).'
    """
    windows, found = config.windows, list[str]()
    if windows > 1:
        found.append(
            f"Each image is one of the {windows} x {windows} windows of a photograph "
            "(images.windows)."
        )
    if config.group_by is not None:
        found.append(
            "Full-sized views from the second on are of other images of the same group, where it "
            "has any (images.group_by)."
        )
    return " ".join(found)


def policy_as_toml(config: ViewsConfig) -> str:
    """What decides a view besides its normalisation, as a section of a config file."""
    first, second = config.branches
    lines = ["[views]", f"side_pixels = {config.side_pixels}", f'policy = "{as_text(first)}"']
    if second != first:
        lines.append(f'second = "{as_text(second)}"')
    if config.strength != 1.0:
        lines.append(f"strength = {config.strength!r}")
    if config.small_views:
        lines += [
            f"small_views = {config.small_views}",
            f"small_side_pixels = {config.small_side}",
            f'small_policy = "{as_text(config.small_branch)}"',
        ]
    if config.has_early_part:
        lines += [
            f"early_side = {config.early_side!r}",
            f"early_share = {config.early_share!r}",
        ]
    return "\n".join(lines) + "\n"


def operation_in_words(
    operation: Operation, channels: int, *, side_pixels: int, strength: float
) -> str:
    """One operation: its name, how often it happens, what it does to so many channels.

    Args:
        operation: with its parameters.
        channels: of the images.
        side_pixels: of the view, on which the width of a blur's kernel depends.
        strength: multiplies the changes of ``color``.
    """
    if isinstance(operation, Center):
        return f"the largest centred square, {_resized(operation, side_pixels)}"
    title, effect = _TITLES[type(operation)], _effect(operation, channels, side_pixels, strength)
    if operation.probability == 0.0:
        return f"{title}, never"
    often = "always" if operation.probability == 1.0 else percent(operation.probability)
    if isinstance(operation, Crop) and operation.probability < 1.0:
        effect += "; else the largest centred square"
    return f"{title}, {often}" + (f": {effect}" if effect else "")


def percent(share: float) -> str:
    """A share in per cent, with three significant digits."""
    return f"{100.0 * share:.3g}%"


_TITLES: Final[dict[type[Operation], str]] = {
    Crop: "crop",
    Center: "centre",
    Flip: "left-right flip",
    VerticalFlip: "top-bottom flip",
    QuarterTurns: "quarter turns",
    Rotate: "rotation",
    Color: "colour jitter",
    Gray: "colour dropped",
    Blur: "Gaussian blur",
    Solarize: "solarize",
    Posterize: "posterize",
    Equalize: "histogram made even",
    AutoContrast: "contrast stretched",
    Sharpen: "sharpness",
    Noise: "Gaussian noise",
    Cutout: "cutout",
    Sobel: "Sobel edges",
    RandAugment: "RandAugment",
}


def _effect(operation: Operation, channels: int, side_pixels: int, strength: float) -> str:
    apart = "" if channels == 1 else f", each of the {channels} channels by itself"
    match operation:
        case Crop(_, area, aspect):
            return (
                f"{_between(area, '%')} of the area, width over height {_between(aspect)}, "
                f"{_resized(operation, side_pixels)}"
            )
        case QuarterTurns():
            return "by 90, 180 or 270 degrees"
        case Rotate(_, degrees):
            return f"by {_between(degrees)} degrees, the outside filled with {_mean(channels)}"
        case Color():
            return _color_effect(operation, channels, strength)
        case Gray():
            return _gray_effect(channels)
        case Blur(_, sigma, kernel):
            return _blur_effect(sigma, int(kernel * side_pixels) // 2, side_pixels)
        case Solarize(_, threshold):
            return f"pixels at or above {_between(threshold)} of the range inverted{apart}"
        case Posterize(_, bits):
            whole = (float(int(bits[0])), float(int(bits[1])))
            return f"{_between(whole)} bits are left{apart}"
        case Equalize():
            return f"in 256 shades{apart}"
        case AutoContrast():
            return f"to the full range{apart}"
        case Sharpen(_, factor):
            if factor == (1.0, 1.0):
                return "nothing, as a factor of 1 gives the image itself"
            return f"factor {_between(factor)} (below 1 softens, above 1 sharpens)"
        case Noise(_, sigma):
            if sigma == (0.0, 0.0):
                return "nothing, as its standard deviation is 0"
            return f"standard deviation {_between(sigma)} of the range{apart}"
        case Cutout(_, area):
            return f"a rectangle of {_between(area, '%')} of the area becomes {_mean(channels)}"
        case Sobel():
            return f"pixels become the length of the gradient{apart}"
        case RandAugment(_, count, magnitude):
            return _rand_augment_effect(count, magnitude, channels)
        case _:
            return ""


def _color_effect(operation: Color, channels: int, strength: float) -> str:
    changes = {
        "brightness": operation.brightness * strength,
        "contrast": operation.contrast * strength,
        "saturation": operation.saturation * strength,
        "hue": min(0.5, operation.hue * strength),
    }
    wanted = [name for name, change in changes.items() if change]
    without = [name for name in wanted if channels != 3 and name in ("saturation", "hue")]
    done = [f"{name} {changes[name]:.3g}" for name in wanted if name not in without]
    text = ", ".join(done) or ("nothing" if without else "nothing, as every change is 0")
    if without:
        need, are = ("need", "are") if len(without) > 1 else ("needs", "is")
        text += f"; {' and '.join(without)} {need} three channels and {are} left out"
    return text


def _gray_effect(channels: int) -> str:
    if channels == 1:
        return "nothing to drop in one channel"
    if channels == 3:
        return "each channel becomes the luma"
    return f"each channel becomes the mean of the {channels}"


def _blur_effect(sigma: Range, radius: int, side_pixels: int) -> str:
    if radius == 0:
        return (
            f"nothing, as its kernel is one pixel wide on views of {side_pixels}; a larger share "
            "as `kernel` widens it"
        )
    return f"sigma {_between(sigma)} pixels, kernel {2 * radius + 1} pixels wide"


def _rand_augment_effect(count: int, magnitude: float, channels: int) -> str:
    text = f"{count} of 14 operations at magnitude {magnitude:g} of 30"
    if channels != 3:
        text += "; saturation, one of them, needs three channels and does nothing"
    return text


def _resized(operation: Crop | Center, side_pixels: int) -> str:
    how = " (bicubic)" if operation.interpolation == "bicubic" else ""
    return f"resized to {side_pixels} x {side_pixels}{how}"


def _mean(channels: int) -> str:
    return "the mean colour" if channels == 3 else "the mean value"


def _between(bounds: Range, unit: str = "") -> str:
    """A range, or its one value; ``%`` shows shares in per cent."""
    texts = [percent(value) if unit else f"{value:.3g}" for value in bounds]
    return texts[0] if texts[0] == texts[1] else " to ".join(texts)
