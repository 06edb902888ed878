"""The supervised baseline: a run's network with its views, optimizer and steps, on the labels."""

import hashlib
import json
from pathlib import Path

import torch
from torch import nn

from diptych.config.consistency import norm_of_batch
from diptych.config.files import to_toml
from diptych.config.run import RunConfig
from diptych.evaluation.labelled import Labelled
from diptych.evaluation.train_on_labels import (
    Classifier,
    in_whole_groups,
    train_on_labels,
    with_linear_head,
)
from diptych.models.encoders import build_encoder, own_encoder
from diptych.models.norms import use_norm
from diptych.models.parts import FrozenParts, batch_norms, encoder_parts, hold_statistics
from diptych.models.start import load_start
from diptych.models.weight_files import file_checksum
from diptych.models.weights import PretrainedEncoder, load_encoder, load_untrained, save_encoder
from diptych.optimization.optimizers import build_optimizer, learning_rate, peak_learning_rate
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text
from diptych.runtime.devices import Runtime
from diptych.views.batches import Order, ViewBatches


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
