"""A contact sheet: images with their random views, and each operation of the policy alone."""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

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
from diptych.images.groups import Groups
from diptych.views.cpu import SizedViews, load_views, to_pixels
from diptych.views.draw import centre_views, draw_views
from diptych.views.parameters import ViewParameters
from diptych.views.preview.policy_in_words import operation_in_words, percent


@dataclass(frozen=True)
class ShownViews:
    """Some images and views of each.

    Attributes:
        indices: (images,), which of the set they are.
        names: of the images.
        centred: (images, side, side, channels), uint8, as they are evaluated.
        views: (views, images, side, side, channels), uint8.
        small: (small views, images, small side, small side, channels), uint8.
        labels: one for each view, small ones last.
    """

    indices: NDArray[np.int64]
    names: Sequence[str]
    centred: NDArray[np.uint8]
    views: NDArray[np.uint8]
    small: NDArray[np.uint8]
    labels: tuple[str, ...]

    def of(self, row: int) -> list[NDArray[np.uint8]]:
        """All views of one of the images, in the order of the labels."""
        return [*self.views[:, row], *self.small[:, row]]


def show_views(
    images: ImageSet,
    config: ViewsConfig,
    executor: Executor,
    *,
    seed: int,
    image_count: int,
    view_count: int,
    run_views: int = 2,
    groups: Groups | None = None,
) -> ShownViews:
    """Makes views as a run sees them in its first epoch.

    Args:
        images: some of them, evenly spread, are shown.
        config: what may be done to an image; its two branches take turns.
        executor: its threads make the views.
        seed: of the run.
        image_count: images at most.
        view_count: full-sized views of each; more than the run makes show what else might come.
        run_views: full-sized views that the run makes, behind which it counts its small ones.
        groups: of the images: full-sized views but the first show another image of the group.
    """
    chosen = spread_indices(len(images), image_count)

    def drawn_at(
        indices: NDArray[np.int64], policies: Sequence[Policy], side_pixels: int, first_view: int
    ) -> SizedViews:
        drawn = draw_views(
            policies,
            strength=config.strength,
            side_pixels=side_pixels,
            seed=seed,
            epoch=0,
            indices=indices,
            heights=images.heights[indices],
            widths=images.widths[indices],
            first_view=first_view,
        )
        return SizedViews(drawn, side_pixels)

    def made_of(indices: NDArray[np.int64], sized: Sequence[SizedViews]) -> list[NDArray[np.uint8]]:
        made = load_views(images, indices, sized, config, executor)
        return [to_pixels(views, config) for views in made]

    two, side = config.branches, config.side_pixels
    large = [two[view % 2] for view in range(view_count)]
    sized = [SizedViews(centre_views(images.heights[chosen], images.widths[chosen]), side)]
    sized.append(drawn_at(chosen, large, side, 0))
    if config.small_views:
        small = [config.small_branch] * config.small_views
        sized.append(drawn_at(chosen, small, config.small_side, run_views))
    made = made_of(chosen, sized)
    if groups is not None:
        partners = groups.partners(chosen, seed=seed, epoch=0, views=view_count)
        for view in range(1, view_count):
            other = drawn_at(partners[view], [large[view]], side, view)
            made[1][view] = made_of(partners[view], [other])[0][0]
    return ShownViews(
        indices=chosen,
        names=[images.names[index] for index in chosen.tolist()],
        centred=made[0][0],
        views=made[1],
        small=made[2] if config.small_views else made[1][:0],
        labels=_labels(view_count, config),
    )


def _labels(view_count: int, config: ViewsConfig) -> tuple[str, ...]:
    alike = config.branches[0] == config.branches[1]
    branch = ("", "") if alike else (" first", " second")
    large = [f"view {view + 1}{branch[view % 2]}" for view in range(view_count)]
    return (*large, *(f"small {view + 1}" for view in range(config.small_views)))


def to_picture(pixels: NDArray[np.uint8], most_pixels: int) -> Image.Image:
    """A square of any channels, enlarged in whole pixels or reduced smoothly.

    Args:
        pixels: (side, side, channels): of two the first is shown, of four and more three.
        most_pixels: largest side of the picture; an enlarged one may be smaller.
    """
    channels = pixels.shape[2]
    picture = Image.fromarray(pixels[..., 0] if channels < 3 else pixels[..., :3]).convert("RGB")
    factor = most_pixels // pixels.shape[0]
    if factor >= 1:
        side = factor * pixels.shape[0]
        return picture.resize((side, side), Image.Resampling.NEAREST)
    return picture.resize((most_pixels, most_pixels), Image.Resampling.LANCZOS)


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


TILE_PIXELS: Final = 96
GAP_PIXELS: Final = 8
_MARGIN: Final = 16
_TITLE, _TEXT, _LABEL = 18, 14, 13  # heights of the three kinds of text, in pixels
Ink = tuple[int, int, int]
_INK, _SOFT, _LINE, _PAPER = (38, 42, 51), (107, 114, 128), (216, 219, 224), (255, 255, 255)
_CELL: Final = TILE_PIXELS + GAP_PIXELS


