"""Batches of views ready for the network: order, parameters, pixels, views, tensors.

The order of images is a pure function of the seed and the step. So the position of a run in its
data is one integer, the step, and a resumed run meets the images that the unbroken one would have.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diptych.config.data import ViewsConfig
from diptych.config.policies import Policy
from diptych.config.run import RunConfig
from diptych.errors import ConfigError
from diptych.images.collection import ImageSet
from diptych.images.groups import Groups, groups_of
from diptych.images.windows import in_windows
from diptych.runtime.distributed import own_slice
from diptych.views.cpu import (
    EvaluationCrops,
    SizedViews,
    fit,
    gather_all,
    load_evaluated,
    load_views,
)
from diptych.views.device import make_views_on
from diptych.views.draw import draw_views

SMALLEST_BATCH = 2  # contrast is between two images


ORDER_STREAM = 0x4F524452  # "ORDR": keeps these draws apart from any other use of the seed


@dataclass(frozen=True)
class Order:
    """Batches of image indices, shuffled anew in each epoch.

    Attributes:
        seed: of the run.
        image_count: images in the set.
        batch_size: images in a batch. What is left over at the end of an epoch is not visited in
            that epoch; the next one shuffles anew.
    """

    seed: int
    image_count: int
    batch_size: int

    def __post_init__(self) -> None:
        if self.image_count < SMALLEST_BATCH:
            raise ConfigError(
                f"contrast needs {SMALLEST_BATCH} images at least; got {self.image_count}. Give a "
                "path that holds more."
            )
        if self.image_count < self.batch_size:
            raise ConfigError(
                f"training.batch_size = {self.batch_size} needs at least that many images; got "
                f"{self.image_count}. Use --batch-size {self.image_count} or less."
            )

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.image_count // self.batch_size

    def batch(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """The epoch of a step, counted from 0, and the indices of its images, (batch,)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        start = position * self.batch_size
        return epoch, _shuffled(self.seed, epoch, self.image_count)[start : start + self.batch_size]


@lru_cache(maxsize=2)  # batches made ahead may be of the next epoch already
def _shuffled(seed: int, epoch: int, image_count: int) -> NDArray[np.int64]:
    key = np.array([seed, ORDER_STREAM], dtype=np.uint64)
    # The epoch is the highest word of the counter: no permutation counts up into another epoch's.
    bits = np.random.Philox(key=key, counter=np.array([0, 0, 0, epoch], dtype=np.uint64))
    return np.random.Generator(bits).permutation(image_count)


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        views: each (batch, channels, side, side); row i of all shows image i, or two images of
            its group. Small views, if any, come last.
        indices: (batch,), int64, which image each row is.
        step: counted from 0; what a step draws follows from it and the run's seed.
        groups: (batch,), int64: rows with the same number are not each other's negatives. None
            where each image is a group of its own.
        labels: (batch,), int64, or None; for the supervised loss only.

    Where several processes train together these are the rows of one of them.
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

    def pinned(self) -> "Batch":
        """The same batch in memory that a CUDA device copies from by itself."""
        views = tuple(view if view.is_cuda else view.pin_memory() for view in self.views)
        return replace(self, views=views)


