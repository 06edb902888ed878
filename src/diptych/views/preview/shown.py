"""Pixels to look at: images beside their views, and any number of channels as a picture."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diptych.configs import ViewsConfig
from diptych.images.collection import ImageSet, spread_indices
from diptych.policies import Policy
from diptych.views.cpu import to_pixels
from diptych.views.draw import centre_views, draw_views
from diptych.views.load import Panel, load_views


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
    """
    chosen = spread_indices(len(images), image_count)
    heights, widths = images.heights[chosen], images.widths[chosen]

    def panel(policies: Sequence[Policy], side_pixels: int, first_view: int) -> Panel:
        drawn = draw_views(
            policies,
            strength=config.strength,
            side_pixels=side_pixels,
            seed=seed,
            epoch=0,
            indices=chosen,
            heights=heights,
            widths=widths,
            first_view=first_view,
        )
        return Panel(drawn, side_pixels)

    two = config.branches
    large = [two[view % 2] for view in range(view_count)]
    panels = [Panel(centre_views(heights, widths), config.side_pixels)]
    panels.append(panel(large, config.side_pixels, 0))
    if config.small_views:
        panels.append(
            panel([config.small_branch] * config.small_views, config.small_side, run_views)
        )
    made = [to_pixels(v, config) for v in load_views(images, chosen, panels, config, executor)]
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
