"""Training on labels: a linear classifier on an encoder, and the loop that trains both or one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.data import ViewsConfig
from diptych.config.run import RunConfig
from diptych.errors import TrainingError
from diptych.evaluation.features import encode
from diptych.images.collection import ImageSet
from diptych.images.listing import Progress, ignore_progress
from diptych.models.encoders import count_features
from diptych.optimization.optimizers import set_learning_rate
from diptych.runtime.devices import Runtime
from diptych.views.batches import Order, ViewBatches

REFERENCE_BATCH: Final = 256
"""Images in the batch for which the papers give learning rates; ours are no larger."""

CROP_AND_FLIP: Final = "crop(area=0.08..1) + flip"
"""What the papers do to images while they learn from labels (SimCLR, appendix B.5 and B.6)."""


class Classifier(nn.Module):
    """An encoder with a linear layer on it.

    Attributes:
        encoder: from (batch, channels, side, side) to (batch, features).
        head: from features to logits.
        frozen: the encoder stays as it is, in evaluation mode.
    """

    def __init__(
        self, encoder: nn.Module, features: int, classes: int, *, frozen: bool, seed: int
    ) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(not frozen)
        self.frozen = frozen
        self.head = nn.Linear(features, classes)
        # Drawn again by the seed: nn.Linear drew from torch's own generator, whose state follows
        # from whatever ran before.
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.head.bias)

    def train(self, mode: bool = True) -> "Classifier":
        """Batch norms of a frozen encoder keep to their running statistics."""
        super().train(mode)
        if self.frozen:
            self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, side, side) to logits (batch, classes)."""
        # Both, so that a frozen encoder does not switch gradients on where a caller has them off.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            features = self.encoder(images)
        logits: Tensor = self.head(features)
        return logits


def with_linear_head(
    network: nn.Module, config: RunConfig, classes: int, *, frozen: bool, seed: int
) -> Classifier:
    """A linear classifier on an encoder that sees what a run's config says."""
    features = count_features(
        network, channels=config.images.channels, side_pixels=config.views.side_pixels
    )
    return Classifier(network, features, classes, frozen=frozen, seed=seed)


def train_on_labels(
    classifier: nn.Module,
    batches: ViewBatches,
    optimizer: torch.optim.Optimizer,
    rate: Callable[[int], float],
    *,
    steps: int,
    clip_norm: float | None = None,
    begin_step: Callable[[int], None] = lambda _: None,
    on_images: Progress = ignore_progress,
) -> None:
    """Minimises the mean cross-entropy of all views, step by step; ends in evaluation mode.

    Args:
        classifier: from images to logits, on its device.
        batches: of labelled images.
        optimizer: of what is to move.
        rate: learning rate of a step.
        steps: to take.
        clip_norm: longest gradient; None for no bound.
        begin_step: called with the number of each step before it.
        on_images: told how many images of all steps are done.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    device = next(classifier.parameters()).device
    moved = [p for p in classifier.parameters() if p.requires_grad]
    classifier.train()
    for step in range(steps):
        begin_step(step)
        batch = batches.at(step).to(device)
        assert batch.labels is not None
        losses = [functional.cross_entropy(classifier(v), batch.labels) for v in batch.views]
        loss = torch.stack(losses).mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(moved, clip_norm)
        set_learning_rate(optimizer, rate(step))
        optimizer.step()
        on_images((step + 1) * batches.order.batch_size, steps * batches.order.batch_size)
    # Only at the end: reading the loss at each step would make the host wait for the device.
    if steps and not bool(torch.isfinite(loss)):
        raise TrainingError(
            f"learning from labels went astray: the loss is {float(loss.detach())} after {steps} "
            "steps. Try a lower learning rate."
        )
    classifier.eval()


def crop_and_flip(
    images: ImageSet, views: ViewsConfig, runtime: Runtime, *, batch_size: int, seed: int
) -> ViewBatches:
    """Batches of labelled images, one view of each, cropped and flipped and no more."""
    plain = replace(views, policy=CROP_AND_FLIP, second=CROP_AND_FLIP, small_views=0)
    order = Order(seed, len(images), min(batch_size, len(images)))
    device = runtime.views_device(views.applier)
    return ViewBatches(images, order, plain, runtime.executor, view_count=1, device=device)


def predict(
    classifier: nn.Module, images: ImageSet, views: ViewsConfig, runtime: Runtime
) -> Tensor:
    """The most likely class of each image, seen as it is in evaluation; (images,)."""
    logits = encode(classifier, images, views, runtime.executor, batch_size=runtime.batch_size)
    return logits.argmax(dim=1)


def in_whole_groups(config: RunConfig, images: int) -> int:
    """The largest batch of so many images that the run's norm cuts into whole groups."""
    group = config.norm.images_per_group
    return images // group * group if config.norm.is_grouped and images > group else images
