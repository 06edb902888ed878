"""Random views, side by side: images per second and core, two views of each.

Each contender makes two views of the same images by SimCLR's policy, as normalised float tensors,
on one thread; all alternate in one process, and a figure is the median over rounds. First on arrays
of 32 x 32 in memory (SimCLR's settings for CIFAR-10: no blur, strength 0.5), then on JPEG files of
640 x 480, decoded and brought to 224 pixels, with blur. Last, what each operation of ours costs.

    python benchmarks/views.py                                   # 32 x 32, and what each costs
    python benchmarks/views.py --jpegs data/BCCD/JPEGImages      # the files too; about five minutes
    python benchmarks/views.py --quick

Needs kornia and lightly: pip install -e '.[dev]'.
"""

import io
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from measuring import Figure, add_arguments, publish
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.images.codecs.reduction import reduced, reduction
from diptych.images.collection import ImageSet
from diptych.images.codecs.decode import decode_bytes
from diptych.images.codecs.channels import Pixels
from diptych.views.batches import Order
from diptych.images.sources.known_sets import find_photographs
from diptych.images.pixels import DecodedPixels, PixelBatch
from diptych.config.policies import OPERATIONS
from diptych.config.policies import parse_policy
from diptych.runtime.devices import keep_freed_memory
from diptych.views.batches import ViewBatches
from diptych.views.cpu import make_views
from diptych.views.draw import draw_views

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SMALL = ViewsConfig(side_pixels=32, policy="simclr_cifar", strength=0.5)
LARGE = ViewsConfig(side_pixels=224, policy="simclr")

TURN_SECONDS = 0.25

Contender = Callable[[int], object]
"""Makes the views of all images in the round with this number."""


class Task(NamedTuple):
    """Images in the forms that contenders take them.

    Attributes:
        config: the views.
        images: for diptych.
        pillow: a fresh Pillow image of each.
        tensor: (channels, height, width), uint8, of each.
    """

    config: ViewsConfig
    images: ImageSet
    pillow: Callable[[int], Image.Image]
    tensor: Callable[[int], torch.Tensor]


def small_task(count: int) -> Task:
    """Patches of the built-in photographs, as arrays."""
    images = find_photographs("photographs", ImagesConfig(limit=count)).train
    assert isinstance(images, ImageSet)
    arrays = [images.pixels.gather(np.array([i])).image(0) for i in range(len(images))]
    tensors = [torch.from_numpy(array.transpose(2, 0, 1).copy()) for array in arrays]
    return Task(SMALL, images, lambda i: Image.fromarray(arrays[i]), lambda i: tensors[i])


def large_task(folder: Path, count: int) -> Task:
    """JPEG files, read before and decoded in every round."""
    files = [path.read_bytes() for path in sorted(folder.rglob("*.jpg"))[:count]]
    config = ImagesConfig(decoded_side=LARGE.image_side)
    shapes = [simplejpeg.decode_jpeg_header(data)[:2] for data in files]
    heights, widths = np.array(shapes, dtype=np.int64).T
    decoded = np.array(
        [reduced(shape, reduction(shape, config.decoded_side)) for shape in shapes], dtype=np.int64
    )

    def read(index: int, room: NDArray[np.uint8] | None) -> Pixels:
        return decode_bytes(files[index], config, room)

    names = [str(i) for i in range(len(files))]
    pixels = DecodedPixels(decoded[:, 0], decoded[:, 1], 3, np.uint8, read)
    images = ImageSet(pixels, names, heights, widths, channels=3)

    def pillow(i: int) -> Image.Image:
        return Image.open(io.BytesIO(files[i])).convert("RGB")

    def tensor(i: int) -> torch.Tensor:  # the fastest decoder there is
        return torch.from_numpy(simplejpeg.decode_jpeg(files[i])).permute(2, 0, 1)

    return Task(LARGE, images, pillow, tensor)


def diptych_contender(task: Task, device: torch.device | None) -> Contender:
    """Ours, as a training step asks for it."""
    executor = ThreadPoolExecutor(1)
    count = len(task.images)
    batches = ViewBatches(task.images, Order(0, count, count), task.config, executor, device=device)
    return batches.at


