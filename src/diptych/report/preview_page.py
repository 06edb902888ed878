"""The preview of views: an HTML page that opens offline, with advice and pictures, or a PNG."""

import io
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from diptych.config.run import RunConfig
from diptych.escaping import HANDLER
from diptych.images.collection import Collection
from diptych.report.costs_of_views import HEADINGS, CostsOfViews
from diptych.report.figures import data_uri
from diptych.report.page import template
from diptych.runs.atomic import atomic_write
from diptych.views.batches import learned_images
from diptych.views.preview.contact_sheet import (
    ShownViews,
    SingleOperation,
    contact_sheet,
    example_image,
    show_single_operations,
    show_views,
    to_picture,
)
from diptych.views.preview.policy_in_words import (
    branches_in_words,
    images_in_words,
    policy_as_toml,
)

_CELL_PIXELS: Final = 96  # three of them side by side fit a phone
_LOSSLESS_PIXELS: Final = 64  # enlarged from no more than this, JPEG's blocks would show


@dataclass(frozen=True)
class Picture:
    """A picture on the page with what stands below it and what is read out instead of it."""

    uri: str
    side: int
    label: str
    alt: str


@dataclass(frozen=True)
class PictureRow:
    """Pictures side by side, under a heading and, of an operation, its text in a policy."""

    heading: str
    text: str
    pictures: Sequence[Picture]


def write_preview(
    out: Path,
    collection: Collection,
    config: RunConfig,
    advice: Sequence[str],
    executor: Executor,
    *,
    image_count: int = 8,
    view_count: int = 8,
    measured: CostsOfViews | None = None,
) -> None:
    """Writes a page to a name that ends in .html, and a PNG sheet, without the advice, to another.

    Args:
        out: where to.
        collection: its training images are shown, as a run learns from them.
        config: the whole config, of which views and seed matter.
        advice: see ``views/advice.py``.
        executor: its threads make the views.
        image_count: images shown.
        view_count: full-sized views of each.
        measured: what operations cost of that which labels say; on the page only.
    """
    if out.suffix.lower() == ".html":
        page = _page(collection, config, advice, executor, image_count, view_count, measured)
        atomic_write(out, page.encode(errors=HANDLER))
        return
    images, groups = learned_images(collection.train, config)
    sheet = contact_sheet(
        images,
        config.views,
        executor,
        seed=config.seed,
        image_count=image_count,
        view_count=view_count,
        run_views=config.method.views,
        groups=groups,
        single_operations=True,
    )
    picture = io.BytesIO()
    sheet.save(picture, "PNG")
    atomic_write(out, picture.getvalue())


def _page(
    collection: Collection,
    config: RunConfig,
    advice: Sequence[str],
    executor: Executor,
    image_count: int,
    view_count: int,
    measured: CostsOfViews | None,
) -> str:
    views = config.views
    images, groups = learned_images(collection.train, config)
    shown = show_views(
        images,
        views,
        executor,
        seed=config.seed,
        image_count=image_count,
        view_count=view_count,
        run_views=config.method.views,
        groups=groups,
    )
    example = example_image(images, views, executor)
    alone = show_single_operations(images, example, views, executor, seed=config.seed)
    return template("views.html.jinja").render(
        name=Path(config.images.path).name or config.images.path,
        found=collection.description,
        config=config,
        advice=advice,
        policy=branches_in_words(views, images.channels),
        toml=policy_as_toml(views),
        cell=_CELL_PIXELS,
        notes=[one for one in (images_in_words(config.images), _note(images.channels)) if one],
        rows=_image_rows(shown),
        example=_called(images.names[example]),
        alone=[_operation_row(one) for one in alone],
        measured=measured,
        headings=HEADINGS,
    )


def _note(channels: int) -> str:
    """Which of the channels are seen, where that is not all of them."""
    if channels in (1, 3):
        return ""
    which = "the first" if channels == 2 else "the first three, as red, green and blue"
    return f"Of {channels} channels the pictures show {which}."


def _image_rows(shown: ShownViews) -> list[PictureRow]:
    rows = []
    for row, name in enumerate(map(_called, shown.names)):
        pictures = [_picture(shown.centred[row], "image", f"{name}, the centred square")]
        pictures += [
            _picture(view, label, f"{name}, {label}")
            for view, label in zip(shown.of(row), shown.labels, strict=True)
        ]
        rows.append(PictureRow(name, "", pictures))
    return rows


def _operation_row(alone: SingleOperation) -> PictureRow:
    pictures = [
        _picture(pixels, label, f"{alone.text} alone, {label}")
        for pixels, label in zip(alone.pictures, alone.labels, strict=True)
    ]
    return PictureRow(alone.words, alone.text, pictures)


def _picture(pixels: NDArray[np.uint8], label: str, alt: str) -> Picture:
    picture = to_picture(pixels, _CELL_PIXELS)
    lossless = pixels.shape[0] <= _LOSSLESS_PIXELS
    return Picture(data_uri(picture, lossless=lossless), picture.width, label, alt)


def _called(name: str) -> str:
    """An image's name; images of arrays have only numbers."""
    return f"image {name}" if name.isdigit() else name
