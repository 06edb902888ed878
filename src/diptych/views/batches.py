"""Batches of views ready for the network: order, pixels, parameters, views, tensors."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.configs import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.images.order import Order
from diptych.views.cpu import make_views
from diptych.views.draw import centre_views, draw_views


@dataclass(frozen=True)
class ViewBatches:
    """Makes the two views of every batch of a run.

    Attributes:
        images: to learn from.
        order: which images come in which step.
        policies: what may be done, one for each of the two branches.
        executor: its threads decode and make views.
    """

    images: ImageSet
    order: Order
    policies: tuple[ViewsConfig, ViewsConfig]
    executor: Executor

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """The two views of a step's images, (batch, channels, side, side), channels last."""
        epoch, indices = self.order.batch(step)
        return self.of(indices, epoch)

    def of(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, Tensor]:
        """The two views of given images in an epoch."""
        pixels = self.images.pixels.gather(indices, self.executor)
        parameters = draw_views(
            self.policies,
            seed=self.order.seed,
            epoch=epoch,
            indices=indices,
            heights=pixels.heights,
            widths=pixels.widths,
        )
        first, second = make_views(pixels, parameters, self.policies[0], self.executor)
        return as_images(first), as_images(second)

    def prefetched(self, steps: range) -> Iterator[tuple[Tensor, Tensor]]:
        """The views of each step, made one batch ahead while an accelerator works on the last."""
        with ThreadPoolExecutor(1, thread_name_prefix="diptych-prefetch") as ahead:
            waiting = ahead.submit(self.at, steps.start) if len(steps) else None
            for step in steps:
                assert waiting is not None
                views = waiting.result()
                waiting = ahead.submit(self.at, step + 1) if step + 1 in steps else None
                yield views


def centre_batch(
    images: ImageSet, indices: NDArray[np.int64], config: ViewsConfig, executor: Executor
) -> Tensor:
    """Images as they are evaluated: the centred square, resized; no randomness."""
    pixels = images.pixels.gather(indices, executor)
    views = make_views(pixels, centre_views(pixels.heights, pixels.widths), config, executor)
    return as_images(views[0])


def as_images(views: NDArray[np.float32]) -> Tensor:
    """(batch, side, side, channels) as (batch, channels, side, side), laid channels last."""
    return torch.from_numpy(views).permute(0, 3, 1, 2)