def torchvision_steps(task: Task, version: Any, *, tensors: bool) -> Any:
    """SimCLR's policy by torchvision's transforms, version 1 or 2."""
    strength, blur = task.config.strength, task.config.policy == "simclr"
    color = [0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength]
    kernel = int(0.1 * task.config.side_pixels) // 2 * 2 + 1
    steps = [
        version.RandomResizedCrop(task.config.side_pixels, (0.08, 1.0), antialias=True),
        version.RandomHorizontalFlip(),
        version.RandomApply([version.ColorJitter(*color)], p=0.8),
        version.RandomGrayscale(0.2),
    ]
    steps += [version.RandomApply([version.GaussianBlur(kernel, (0.1, 2.0))], p=0.5)] * blur
    if tensors:
        steps.append(version.ToDtype(torch.float32, scale=True))
    elif hasattr(version, "ToImage"):
        steps += [version.ToImage(), version.ToDtype(torch.float32, scale=True)]
    else:
        steps.append(version.ToTensor())
    return version.Compose([*steps, version.Normalize(MEAN, STD)])


def one_by_one(task: Task, transform: Callable[[Any], Any], *, tensors: bool) -> Contender:
    """Two views of each image, image by image, and stacked."""
    source: Callable[[int], Any] = task.tensor if tensors else task.pillow

    def work(step: int) -> object:
        views: list[list[torch.Tensor]] = [[], []]
        for index in range(len(task.images)):
            image = source(index)
            for some in views:
                some.append(transform(image))
        return [torch.stack(some) for some in views]

    return work


def lightly_contender(task: Task) -> Contender:
    """Lightly's own SimCLR transform; it makes both views itself."""
    from lightly.transforms.simclr_transform import SimCLRTransform

    blur = task.config.policy == "simclr"
    transform = SimCLRTransform(
        input_size=task.config.side_pixels,
        cj_strength=task.config.strength,
        gaussian_blur=0.5 if blur else 0.0,
    )

    def work(step: int) -> object:
        pairs = [transform(task.pillow(index)) for index in range(len(task.images))]
        return [torch.stack(views) for views in zip(*pairs, strict=True)]

    return work


