"""The rival that is told the labels: the same network, views, optimizer and number of steps."""

import hashlib
import json
from concurrent.futures import Executor
from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn

from diptych.config.files import to_toml
from diptych.config.sections import RunConfig, norm_of_batch
from diptych.evaluation.classifying import Classifier, on_top_of, train_on_labels
from diptych.evaluation.labelled import Labelled
from diptych.images.order import Order
from diptych.models.encoders import build_encoder
from diptych.models.norms import use_norm
from diptych.models.weights import PretrainedEncoder, load_encoder
from diptych.optimization.optimizers import build_optimizer
from diptych.optimization.schedules import learning_rate, peak_learning_rate
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder
from diptych.runs.tensor_files import UnreadableTensors, read_tensors_and_text
from diptych.runtime.device import choose_device, views_device
from diptych.views.batches import ViewBatches


def train_supervised(
    config: RunConfig, labelled: Labelled, executor: Executor, *, epochs: int | None = None
) -> nn.Module:
    """Trains a run's network on the labels, as the run trained it by contrast.

    Both views of an image are classified by a linear layer on the encoder, with cross-entropy;
    network, initial weights, order, views, optimizer and schedule are the run's.

    Args:
        config: of the run.
        labelled: its training part is learned from.
        executor: its threads make views.
        epochs: passes over the labelled images; those of the run when not given.

    Returns:
        The encoder without the classifier, in evaluation mode.
    """
    device = choose_device(config.training.device)
    order = Order(config.seed, len(labelled.train), _batch_size(config, labelled))
    steps = (epochs or config.training.epochs) * order.steps_per_epoch
    classifier = _build(config, len(labelled.classes)).to(device)
    peak = peak_learning_rate(config.optimizer, order.batch_size)

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
        executor,
        view_count=config.method.views,
        device=views_device(config.views.applier, device),
    )
    train_on_labels(
        classifier,
        batches,
        build_optimizer(config.optimizer, classifier),
        rate,
        steps=steps,
        clip_norm=config.optimizer.clip_norm,
    )
    return classifier.encoder


def supervised_encoder(
    folder: RunFolder, config: RunConfig, labelled: Labelled, executor: Executor
) -> PretrainedEncoder:
    """The supervised rival of a run: trained once, then kept in the run's folder.

    It takes as many steps as the run, or the next full epoch: the labelled images may be fewer than
    those that the run learned from.
    """
    wanted = _fingerprint(config, labelled)
    if _fingerprint_of(folder.supervised) != wanted:
        per_epoch = max(1, len(labelled.train) // _batch_size(config, labelled))
        epochs = max(1, -(-_run_steps(folder, config, per_epoch) // per_epoch))
        encoder = train_supervised(config, labelled, executor, epochs=epochs)
        weights = {name: value.cpu().contiguous() for name, value in encoder.state_dict().items()}
        header = {"config": to_toml(config), "labels": wanted}
        atomic_write(folder.supervised, save(weights, metadata=header))
    return load_encoder(folder.supervised)


def _build(config: RunConfig, classes: int) -> Classifier:
    channels, side = config.images.channels, config.views.side_pixels
    encoder = build_encoder(config.encoder, channels=channels, side_pixels=side, seed=config.seed)
    normed = use_norm(encoder, norm_of_batch(config)).to(memory_format=torch.channels_last)
    return on_top_of(normed, config, classes, frozen=False, seed=config.seed)


def _batch_size(config: RunConfig, labelled: Labelled) -> int:
    return min(config.training.batch_size, len(labelled.train))


def _run_steps(folder: RunFolder, config: RunConfig, per_epoch: int) -> int:
    """Steps that the run took; where its metrics are gone, its epochs of the labelled images."""
    lines = folder.metrics.read_text().splitlines() if folder.metrics.exists() else []
    if not lines:
        return config.training.epochs * per_epoch
    return int(json.loads(lines[-1])["step"])


def _fingerprint(config: RunConfig, labelled: Labelled) -> str:
    digest = hashlib.sha256(labelled.train.fingerprint().encode())
    digest.update(labelled.train_labels.numpy().tobytes())
    digest.update(to_toml(config).encode())
    return digest.hexdigest()


def _fingerprint_of(file: Path) -> str | None:
    """What a kept encoder was trained on; None where there is none that can be read."""
    try:
        return read_tensors_and_text(file)[1].get("labels")
    except UnreadableTensors:
        return None
