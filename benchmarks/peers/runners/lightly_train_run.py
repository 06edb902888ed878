"""lightly-train's `pretrain` with its SimCLR, on a folder of images; it has no MoCo."""

from typing import Any

import lightly_train
from peers.runners.shared import (
    OUTPUT_FEATURES,
    Job,
    Snapshots,
    hidden_of,
    maps_of,
    network_of,
    read_job,
)
from torch import Tensor, nn
from torch.nn import functional


class Wrapped(nn.Module):
    """The network in the form that lightly-train asks of a model of one's own."""

    def __init__(self, network: nn.Module, features: int, snapshots: Snapshots) -> None:
        super().__init__()
        self.network, self.features, self.snapshots = network, features, snapshots

    def get_model(self) -> nn.Module:
        """What is exported."""
        return self.network

    def feature_dim(self) -> int:
        """Channels of the last maps."""
        return self.features

    def forward_features(self, images: Tensor) -> dict[str, Any]:
        """The last maps; called once in every step."""
        if self.training:
            self.snapshots.step(self.network)
        return {"features": maps_of(self.network, images)}

    def forward_pool(self, found: dict[str, Any]) -> dict[str, Any]:
        """Their averages."""
        return {"pooled_features": functional.adaptive_avg_pool2d(found["features"], 1)}


def transform_of(job: Job) -> dict[str, Any]:
    """The views in lightly-train's words; what is not said stays as it is there."""
    brightness, contrast, saturation, hue = job.jitter
    views: dict[str, Any] = {
        "image_size": (job.side, job.side),
        "random_resize": {"min_scale": job.crop_area, "max_scale": 1.0},
        "color_jitter": {
            "prob": 0.8,
            "strength": job.strength,
            "brightness": brightness,
            "contrast": contrast,
            "saturation": saturation,
            "hue": hue,
        },
    }
    if not job.blur:
        views["gaussian_blur"] = None
    return views


def main() -> None:
    """Trains, and leaves snapshots of the encoder."""
    job = read_job()
    network, features = network_of(job)
    snapshots = Snapshots(job)
    lightly_train.pretrain(
        out=f"{job.out}/run",
        data=job.images,
        model=Wrapped(network, features, snapshots),
        method="simclr",
        method_args={
            "temperature": job.temperature,
            "hidden_dim": hidden_of(job, features),
            "output_dim": OUTPUT_FEATURES,
        },
        # It takes the rate for a batch of 256 and scales it by the batch.
        optim="sgd",
        optim_args={"lr": job.rate * 256 / job.batch, "weight_decay": job.weight_decay},
        transform_args=transform_of(job),
        epochs=job.epochs,
        batch_size=job.batch,
        num_workers=job.workers,
        accelerator="cpu",
        devices=1,
        precision="32-true",
        seed=job.seed,
        overwrite=True,
    )
    snapshots.save(network)


if __name__ == "__main__":
    main()