def kornia_contender(task: Task) -> Contender:
    """Kornia's operations on whole batches, parameters drawn for each image."""
    import kornia.augmentation as k

    side, strength = task.config.side_pixels, task.config.strength
    kernel = int(0.1 * side) // 2 * 2 + 1
    steps: list[Any] = [
        k.RandomResizedCrop((side, side), (0.08, 1.0)),
        k.RandomHorizontalFlip(),
        k.ColorJitter(0.8 * strength, 0.8 * strength, 0.8 * strength, 0.2 * strength, p=0.8),
        k.RandomGrayscale(p=0.2),
    ]
    if task.config.policy == "simclr":
        steps.append(k.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=0.5))
    steps.append(k.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    policy = torch.nn.Sequential(*steps)

    def work(step: int) -> object:
        batch = torch.stack([task.tensor(index) for index in range(len(task.images))])
        pixels = batch.float() / 255
        return [policy(pixels), policy(pixels)]

    return work


def contenders(task: Task) -> dict[str, Contender]:
    """All of them, by the name in the table."""
    from torchvision import transforms
    from torchvision.transforms import v2

    return {
        "diptych, cpu": diptych_contender(task, None),
        "diptych, device (a CPU)": diptych_contender(task, torch.device("cpu")),
        "torchvision v1, Pillow": one_by_one(
            task, torchvision_steps(task, transforms, tensors=False), tensors=False
        ),
        "torchvision v2, Pillow": one_by_one(
            task, torchvision_steps(task, v2, tensors=False), tensors=False
        ),
        "torchvision v2, tensors": one_by_one(
            task, torchvision_steps(task, v2, tensors=True), tensors=True
        ),
        "lightly": lightly_contender(task),
        "kornia": kornia_contender(task),
    }


def race(task: Task, rounds: int) -> dict[str, list[float]]:
    """Images per second of each contender in each round; they alternate.

    A turn is as many passes over the images as fill a quarter of a second: training makes views
    all the time, and a pass of a few milliseconds would measure the caches that another left.
    """
    found: dict[str, list[float]] = {}
    some = contenders(task)
    for number in range(rounds + 1):
        for name, work in some.items():
            passes, begun = 0, time.perf_counter()
            while (spent := time.perf_counter() - begun) < TURN_SECONDS:
                work(100 * number + passes)
                passes += 1
            if number:  # the first round compiles and fills caches
                found.setdefault(name, []).append(passes * len(task.images) / spent)
    return found


def show(rates: dict[str, list[float]], title: str) -> None:
    """One row for each contender."""
    table = Table(title=title, title_justify="left")
    for column in ("", "images per second and core", "ours over it"):
        table.add_column(column, justify="left" if not column else "right")
    for name, rate in rates.items():
        ratio = over(rates, name)
        table.add_row(name, f"{statistics.median(rate):,.0f}", f"{ratio:.1f}")
    Console(width=100 if not sys.stdout.isatty() else None).print(table)


def over(rates: dict[str, list[float]], name: str) -> float:
    """The median over rounds of our rate over another's."""
    pairs = zip(rates["diptych, cpu"], rates[name], strict=True)
    return statistics.median(ours / theirs for ours, theirs in pairs)


def cost_of_each(count: int, rounds: int) -> None:
    """Microseconds for a view: what an operation adds to a resized centre."""
    table = Table(title="What each operation costs a view, microseconds", title_justify="left")
    for column in ("operation", "32 pixels", "224 pixels"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    rng = np.random.default_rng(0)
    sources = {
        32: PixelBatch.of(list(rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8))),
        224: PixelBatch.of(list(rng.integers(0, 256, (16, 256, 256, 3), dtype=np.uint8))),
    }
    names = [name for name in OPERATIONS if name not in ("crop", "center")]
    plain = {side: _cost("center", side, images, rounds) for side, images in sources.items()}
    crop = [f"{_cost('crop', side, images, rounds):.1f}" for side, images in sources.items()]
    table.add_row("center", *(f"{cost:.1f}" for cost in plain.values()))
    table.add_row("crop", *crop)
    for name in names:
        row = [
            f"+ {max(0.0, _cost(f'center + {name}(1)', side, images, rounds) - plain[side]):.1f}"
            for side, images in sources.items()
        ]
        table.add_row(name, *row)
    Console(width=100 if not sys.stdout.isatty() else None).print(table)


def _cost(policy: str, side: int, images: PixelBatch, rounds: int) -> float:
    config = ViewsConfig(side_pixels=side)
    times: list[float] = []
    for epoch in range(rounds + 1):
        drawn = draw_views(
            [parse_policy(policy)],
            side_pixels=side,
            seed=0,
            epoch=epoch,
            indices=np.arange(len(images)),
            heights=images.heights,
            widths=images.widths,
        )
        begun = time.perf_counter()
        make_views(images, drawn, config)
        times.append(time.perf_counter() - begun)
    return 1e6 * statistics.median(times[1:]) / len(images)


def figures_of(rates: dict[str, list[float]], goals: Sequence[tuple[str, float]]) -> list[Figure]:
    """How many times faster ours is than some of the others."""
    middle = {name: statistics.median(some) for name, some in rates.items()}
    return [
        Figure(
            f"ours over {name}",
            over(rates, name),
            goal,
            unit="images/s",
            ours=middle["diptych, cpu"],
            others={name: middle[name]},
        )
        for name, goal in goals
    ]


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--jpegs", type=Path, metavar="DIR", help="of JPEG files, all of one size")
    arguments = parser.parse_args()
    if find_spec("kornia") is None or find_spec("lightly") is None:
        sys.exit("this benchmark compares with kornia and lightly: pip install -e '.[dev]'")
    warnings.simplefilter("ignore")  # of the others, about their own future
    torch.set_num_threads(1)
    keep_freed_memory()  # as a run does; it serves all of them
    rounds = 3 if arguments.quick else 9
    rates = race(small_task(128 if arguments.quick else 512), rounds)
    show(rates, "32 x 32 arrays, two views each")
    figures = figures_of(rates, [("torchvision v1, Pillow", 40.0), ("kornia", 10.0)])
    if arguments.jpegs is None:
        print("No --jpegs given: the files are left out.")
    else:
        rates = race(large_task(arguments.jpegs, 16 if arguments.quick else 64), rounds)
        show(rates, "JPEG files to 224 x 224, decode included, two views each")
        names = [name for name in rates if not name.startswith("diptych")]
        goals = [(name, 6.0 if "v1" in name else 1.0) for name in names]
        files = figures_of(rates, goals)
        figures += [replace(one, name=f"{one.name}, files") for one in files]
    cost_of_each(256 if arguments.quick else 2048, rounds)
    publish(figures, "Views: how many times as many images per second", arguments.json)


if __name__ == "__main__":
    main()
