"""lightly's example loops of SimCLR and MoCo v2, on a folder of images."""

import copy

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead, SimCLRProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms.moco_transform import MoCoV2Transform
from lightly.transforms.simclr_transform import SimCLRTransform
from peers.runners.shared import (
    OUTPUT_FEATURES,
    Job,
    Snapshots,
    cosine,
    hidden_of,
    network_of,
    read_job,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader


def loader_of(job: Job) -> DataLoader[object]:
    """Batches of two views of each image."""
    kind = MoCoV2Transform if job.method == "moco_v2" else SimCLRTransform
    transform = kind(
        input_size=job.side, cj_strength=job.strength, gaussian_blur=0.5 if job.blur else 0.0
    )
    dataset = LightlyDataset(input_dir=job.images, transform=transform)
    return DataLoader(
        dataset,
        batch_size=job.batch,
        shuffle=True,
        drop_last=True,
        num_workers=job.workers,
        persistent_workers=job.workers > 0,
    )


class SimCLR(nn.Module):
    """Encoder and projection head, and the loss of a batch."""

    def __init__(self, encoder: nn.Module, features: int, job: Job) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = SimCLRProjectionHead(features, hidden_of(job, features), OUTPUT_FEATURES)
        self.criterion = NTXentLoss(temperature=job.temperature)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views."""
        loss: Tensor = self.criterion(
            self.head(self.encoder(first)), self.head(self.encoder(second))
        )
        return loss


class MoCo(nn.Module):
    """Query and key networks, and the loss against a queue."""

    def __init__(self, encoder: nn.Module, features: int, job: Job) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = MoCoProjectionHead(features, hidden_of(job, features), OUTPUT_FEATURES)
        self.key_encoder, self.key_head = copy.deepcopy(encoder), copy.deepcopy(self.head)
        deactivate_requires_grad(self.key_encoder)
        deactivate_requires_grad(self.key_head)
        self.momentum = job.key_momentum
        size = (job.queue, OUTPUT_FEATURES)
        self.criterion = NTXentLoss(temperature=job.temperature, memory_bank_size=size)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views; the key network moves first, as in the example."""
        update_momentum(self.encoder, self.key_encoder, m=self.momentum)
        update_momentum(self.head, self.key_head, m=self.momentum)
        with torch.no_grad():
            keys = self.key_head(self.key_encoder(second))
        loss: Tensor = self.criterion(self.head(self.encoder(first)), keys)
        return loss


def main() -> None:
    """Trains, and leaves snapshots of the encoder."""
    job = read_job()
    encoder, features = network_of(job)
    model = (MoCo if job.method == "moco_v2" else SimCLR)(encoder, features, job)
    loader, snapshots = loader_of(job), Snapshots(job)
    optimizer = torch.optim.SGD(
        [one for one in model.parameters() if one.requires_grad],
        lr=job.rate,
        momentum=0.9,
        weight_decay=job.weight_decay,
    )
    schedule = cosine(optimizer, job.epochs * len(loader))
    for epoch in range(job.epochs):
        total = 0.0
        for (first, second), _, _ in loader:
            loss = model(first, second)
            total += float(loss.detach())
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            snapshots.step(encoder)
        print(f"epoch {epoch}: loss {total / len(loader):.5f}", flush=True)
    snapshots.save(encoder)


if __name__ == "__main__":
    main()
