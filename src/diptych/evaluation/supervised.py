"""Training on labels: the supervised baseline, and what fine-tuning and SGD probes share with it.

The baseline is the same network with the same views, optimizer and steps, trained on the labels.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.config.consistency import norm_of_batch
from diptych.config.data import ViewsConfig
from diptych.config.files import to_toml
from diptych.config.run import RunConfig
from diptych.errors import TrainingError
from diptych.evaluation.features import encode
from diptych.evaluation.labelled import Labelled
from diptych.images.collection import ImageSet
from diptych.images.listing import Progress, ignore_progress
from diptych.models.encoders import build_encoder, count_features, own_encoder
from diptych.models.norms import use_norm
from diptych.models.parts import FrozenParts, batch_norms, encoder_parts, hold_statistics
from diptych.models.start import load_start
from diptych.models.weight_files import file_checksum
from diptych.models.weights import PretrainedEncoder, load_encoder, load_untrained, save_encoder
from diptych.optimization.optimizers import (
    build_optimizer,
    learning_rate,
    peak_learning_rate,
    set_learning_rate,
)
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text
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


def train_supervised(
    encoder: nn.Module,
    config: RunConfig,
    labelled: Labelled,
    runtime: Runtime,
    *,
    epochs: int | None = None,
) -> nn.Module:
    """Trains a run's network on the labels, as the run trained it by contrast.

    Both views of an image are classified by a linear layer on the encoder, with cross-entropy;
    frozen parts, order, views, optimizer and schedule are the run's.

    Args:
        encoder: as the run began with it; is trained.
        config: of the run.
        labelled: its training part is learned from.
        runtime: to train it on.
        epochs: passes over the labelled images; those of the run when not given.

    Returns:
        The encoder without the classifier, in evaluation mode.
    """
    device = runtime.torch_device
    order = Order(config.seed, len(labelled.train), _batch_size(config, labelled))
    steps = (epochs or config.training.epochs) * order.steps_per_epoch
    classifier = _classifier(encoder, config, len(labelled.classes)).to(device)
    parts = [[encoder.get_parameter(name) for name in part] for part in encoder_parts(encoder)]
    optimizer = build_optimizer(config.optimizer, classifier, parts)
    frozen = FrozenParts(classifier.train().encoder, config.encoder.frozen_parts)
    frozen_epochs = config.encoder.frozen_epochs
    peak = peak_learning_rate(config.optimizer, order.batch_size)

    def freeze(step: int) -> None:
        frozen.set(
            frozen=frozen_epochs is None or step < round(frozen_epochs * order.steps_per_epoch)
        )

    def rate(step: int) -> float:
        return learning_rate(
            config.schedule,
            peak=peak,
            step=step,
            steps_per_epoch=order.steps_per_epoch,
            total_steps=steps,
        )

    batches = ViewBatches(
        labelled.train,
        order,
        config.views,
        runtime.executor,
        view_count=config.method.views,
        device=runtime.views_device(config.views.applier),
    )
    train_on_labels(
        classifier,
        batches,
        optimizer,
        rate,
        steps=steps,
        clip_norm=config.optimizer.clip_norm,
        begin_step=freeze,
        on_images=runtime.counting("Training the supervised encoder"),
    )
    return classifier.encoder


def supervised_encoder(
    folder: RunFolder,
    config: RunConfig,
    labelled: Labelled,
    runtime: Runtime,
    own: nn.Module | None = None,
) -> PretrainedEncoder:
    """The supervised baseline of a run: trained once, then kept in the run's folder.

    It takes as many steps as the run, or the next full epoch: the labelled images may be fewer than
    those that the run learned from.

    Args:
        folder: of the run.
        config: of the run.
        labelled: its training part is learned from.
        runtime: to train it on.
        own: the module that was given in Python, of a run that was trained with such.

    Raises:
        RunFolderError: the weights that the run began with are gone or damaged.
        TrainingError: the loss is not a finite number.
    """
    wanted = _fingerprint(folder, config, labelled)
    if _fingerprint_of(folder.supervised) != wanted:
        per_epoch = max(1, len(labelled.train) // _batch_size(config, labelled))
        epochs = max(1, -(-_run_steps(folder, config, per_epoch) // per_epoch))
        begun = _begun(folder, config, own)
        encoder = train_supervised(begun, config, labelled, runtime, epochs=epochs)
        save_encoder(folder.supervised, encoder, config, texts={"labels": wanted})
    return load_encoder(folder.supervised, encoder=own)


def _begun(folder: RunFolder, config: RunConfig, own: nn.Module | None) -> nn.Module:
    """The encoder as a run began to train it."""
    channels, side = config.images.channels, config.views.side_pixels
    if own is not None:
        # A copy, which keeps what the module says of its parameters: some may never train.
        encoder = own_encoder(own, channels=channels, side_pixels=side)
        state = load_untrained(folder, config, own).network.state_dict()
        encoder.load_state_dict(state, strict=False)  # a norm of each image has no statistics
    elif config.encoder.weights is not None:
        encoder = load_start(folder.start, config)
    else:
        encoder = build_encoder(
            config.encoder, channels=channels, side_pixels=side, seed=config.seed
        )
    encoder = use_norm(encoder, norm_of_batch(config)).to(memory_format=torch.channels_last)
    if config.encoder.batch_statistics == "start":
        hold_statistics(batch_norms(encoder))
    return encoder


def _classifier(encoder: nn.Module, config: RunConfig, classes: int) -> Classifier:
    """A linear layer on an encoder, of which the same parameters train as before."""
    still = [one for one in encoder.parameters() if not one.requires_grad]
    classifier = with_linear_head(encoder, config, classes, frozen=False, seed=config.seed)
    for parameter in still:
        parameter.requires_grad_(False)
    return classifier


def in_whole_groups(config: RunConfig, images: int) -> int:
    """The largest batch of so many images that the run's norm cuts into whole groups."""
    group = config.norm.images_per_group
    return images // group * group if config.norm.is_grouped and images > group else images


def _batch_size(config: RunConfig, labelled: Labelled) -> int:
    return in_whole_groups(config, min(config.training.batch_size, len(labelled.train)))


def _run_steps(folder: RunFolder, config: RunConfig, per_epoch: int) -> int:
    """Steps that the run took; where its metrics are gone, its epochs of the labelled images."""
    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    if not lines:
        return config.training.epochs * per_epoch
    return int(json.loads(lines[-1])["step"])


def _fingerprint(folder: RunFolder, config: RunConfig, labelled: Labelled) -> str:
    digest = hashlib.sha256(labelled.train.fingerprint().encode())
    digest.update(labelled.train_labels.numpy().tobytes())
    digest.update(to_toml(config).encode())
    for begun in (folder.start, folder.untrained):
        if begun.exists():
            digest.update(file_checksum(begun).encode())
    return digest.hexdigest()


def _fingerprint_of(file: Path) -> str | None:
    """What a kept encoder was trained on; None where there is none that can be read."""
    try:
        return read_tensors_and_text(file)[1].get("labels")
    except UnreadableTensors:
        return None
