"""Fast must not mean different: training on our views against torchvision's reference transforms.

SimCLR at scale tiny, all else the same: once with diptych's views, once with every view made by
torchvision's transforms on Pillow images, with their own random numbers. kNN accuracy of the frozen
encoders, for several seeds; the figure is the difference of the means.

    python benchmarks/same_views.py --images cifar10/ --limit 10000 --epochs 10   # half an hour
    python benchmarks/same_views.py --quick       # the built-in photographs, one seed, 2 epochs
"""

import math
import statistics
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measuring import Figure, add_arguments, publish
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchvision import transforms

import diptych
from diptych.runtime.devices import available_threads
from diptych.config.policies import Blur, Color, Crop, Flip, Gray
from diptych.views.batches import ViewBatches

_THREADS = ThreadPoolExecutor(available_threads())


class ReferenceBatches(ViewBatches):
    """The same batches of images, with views by torchvision."""

    def of(self, indices: NDArray[np.int64], epoch: int) -> tuple[Tensor, ...]:
        """Views of images; the random numbers are torch's, and `epoch` changes nothing."""
        del epoch
        pixels = self.images.pixels.gather(indices)
        pictures = [Image.fromarray(pixels.image(i)) for i in range(len(indices))]
        first, second = (self._transform(branch) for branch in (0, 1))
        layout = torch.channels_last
        return tuple(
            torch.stack(list(_THREADS.map(transform, pictures))).contiguous(memory_format=layout)
            for transform in (first, second)
        )

    def _transform(self, branch: int) -> transforms.Compose:
        steps = []
        strength, side = self.config.strength, self.config.side_pixels
        for operation in self.config.branches[branch]:
            match operation:
                case Crop(_, area, aspect):
                    steps.append(transforms.RandomResizedCrop(side, area, aspect))
                case Flip(probability):
                    steps.append(transforms.RandomHorizontalFlip(probability))
                case Color(probability, brightness, contrast, saturation, hue):
                    changes = (strength * x for x in (brightness, contrast, saturation, hue))
                    jitter = transforms.ColorJitter(*changes)
                    steps.append(transforms.RandomApply([jitter], probability))
                case Gray(probability):
                    steps.append(transforms.RandomGrayscale(probability))
                case Blur(probability, sigma, kernel):
                    blur = transforms.GaussianBlur(int(kernel * side) // 2 * 2 + 1, sigma)
                    steps.append(transforms.RandomApply([blur], probability))
                case other:
                    raise ValueError(f"the reference has no {other}")
        normalise = transforms.Normalize(self.config.pixel_mean, self.config.pixel_std)
        return transforms.Compose([*steps, transforms.ToTensor(), normalise])


def knn_after(
    images: str, out: Path, seed: int, views: type[ViewBatches], **settings: Any
) -> float:
    """Trains, and returns the frozen encoder's kNN accuracy in per cent."""
    with patch("diptych.training.loop.ViewBatches", views):
        run = diptych.pretrain(
            images, recipe="simclr", scale="tiny", seed=seed, out=out, quiet=True, **settings
        )
    return 100 * float(diptych.evaluate(run)["knn"]["trained"])


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--images", default="photographs", help="a folder with class folders")
    parser.add_argument("--limit", type=int, help="use so many of them")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    seeds = 1 if arguments.quick else arguments.seeds
    settings = {"epochs": 2 if arguments.quick else arguments.epochs}
    if arguments.limit is not None:
        settings["images.limit"] = arguments.limit
    contenders = {"diptych": ViewBatches, "torchvision": ReferenceBatches}
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            for name, views in contenders.items():
                out = Path(folder) / f"{name}-{seed}"
                found[name].append(knn_after(arguments.images, out, seed, views, **settings))
                print(f"{name}, seed {seed}: kNN {found[name][-1]:.1f}%", flush=True)
    table = Table(title="kNN accuracy, %", title_justify="left")
    for column in ("views", "mean", "standard error", "seeds"):
        table.add_column(column, justify="left" if column == "views" else "right")
    for name, values in found.items():
        error = statistics.stdev(values) / math.sqrt(seeds) if seeds > 1 else math.nan
        table.add_row(name, f"{statistics.fmean(values):.2f}", f"{error:.2f}", str(seeds))
    Console(width=100 if not sys.stdout.isatty() else None).print(table)
    difference = abs(statistics.fmean(found["diptych"]) - statistics.fmean(found["torchvision"]))
    figures = [Figure("points between the means", difference, 1.0, "at most")]
    publish(figures, "kNN accuracy with our views and with torchvision's", arguments.json)


if __name__ == "__main__":
    main()
