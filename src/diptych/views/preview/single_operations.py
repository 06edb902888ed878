"""Each operation of a policy alone, from weak to strong, on one image."""

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diptych.config.data import ViewsConfig
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
    Sharpen,
    Solarize,
    as_text,
)
from diptych.images.collection import ImageSet, spread_indices
from diptych.views.cpu import SizedViews, load_views, to_pixels
from diptych.views.draw import centre_views, draw_views
from diptych.views.parameters import ViewParameters
from diptych.views.preview.policy_in_words import operation_in_words, percent

STEPS: Final = 5
"""Strengths shown of an operation, besides none."""

_RANGES: Final[Mapping[type[Operation], tuple[str, bool]]] = {
    Crop: ("area", True),
    Rotate: ("degrees", False),
    Blur: ("sigma", False),
    Solarize: ("threshold", True),
    Posterize: ("bits", True),
    Sharpen: ("factor", False),
    Noise: ("sigma", False),
    Cutout: ("area", False),
}
"""The parameter that is shown, and whether its high values are the weak ones."""

_STRENGTHS: Final = (0.25, 0.5, 1.0, 1.5, 2.0)  # of a colour jitter, over what is set
_COLOR_VIEWS: Final = 15  # draws to take a colour jitter from
_CANDIDATES: Final = 64  # images to take the example from
_CANDIDATE_PIXELS: Final = 32


class _Variant(NamedTuple):
    label: str
    operation: Operation
    strength: float = 1.0
    view: int = 0


@dataclass(frozen=True)
class SingleOperation:
    """One operation in several strengths.

    Attributes:
        text: as it is written in a policy.
        words: what it does in the run.
        labels: name and value of each picture's strength.
        pictures: (strengths, side, side, channels), uint8; the first is without it.
    """

    text: str
    words: str
    labels: tuple[str, ...]
    pictures: NDArray[np.uint8]


def show_single_operations(
    images: ImageSet, index: int, config: ViewsConfig, executor: Executor, *, seed: int
) -> list[SingleOperation]:
    """Every operation of the views, once, behind the centred square and certain to happen.

    Args:
        images: the set.
        index: the image to show them on.
        config: gives the policies; operations of small views are shown at their size.
        executor: its threads make the views.
        seed: of the run; all strengths of an operation share one draw.
    """
    found = []
    for operation, side in _different(config):
        words = operation_in_words(
            operation, images.channels, side_pixels=side, strength=config.strength
        )
        small = "small views: " if side != config.side_pixels else ""
        variants = list(_variants(operation, config, seed, index))
        drawn = [_draw(one, images, index, config, side, seed) for one in variants]
        both = ViewParameters(
            np.concatenate([one.crops for one in drawn]),
            np.concatenate([one.steps for one in drawn]),
        )
        (made,) = load_views(images, np.array([index]), [SizedViews(both, side)], config, executor)
        labels = tuple(one.label for one in variants)
        found.append(
            SingleOperation(
                as_text([operation]), small + words, labels, to_pixels(made[:, 0], config)
            )
        )
    return found


def example_image(images: ImageSet, config: ViewsConfig, executor: Executor) -> int:
    """Which image shows most of what is done to it: with contrast in light, and in colour."""
    chosen = spread_indices(len(images), _CANDIDATES)
    centred = centre_views(images.heights[chosen], images.widths[chosen])
    sized = SizedViews(centred, _CANDIDATE_PIXELS)
    (made,) = load_views(images, chosen, [sized], config, executor)
    pictures = to_pixels(made[0, ..., :3] if images.channels > 3 else made[0], config)
    light = pictures.mean(axis=-1).std(axis=(1, 2))
    color = pictures.std(axis=-1).mean(axis=(1, 2))
    return int(chosen[np.argmax(light * (1.0 + color))])


def _different(config: ViewsConfig) -> Iterator[tuple[Operation, int]]:
    """The operations with the side of their views; those that only differ in probability once."""
    policies: list[tuple[Policy, int]] = [(one, config.side_pixels) for one in config.branches]
    if config.small_views:
        policies.append((config.small_branch, config.small_side))
    seen: set[Operation] = set()
    for policy, side in policies:
        for operation in policy:
            certain = _certain(operation)
            if certain not in seen and not isinstance(operation, Center):
                seen.add(certain)
                yield operation, side


def _variants(
    operation: Operation, config: ViewsConfig, seed: int, index: int
) -> Iterator[_Variant]:
    off = Center(operation.interpolation) if isinstance(operation, Crop) else _never(operation)
    yield _Variant("off", off)
    on = _certain(operation)
    if isinstance(operation, Color):
        view = _typical_view(operation, seed, index)
        for times in _STRENGTHS:
            yield _Variant(f"strength {times * config.strength:.3g}", on, times, view)
    elif isinstance(operation, RandAugment):
        for view in range(STEPS):
            yield _Variant(f"draw {view + 1}", on, view=view)
    elif type(operation) in _RANGES:
        yield from _values(on)
    else:
        yield _Variant("on", on)


def _values(operation: Operation) -> Iterator[_Variant]:
    """The operation with its parameter fixed at evenly spaced values of its range."""
    field, falling = _RANGES[type(operation)]
    low, high = getattr(operation, field)
    values = np.linspace(low, high, STEPS)
    if isinstance(operation, Posterize):
        values = np.floor(values)
    if isinstance(operation, Crop):  # of one shape, so that only the size changes
        shape = float(np.sqrt(operation.aspect[0] * operation.aspect[1]))
        operation = replace(operation, aspect=(shape, shape))
    values = np.unique(values)
    for value in (values[::-1] if falling else values).tolist():
        text = percent(value) if field == "area" else f"{value:.3g}"
        fixed: Operation = replace(operation, **{field: (value, value)})  # type: ignore[arg-type]
        yield _Variant(f"{field} {text}", fixed)


def _typical_view(operation: Color, seed: int, index: int) -> int:
    """The view, of a few, whose drawn changes are in the middle: neither nothing nor extreme."""
    drawn = draw_views(
        [(Center(), _certain(operation))] * _COLOR_VIEWS,
        side_pixels=8,
        seed=seed,
        epoch=0,
        indices=np.array([index]),
        heights=np.array([8]),
        widths=np.array([8]),
    )
    factors, hue = drawn.steps[:, 0, 0, 2:5], drawn.steps[:, 0, 0, 5]
    # A tenth of the colour circle shows about as much as two fifths of the others.
    change = np.abs(factors - 1.0).sum(axis=1) + 4.0 * np.abs(hue)
    return int(np.argsort(change)[_COLOR_VIEWS // 2])


def _draw(
    variant: _Variant, images: ImageSet, index: int, config: ViewsConfig, side: int, seed: int
) -> ViewParameters:
    alone = isinstance(variant.operation, Crop | Center)
    policy = (variant.operation,) if alone else (Center(), variant.operation)
    return draw_views(
        [policy],
        strength=config.strength * variant.strength,
        side_pixels=side,
        seed=seed,
        epoch=0,
        indices=np.array([index]),
        heights=images.heights[[index]],
        widths=images.widths[[index]],
        first_view=variant.view,
    )


def _certain(operation: Operation) -> Operation:
    return operation if isinstance(operation, Center) else replace(operation, probability=1.0)


def _never(operation: Operation) -> Operation:
    return operation if isinstance(operation, Center) else replace(operation, probability=0.0)
