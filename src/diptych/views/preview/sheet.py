"""A contact sheet: images with their random views, and each operation alone."""

from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.configs import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.views.preview.alone import STEPS, Alone, example_image, operations_alone
from diptych.views.preview.shown import ShownViews, show_views, to_picture

TILE_PIXELS: Final = 96
GAP_PIXELS: Final = 8
_MARGIN: Final = 16
_TITLE, _TEXT, _LABEL = 18, 14, 13  # heights of the three kinds of text, in pixels
Ink = tuple[int, int, int]
_INK, _SOFT, _LINE, _PAPER = (38, 42, 51), (107, 114, 128), (216, 219, 224), (255, 255, 255)
_CELL: Final = TILE_PIXELS + GAP_PIXELS

Row = tuple[Sequence[str], Sequence[NDArray[np.uint8]]]
"""Labels and pictures, side by side; a label stands above its picture."""


def contact_sheet(
    images: ImageSet,
    config: ViewsConfig,
    executor: Executor,
    *,
    seed: int,
    image_count: int = 8,
    view_count: int = 8,
    run_views: int = 2,
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
    """
    shown = show_views(
        images,
        config,
        executor,
        seed=seed,
        image_count=image_count,
        view_count=view_count,
        run_views=run_views,
    )
    return draw_sheet(shown, config)


def draw_sheet(
    shown: ShownViews, config: ViewsConfig, alone: Sequence[Alone] | None = None
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


def preview_sheet(
    images: ImageSet,
    config: ViewsConfig,
    executor: Executor,
    *,
    seed: int,
    image_count: int = 8,
    view_count: int = 8,
    run_views: int = 2,
) -> Image.Image:
    """The contact sheet with, below it, each operation alone on the image that shows most.

    Args: as of ``contact_sheet``.
    """
    shown = show_views(
        images,
        config,
        executor,
        seed=seed,
        image_count=image_count,
        view_count=view_count,
        run_views=run_views,
    )
    example = example_image(images, config, executor)
    alone = operations_alone(images, example, config, executor, seed=seed)
    return draw_sheet(shown, config, alone)


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


def _length(text: str, size: int) -> float:
    return ImageFont.load_default(size).getlength(text)


def _broken(text: str, width: int) -> list[str]:
    """Text in lines of at most so many pixels, broken between words."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _length(longer, _TEXT) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
