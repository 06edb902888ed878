"""A contact sheet: images, and beside each some of its random views."""

from collections.abc import Sequence
from concurrent.futures import Executor

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from diptych.configs import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.views.cpu import make_views, to_pixels
from diptych.views.draw import centre_views, draw_views

TILE_PIXELS = 72
GAP_PIXELS = 4
_HEADER_PIXELS = 26
_INK, _PAPER = (38, 42, 51), (255, 255, 255)


def contact_sheet(
    images: ImageSet,
    config: ViewsConfig,
    executor: Executor,
    *,
    seed: int,
    image_count: int = 8,
    view_count: int = 8,
) -> Image.Image:
    """Draws a sheet: one row for each image, its centred square first, then views of it.

    Args:
        images: some of them, evenly spread, are shown.
        config: what may be done to an image.
        executor: its threads make the views.
        seed: of the run; the first two views are the first epoch's.
        image_count: rows.
        view_count: views in a row.
    """
    chosen = np.unique(np.linspace(0, len(images) - 1, image_count).astype(np.int64))
    pixels = images.pixels.gather(chosen)
    drawn = draw_views(
        [config] * view_count,
        seed=seed,
        epoch=0,
        indices=chosen,
        heights=pixels.heights,
        widths=pixels.widths,
    )
    drawn = np.concatenate([centre_views(pixels.heights, pixels.widths), drawn])
    views = to_pixels(make_views(pixels, drawn, config, executor), config)
    grid = tile(views.transpose(1, 0, 2, 3, 4), TILE_PIXELS)
    sheet = Image.new("RGB", (grid.width, grid.height + _HEADER_PIXELS), _PAPER)
    sheet.paste(grid, (0, _HEADER_PIXELS))
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    pen.text((GAP_PIXELS, 6), "image", fill=_INK, font=font)
    start = 2 * GAP_PIXELS + TILE_PIXELS
    pen.text((start, 6), f"views, {config.side_pixels} pixels", fill=_INK, font=font)
    return sheet


def tile(pictures: NDArray[np.uint8], tile_pixels: int) -> Image.Image:
    """Lays pictures (rows, columns, height, width, channels) out on a white sheet."""
    rows, columns = pictures.shape[:2]
    step = tile_pixels + GAP_PIXELS
    sheet = Image.new("RGB", (columns * step + GAP_PIXELS, rows * step + GAP_PIXELS), _PAPER)
    for row in range(rows):
        for column in range(columns):
            picture = to_picture(pictures[row, column], tile_pixels)
            sheet.paste(picture, (GAP_PIXELS + column * step, GAP_PIXELS + row * step))
    return sheet


def to_picture(pixels: NDArray[np.uint8], side_pixels: int) -> Image.Image:
    """One picture (height, width, channels), enlarged in whole pixels or reduced smoothly."""
    picture = Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)
    enlarge = pixels.shape[0] <= side_pixels
    method = Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize((side_pixels, side_pixels), method)


def policy_in_words(config: ViewsConfig) -> Sequence[str]:
    """What a view goes through, one operation a line, in order."""
    low, high = config.crop_area
    lines = [
        f"crop {low:.0%} to {high:.0%} of the area, resized to "
        f"{config.side_pixels} x {config.side_pixels}"
    ]
    if config.flip_probability:
        lines.append(f"left-right flip, {config.flip_probability:.0%} of the views")
    if config.jitter_probability:
        lines.append(
            f"colour jitter, {config.jitter_probability:.0%}: brightness {config.brightness:g}, "
            f"contrast {config.contrast:g}, saturation {config.saturation:g}, hue {config.hue:g}"
        )
    if config.gray_probability:
        lines.append(f"colour dropped, {config.gray_probability:.0%}")
    if config.blur_probability and config.blur_kernel_pixels > 1:
        lines.append(
            f"Gaussian blur, {config.blur_probability:.0%}: sigma "
            f"{config.blur_sigma_pixels[0]:g} to {config.blur_sigma_pixels[1]:g} pixels"
        )
    return lines
