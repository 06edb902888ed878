"""stable-pretraining's SimCLR and MoCo v2 under its Manager, on a folder of images."""

from typing import Any

import lightning
import stable_pretraining as spt
from peers.runners.shared import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OUTPUT_FEATURES,
    Job,
    Snapshots,
    hidden_of,
    network_of,
    read_job,
)
from stable_pretraining import forward
from stable_pretraining.data import transforms
from stable_pretraining.methods.mocov2 import MoCov2
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def view_of(job: Job) -> Any:
    """One view, in the library's own transforms."""
    brightness, contrast, saturation, hue = (job.strength * one for one in job.jitter)
    steps = [
        transforms.RGB(),
        transforms.RandomResizedCrop((job.side, job.side), scale=(job.crop_area, 1.0)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(
            brightness=brightness, contrast=contrast, saturation=saturation, hue=hue, p=0.8
        ),
        transforms.RandomGrayscale(p=0.2),
    ]
    if job.blur:
        steps.append(transforms.PILGaussianBlur(p=0.5))
    return transforms.Compose(*steps, transforms.ToImage(mean=IMAGENET_MEAN, std=IMAGENET_STD))


def data_of(job: Job) -> Any:
    """Batches of two views of each image."""
    views = transforms.MultiViewTransform([view_of(job), view_of(job)])
    folder = ImageFolder(job.images)
    dataset = spt.data.FromTorchDataset(folder, names=["image", "label"], transform=views)
    loader = DataLoader(
        dataset,
        batch_size=job.batch,
        shuffle=True,
        drop_last=True,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
    )
    return spt.data.DataModule(train=loader)


def optimizer_of(job: Job) -> dict[str, Any]:
    """Plain SGD; the library's scheduler warms up and falls along a cosine."""
    return {
        "optimizer": {
            "type": "SGD",
            "lr": job.rate,
            "momentum": 0.9,
            "weight_decay": job.weight_decay,
        },
        "scheduler": {"type": "LinearWarmupCosineAnnealing"},
        "interval": "step",
    }


def simclr(job: Job, network: nn.Module, features: int) -> Any:
    """Its SimCLR as its script for CIFAR-10 puts it together."""
    hidden = hidden_of(job, features)
    head = nn.Sequential(
        nn.Linear(features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(inplace=True),
        nn.Linear(hidden, OUTPUT_FEATURES),
    )
    return spt.Module(
        backbone=network,
        projector=head,
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=job.temperature),
        optim=optimizer_of(job),
    )


def moco_forward(self: Any, batch: dict[str, Any], stage: str) -> dict[str, Any]:
    """Its MoCo v2 on the two views of a batch."""
    first, second = (view["image"] for view in batch["views"])
    found = self.method(first, second)
    return {"loss": found.loss, "embedding": found.embedding}


def moco_v2(job: Job, network: nn.Module, features: int) -> Any:
    """Its MoCo v2, whose key network its callback moves."""
    method = MoCov2(
        encoder_name=network,
        projector_dims=(hidden_of(job, features), OUTPUT_FEATURES),
        queue_length=job.queue,
        temperature=job.temperature,
        ema_decay_start=job.key_momentum,
        ema_decay_end=job.key_momentum,
    )
    return spt.Module(method=method, forward=moco_forward, optim=optimizer_of(job))


class Snapshot(lightning.pytorch.callbacks.Callback):  # type: ignore[misc]
    """Offers the encoder to the snapshots after every step."""

    def __init__(self, network: nn.Module, snapshots: Snapshots) -> None:
        self.network, self.snapshots = network, snapshots

    def on_train_batch_end(self, *_: object) -> None:
        """A step has ended."""
        self.snapshots.step(self.network)


def main() -> None:
    """Trains, and leaves snapshots of the encoder."""
    job = read_job()
    spt.set(verbose="WARNING", cache_dir=f"{job.out}/cache")
    network, features = network_of(job)
    snapshots = Snapshots(job)
    module = (moco_v2 if job.method == "moco_v2" else simclr)(job, network, features)
    callbacks = [Snapshot(network, snapshots)]
    if job.method == "moco_v2":
        network = module.method.backbone.student
        callbacks = [Snapshot(network, snapshots), spt.TeacherStudentCallback()]
    trainer = lightning.Trainer(
        max_epochs=job.epochs,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        num_sanity_val_steps=0,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        default_root_dir=job.out,
    )
    spt.Manager(trainer=trainer, module=module, data=data_of(job), seed=job.seed)()
    snapshots.save(network)


if __name__ == "__main__":
    main()