@dataclass(frozen=True)
class ViewBatches:
    """Makes the views of every batch of a run.

    Attributes:
        images: to learn from.
        order: which images come in which step.
        config: what may be done to an image; its two policies take turns over the views.
        executor: its threads decode and make views.
        view_count: full-sized views of each image.
        groups: of the images; None where each image is a group of its own.
        device: where views are made, by tensor operations; None for the compiled loops.
    """

    images: ImageSet
    order: Order
    config: ViewsConfig
    executor: Executor
    view_count: int = 2
    groups: Groups | None = None
    device: torch.device | None = None

    def at(self, step: int) -> Batch:
        """This process's share of the batch of a step."""
        epoch, indices = self.order.batch(step)
        # All processes draw the whole batch, so that its order does not depend on their number.
        indices = indices[own_slice(len(indices))]
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
            return self._make(indices, epoch, range(self._all_views))
        # The first view shows the image itself, as small ones do; others another of its group.
        shown = self.groups.partners(
            indices, seed=self.order.seed, epoch=epoch, views=self.view_count
        )
        large = [
            self._make(images, epoch, range(view, view + 1)) for view, images in enumerate(shown)
        ]
        small = self._make(indices, epoch, range(self.view_count, self._all_views))
        return (*(view for made in large for view in made), *small)

    def sized_for(self, step: int, *, total_steps: int) -> "ViewBatches":
        """The same, or with the smaller views of the first part of a run that has such a part.

        Args:
            step: counted from 0.
            total_steps: of the run.
        """
        side = self.config.side_at(step, total_steps=total_steps)
        return self if side == self.config.side_pixels else self.early

    @cached_property
    def early(self) -> "ViewBatches":
        """The same with the views of the first part of a run, of which small ones stay as they are.

        Parameters are drawn as for the full side: these are the same crops, resized to fewer
        pixels.
        """
        side, small = self.config.early_side_pixels, self.config.small_side
        views = replace(self.config, side_pixels=side, small_side_pixels=small, early_side=1.0)
        return replace(self, config=views)

    def prefetched(
        self, steps: range, *, total_steps: Callable[[], int], pin: bool = False
    ) -> Generator[Batch]:
        """The batch of each step, made one ahead while an accelerator works on the last.

        Args:
            steps: to make the batches of.
            total_steps: of the run, as they are planned by now.
            pin: copy them to pinned memory, for a CUDA device.
        """

        def make(batches: ViewBatches, step: int) -> Batch:
            batch = batches.at(step)
            return batch.pinned() if pin else batch

        def begin(step: int) -> Future[Batch]:
            # The plan is read here and not in the thread, so that all processes read the same.
            return ahead.submit(make, self.sized_for(step, total_steps=total_steps()), step)

        # One thread and one batch ahead: more would only hold more batches in memory.
        with ThreadPoolExecutor(1, thread_name_prefix="diptych-prefetch") as ahead:
            waiting = begin(steps.start) if len(steps) else None
            for step in steps:
                assert waiting is not None
                batch = waiting.result()
                # Before the yield, at which this stands still while the network works.
                waiting = begin(step + 1) if step + 1 in steps else None
                yield batch

    @cached_property
    def _all_views(self) -> int:
        return self.view_count + self.config.small_views

    @cached_property
    def _policies(self) -> tuple[Policy, ...]:
        """One for each view of an image."""
        two = self.config.branches
        large = tuple(two[view % 2] for view in range(self.view_count))
        return large + (self.config.small_branch,) * self.config.small_views

    def _make(self, indices: NDArray[np.int64], epoch: int, which: range) -> tuple[Tensor, ...]:
        """Some of the views of images."""
        large = range(which.start, min(which.stop, self.view_count))
        small = range(max(which.start, self.view_count), which.stop)
        sides = (self.config.side_pixels, self.config.small_side)
        sized = [
            self._sized(indices, epoch, views, side)
            for views, side in zip((large, small), sides, strict=True)
            if len(views)
        ]
        if not sized:
            return ()
        if self.device is None:
            made = load_views(self.images, indices, sized, self.config, self.executor)
            return tuple(as_images(view) for views in made for view in views)
        return self._make_on(self.device, indices, sized)

    def _make_on(
        self, device: torch.device, indices: NDArray[np.int64], sized: list[SizedViews]
    ) -> tuple[Tensor, ...]:
        pixels = gather_all(self.images, indices, self.executor)
        heights, widths = self.images.heights[indices], self.images.widths[indices]
        made = [
            make_views_on(
                pixels,
                fit(one.drawn, pixels, heights, widths),
                self.config,
                device,
                side_pixels=one.side_pixels,
            )
            for one in sized
        ]
        return tuple(view for views in made for view in views)

    def _sized(self, indices: NDArray[np.int64], epoch: int, views: range, side: int) -> SizedViews:
        drawn = draw_views(
            self._policies[views.start : views.stop],
            strength=self.config.strength,
            side_pixels=side,
            seed=self.order.seed,
            epoch=epoch,
            indices=indices,
            heights=self.images.heights[indices],
            widths=self.images.widths[indices],
            first_view=views.start,
        )
        return SizedViews(drawn, side)


def learned_images(images: ImageSet, config: RunConfig) -> tuple[ImageSet, Groups | None]:
    """What a run makes its views of: windows of photographs where it cuts them, and their groups.

    Args:
        images: to learn from, as they were opened.
        config: of the run.

    Raises:
        ConfigError: windows are smaller than a view, or the images have no such groups.
    """
    cut = in_windows(images, config.images.windows, side_pixels=config.views.side_pixels)
    return cut, groups_of(cut.names, config.images)


def evaluation_views(
    images: ImageSet,
    indices: NDArray[np.int64],
    crops: EvaluationCrops,
    config: ViewsConfig,
    executor: Executor,
) -> tuple[Tensor, ...]:
    """Images as they are evaluated, one or five views of each; no randomness."""
    return tuple(map(as_images, load_evaluated(images, indices, crops, config, executor)))


def as_images(views: NDArray[np.float32]) -> Tensor:
    """(batch, side, side, channels) as (batch, channels, side, side), laid channels last."""
    # A view of the memory as the loops wrote it; contiguous() would copy every batch.
    return torch.from_numpy(views).permute(0, 3, 1, 2)
