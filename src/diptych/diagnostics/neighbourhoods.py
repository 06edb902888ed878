"""Whether an image has the same nearest neighbours in another view of it."""

from concurrent.futures import Executor
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.data import ViewsConfig
from diptych.diagnostics.label_free import neighbour_agreement
from diptych.evaluation.features import PIXEL_SIDE, in_batches
from diptych.images.collection import ImageSet
from diptych.images.listing import Progress, ignore_progress
from diptych.runtime.devices import BATCH_SIZE
from diptych.views.batches import Order, ViewBatches

STABILITY_VIEWS: Final = "crop(area=0.3..1) + flip + color(brightness=0.4, hue=0.1) + gray"
"""The same for every run: with a run's own weak views any encoder would look stable."""

_SEED: Final = 0  # of the views: the same for every encoder
_BATCH: Final = 256


def batches_of_views(
    images: ImageSet, views: ViewsConfig, executor: Executor, *, batch_size: int = _BATCH
) -> ViewBatches:
    """Two views of each image, the same for every encoder of one size of views."""
    order = Order(_SEED, len(images), min(batch_size, len(images)))
    return ViewBatches(images, order, replace(views, small_views=0), executor)


class Pixels(nn.Module):
    """Raw pixels in the place of features, to compare an encoder with."""

    def forward(self, views: Tensor) -> Tensor:
        """From (batch, channels, side, side) to (batch, values), of a smaller image."""
        side = min(PIXEL_SIDE, views.shape[-1])
        return functional.adaptive_avg_pool2d(views, side).flatten(1)


def stability(
    encoder: nn.Module,
    images: ImageSet,
    views: ViewsConfig,
    executor: Executor,
    *,
    batch_size: int = BATCH_SIZE,
    told: Progress = ignore_progress,
) -> float:
    """Share of an image's ten nearest neighbours that two views of it agree on.

    Args:
        encoder: of h; it is in evaluation mode afterwards.
        images: among which neighbours are looked for.
        views: how a run sees images; ``STABILITY_VIEWS`` take the place of its policy.
        executor: its threads make views.
        batch_size: images that the encoder sees at once.
        told: how many are done.
    """
    # A run's own strength or second policy would make these views other ones than those of others.
    views = replace(views, policy=STABILITY_VIEWS, second=None, strength=1.0)
    batches = batches_of_views(images, views, executor)
    device = next((one.device for one in encoder.parameters()), torch.device("cpu"))
    parts: list[tuple[Tensor, Tensor]] = []
    encoder.eval()
    for indices in in_batches(len(images), batch_size):
        made = batches.of(indices, epoch=0)
        with torch.no_grad():
            first, second = (encoder(view.to(device)).float().cpu() for view in made)
        parts.append((first, second))
        told(int(indices[-1]) + 1, len(images))
    firsts, seconds = zip(*parts, strict=True)
    return neighbour_agreement(torch.cat(firsts), torch.cat(seconds))
