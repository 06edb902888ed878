"""Views for evaluation of images that are decoded once, in threads, and kept nowhere."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from diptych.configs import ViewsConfig
from diptych.errors import UnreadableImage
from diptych.images.form import Pixels
from diptych.images.pixels import PixelBatch
from diptych.views.batches import as_images
from diptych.views.cpu import make_views
from diptych.views.draw import centre_views, five_views
from diptych.views.load import EvaluationCrops

_TASK: Final = 32  # images
_HELD_BYTES: Final = 1 << 20  # of decoded pixels that wait for their views, in each thread


@dataclass(frozen=True)
class Seen:
    """Some consecutive images as the network sees them.

    Attributes:
        rows: of the set.
        views: each (batch, channels, side, side); row ``i % batch`` shows image i, other rows are
            blank.
        unreadable: the reason why, by image.
    """

    rows: range
    views: tuple[Tensor, ...]
    unreadable: dict[int, str]


@dataclass(frozen=True)
class Viewer:
    """Makes the views of batches.

    Attributes:
        crops: one view of an image, or five.
        config: gives side and normalisation.
        channels: of a view.
        batch_size: images that the network sees at once.
        executor: its threads decode and make views.
    """

    crops: EvaluationCrops
    config: ViewsConfig
    channels: int
    batch_size: int
    executor: Executor

    def batches(self, rows: range) -> list[range]:
        """Consecutive rows that the network sees together.

        An image is always at the same place of a batch of the same size, whatever the shards, as
        the last bits of its features may depend on that.
        """
        size = self.batch_size
        first = rows.start // size * size
        starts = range(first, rows.stop, size) if rows else range(0)
        return [range(max(s, rows.start), min(s + size, rows.stop)) for s in starts]

    def see(self, rows: range, read: Callable[[int], Pixels]) -> Seen:
        """Decodes the images of one batch and makes their views."""
        side, count = self.config.side_pixels, 1 if self.crops == "center" else 5
        out = np.zeros((count, self.batch_size, side, side, self.channels), dtype=np.float32)
        unreadable = dict[int, str]()

        def work(some: range) -> None:
            held = list[Pixels]()
            for index in some:
                try:
                    held.append(read(index))
                except UnreadableImage as error:
                    unreadable[index] = str(error)
                    self._flush(held, index, out)
                if sum(pixels.nbytes for pixels in held) > _HELD_BYTES:
                    self._flush(held, index + 1, out)
            self._flush(held, some.stop, out)

        tasks = [rows[start : start + _TASK] for start in range(0, len(rows), _TASK)]
        for _ in self.executor.map(work, tasks):
            pass  # this waits, and raises what a thread raised
        return Seen(rows, tuple(map(as_images, out)), unreadable)

    def _flush(self, held: list[Pixels], stop: int, out: np.ndarray) -> None:
        """Makes the views of the images before ``stop`` that were decoded, and lets them go."""
        if not held:
            return
        pixels = PixelBatch.of(held)
        draw = centre_views if self.crops == "center" else five_views
        drawn = draw(pixels.heights, pixels.widths)
        begin = (stop - len(held)) % self.batch_size
        make_views(pixels, drawn, self.config, out=out, begin=begin)
        held.clear()


def blank(viewer: Viewer) -> Tensor:
    """One image of zeros, as the network would see it."""
    side = viewer.config.side_pixels
    return torch.zeros(1, viewer.channels, side, side)
