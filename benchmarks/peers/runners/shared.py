"""What the runners share; it runs in the environments of the peers.

Of diptych only the networks for tiny images and the initial weights are used, so that both sides
train the same; a ResNet of theirs is torchvision's.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from diptych.config.model import EncoderConfig
from diptych.models.encoders import build_encoder, count_features

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OUTPUT_FEATURES = 128


class Job(NamedTuple):
    """One run, the same for every library; see ``peers.contenders.Run`` for what is in it."""

    images: str
    out: str
    method: str
    network: str
    side: int
    batch: int
    epochs: int
    seed: int
    workers: int
    strength: float
    blur: bool
    temperature: float
    rate: float
    weight_decay: float
    queue: int
    key_momentum: float
    hidden_features: int | None
    snapshot_seconds: float

    @property
    def crop_area(self) -> float:
        """Least share of an image in a crop: MoCo's is larger."""
        return 0.2 if self.method == "moco_v2" else 0.08

    @property
    def jitter(self) -> tuple[float, float, float, float]:
        """Brightness, contrast, saturation and hue, before the strength."""
        return (0.4, 0.4, 0.4, 0.1) if self.method == "moco_v2" else (0.8, 0.8, 0.8, 0.2)


def read_job() -> Job:
    """The job that the command was given, and the threads and the seed that it asks for."""
    job = Job(**json.loads(sys.argv[1]))
    torch.manual_seed(job.seed)
    Path(job.out).mkdir(parents=True, exist_ok=True)
    return job


def network_of(job: Job) -> tuple[nn.Module, int]:
    """The network and how many features it gives."""
    config = EncoderConfig(name=job.network, stem="small" if "small" in job.network else "imagenet")
    network = build_encoder(config, channels=3, side_pixels=job.side, seed=job.seed)
    if config.stem == "imagenet":
        # A user of a peer takes torchvision's; here with the same weights.
        import torchvision

        theirs = torchvision.models.get_model(job.network, weights=None)
        theirs.fc = nn.Identity()
        theirs.load_state_dict(network.state_dict(), strict=True)
        network = theirs
    return network, count_features(network, channels=3, side_pixels=job.side)


def hidden_of(job: Job, features: int) -> int:
    """Width of a projection head inside."""
    return features if job.hidden_features is None else job.hidden_features


def maps_of(network: Any, images: Tensor) -> Tensor:
    """The last maps, before they are averaged over the image."""
    if hasattr(network, "blocks"):
        small: Tensor = network.blocks(network.relu(network.bn1(network.conv1(images))))
        return small
    maps = network.maxpool(network.relu(network.bn1(network.conv1(images))))
    for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
        maps = stage(maps)
    return maps


def cosine(optimizer: torch.optim.Optimizer, steps: int) -> LambdaLR:
    """The rate falls to zero along half a cosine over the run."""
    return LambdaLR(
        optimizer, lambda step: 0.5 * float(1 + torch.cos(torch.tensor(torch.pi * step / steps)))
    )


class Snapshots:
    """Writes the encoder every few seconds, and at the end; when, is the time of the file."""

    def __init__(self, job: Job) -> None:
        self.folder = Path(job.out) / "snapshots"
        self.folder.mkdir(exist_ok=True)
        self.every = job.snapshot_seconds
        self.next = time.monotonic() + self.every
        self.count = 0

    def step(self, network: nn.Module) -> None:
        """Writes one if it is time; called at every step."""
        if time.monotonic() >= self.next:
            self.save(network)
            self.next = time.monotonic() + self.every

    def save(self, network: nn.Module) -> None:
        """Writes one."""
        weights = {
            name: value.detach().contiguous() for name, value in network.state_dict().items()
        }
        name = f"{self.count:06d}.safetensors"
        save_file(weights, self.folder / f"{name}.part")
        (self.folder / f"{name}.part").rename(self.folder / name)
        self.count += 1
