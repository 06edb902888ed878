"""Batches of views ready for the network: order, pixels, parameters, views, tensors."""

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.configs import ViewsConfig
from diptych.images.collection import ImageSet
from diptych.images.groups import Groups
from diptych.images.order import Order
from diptych.views.cpu import make_views
from diptych.views.draw import centre_views, draw_views


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        views: each (batch, channels, side, side); row i of all shows image i, or two images of
            its group.
        indices: (batch,), int64, which image each row is.
        step: counted from 0; what a step draws follows from it and the run's seed.
        groups: (batch,), int64: rows with the same number are not each other's negatives. None
            where each image is a group of its own.
        labels: (batch,), int64, or None; for the supervised loss only.
    """

    views: tuple[Tensor, ...]
    indices: Tensor
    step: int
    groups: Tensor | None = None
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, non_blocking=True)

        return replace(
            self,
            views=tuple(view.to(device, non_blocking=True) for view in self.views),
            indices=self.indices.to(device, non_blocking=True),
            groups=moved(self.groups),
            labels=moved(self.labels),
        )


@dataclass(frozen=True)
class ViewBatches:
    """Makes the views of every batch of a run.

    Attributes:
        images: to learn from.
        order: which images come in which step.
        policies: what may be done, one for each view of an image.
        executor: its threads decode and make views.
        groups: of the images; None where each image is a group of its own.
    """

    images: ImageSet
    order: Order
    policies: tuple[ViewsConfig, ...]
    executor: Executor
    groups: Groups | None = None

    def at(self, step: int) -> Batch:
        """The batch of a step, on the CPU."""
        epoch, indices = self.order.batch(step)
        groups, labels = self.groups, self.images.labels
        return Batch(
            views=self.of(indices, epoch),
            indices=torch.from_numpy(indices),
            step=step,
            groups=None if groups is None else torch.from_numpy(groups.numbers[indices]),
            labels=None if labels is None else torch.from_numpy(labels[indices]),
        )

    def of(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
        """The views of given images in an epoch, each (images, channels, side, side)."""
        if self.groups is None:
            return tuple(as_images(view) for view in self._make(indices, epoch, slice(None)))
        # The first view shows the image itself, every other one another image of its group.
        shown = self.groups.partners(
            indices, seed=self.order.seed, epoch=epoch, views=len(self.policies)
        )
        return tuple(
            as_images(self._make(images, epoch, slice(view, view + 1))[0])
            for view, images in enumerate(shown)
        )

    def _make(self, indices: NDArray[np.int64], epoch: int, which: slice) -> NDArray[np.float32]:
        """Some of the views of images, (views, images, side, side, channels)."""
        pixels = self.images.pixels.gather(indices)
        parameters = draw_views(
            self.policies,
            seed=self.order.seed,
            epoch=epoch,
            indices=indices,
            heights=pixels.heights,
            widths=pixels.widths,
        )
        return make_views(pixels, parameters[which], self.policies[0], self.executor)

    def prefetched(self, steps: range) -> Iterator[Batch]:
        """The batch of each step, made one ahead while an accelerator works on the last."""
        with ThreadPoolExecutor(1, thread_name_prefix="diptych-prefetch") as ahead:
            waiting = ahead.submit(self.at, steps.start) if len(steps) else None
            for step in steps:
                assert waiting is not None
                batch = waiting.result()
                waiting = ahead.submit(self.at, step + 1) if step + 1 in steps else None
                yield batch


def centre_batch(
    images: ImageSet, indices: NDArray[np.int64], config: ViewsConfig, executor: Executor
) -> Tensor:
    """Images as they are evaluated: the centred square, resized; no randomness."""
    pixels = images.pixels.gather(indices)
    views = make_views(pixels, centre_views(pixels.heights, pixels.widths), config, executor)
    return as_images(views[0])


def as_images(views: NDArray[np.float32]) -> Tensor:
    """(batch, side, side, channels) as (batch, channels, side, side), laid channels last."""
    return torch.from_numpy(views).permute(0, 3, 1, 2)