def contact_sheet(
    images: ImageSet,
    config: ViewsConfig,
    executor: Executor,
    *,
    seed: int,
    image_count: int = 8,
    view_count: int = 8,
    run_views: int = 2,
    groups: Groups | None = None,
    single_operations: bool = False,
) -> Image.Image:
    """A sheet with one row for each image: its centred square, then views of it.

    Args:
        images: some of them, evenly spread, are shown.
        config: what may be done to an image.
        executor: its threads make the views.
        seed: of the run; the views are those of its first epoch.
        image_count: rows.
        view_count: full-sized views in a row.
        run_views: full-sized views that the run makes of an image.
        groups: of the images, as for ``show_views``.
        single_operations: show each operation alone below, on the image that shows most of it.
    """
    shown = show_views(
        images,
        config,
        executor,
        seed=seed,
        image_count=image_count,
        view_count=view_count,
        run_views=run_views,
        groups=groups,
    )
    if not single_operations:
        return draw_sheet(shown, config)
    example = example_image(images, config, executor)
    return draw_sheet(
        shown, config, show_single_operations(images, example, config, executor, seed=seed)
    )


def draw_sheet(
    shown: ShownViews, config: ViewsConfig, alone: Sequence[SingleOperation] | None = None
) -> Image.Image:
    """Lays views out on a white sheet; each operation alone below them, unless None."""
    columns = 1 + len(shown.labels)
    if alone is not None:
        columns = max(columns, 1 + STEPS)
    pen = _Pen(2 * _MARGIN + columns * _CELL - GAP_PIXELS)
    side = config.side_pixels
    pen.title(f"Images and their views, {side} x {side} pixels")
    if config.small_views:
        pen.words(f"Small views: {config.small_side} x {config.small_side} pixels.")
    for row in range(len(shown.names)):
        labels = ("image", *shown.labels) if row == 0 else ()
        pen.row(labels, [shown.centred[row], *shown.of(row)])
    if alone is not None:
        pen.space(_TITLE)
        pen.title("Each operation alone, from weak to strong")
        if not alone:
            pen.words("There is none: a view is the centred square.")
    for one in alone or ():
        pen.space(GAP_PIXELS)
        pen.words(one.words, _INK)
        pen.row(one.labels, list(one.pictures))
    return pen.sheet()


class _Pen:
    """Puts rows and lines below each other; the sheet is made when its height is known."""

    def __init__(self, width: int) -> None:
        self._width, self._bottom = width, _MARGIN
        self._texts: list[tuple[int, int, str, int, Ink]] = []
        self._pictures: list[tuple[int, int, Image.Image]] = []

    def space(self, pixels: int) -> None:
        self._bottom += pixels

    def title(self, text: str) -> None:
        self._line(_MARGIN, text, _TITLE, _INK)
        self._bottom += _TITLE + GAP_PIXELS

    def words(self, text: str, ink: Ink = _SOFT) -> None:
        for line in _broken(text, self._width - 2 * _MARGIN):
            self._line(_MARGIN, line, _TEXT, ink)
            self._bottom += _TEXT + 4
        self._bottom += 2

    def row(self, labels: Sequence[str], pictures: Sequence[NDArray[np.uint8]]) -> None:
        for column, label in enumerate(labels):
            self._line(_MARGIN + column * _CELL, label, _LABEL, _SOFT)
        self._bottom += _LABEL + 5 if labels else 0
        tallest = 0
        for column, pixels in enumerate(pictures):
            picture = to_picture(pixels, TILE_PIXELS)
            self._pictures.append((_MARGIN + column * _CELL, self._bottom, picture))
            tallest = max(tallest, picture.height)
        self._bottom += tallest + GAP_PIXELS

    def sheet(self) -> Image.Image:
        sheet = Image.new("RGB", (self._width, self._bottom + _MARGIN - GAP_PIXELS), _PAPER)
        pen = ImageDraw.Draw(sheet)
        for left, top, picture in self._pictures:
            sheet.paste(picture, (left, top))
            # A line around it: a view may be as white as the paper.
            pen.rectangle(
                (left - 1, top - 1, left + picture.width, top + picture.height), None, _LINE
            )
        for left, top, text, size, ink in self._texts:
            pen.text((left, top), text, fill=ink, font=ImageFont.load_default(size))
        return sheet

    def _line(self, left: int, text: str, size: int, ink: Ink) -> None:
        self._texts.append((left, self._bottom, text, size, ink))


def _broken(text: str, width: int) -> list[str]:
    """Text in lines of at most so many pixels, broken between words."""
    lines, font = list[str](), ImageFont.load_default(_TEXT)
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
