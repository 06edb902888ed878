"""`diptych embed` beside a loop of torchvision and the bare network, and its memory at two sizes.

Speed: images per second of one shard, everything included (decoding, views, network, Parquet), over
those of the bare network on ready tensors, and over those of the same network in two other ways: a
loop as users of torchvision write it (ImageFolder, a DataLoader of two workers, an .npy file), and
`embed` of lightly-train where its Python is named (its licence is the AGPL, so it stays in an
environment of its own). They take turns; starting Python is not counted, and neither is the first
call of each: lightly-train's process embeds some images before its clock starts. Memory: the most
that a process of its own holds while it embeds 10,000 and 100,000 images from files on disk; their
ratio should be close to one.

    python benchmarks/embed.py               # some half an hour on two cores
    python benchmarks/embed.py --lightly-train PYTHON
    python benchmarks/embed.py --quick       # fewer images; figures mean little
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from diptych.runtime.devices import shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import numpy as np
import torch
from measuring import Figure, add_arguments, publish, resident_bytes
from peers.environments import runner_environment
from PIL import Image

from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from diptych.config.data import ImagesConfig, ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.embeddings.embed import embed_images
from diptych.config.downstream import EmbedSettings
from diptych.embeddings.shards import Shard
from diptych.models.start import open_encoder
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.runtime.devices import keep_freed_memory
from diptych.runtime.devices import Runtime

SPEED_GOAL, MEMORY_GOAL = 0.9, 1.15
BATCH = 256
KINDS = {  # encoder, side of the views, size of the JPEG files, images, goal over the others
    "ResNet-18, 32 pixels": ("resnet18", 32, (32, 32), 32768, 1.5),
    "ResNet-18, 640 x 480": ("resnet18", 224, (640, 480), 1024, 1.2),
    "ResNet-50, 32 pixels": ("resnet50", 32, (32, 32), 4096, 1.5),
    "ResNet-50, 640 x 480": ("resnet50", 224, (640, 480), 512, 1.2),
}
# Run by the other environment: a checkpoint after one epoch on few images, and an embedding, timed.
_CHECKPOINT = """
import sys
import lightly_train

out, images, name, side = sys.argv[1:]
lightly_train.pretrain(
    out=out, data=images, model="torchvision/" + name, method="simclr", epochs=1, batch_size=64,
    transform_args={"image_size": (int(side), int(side))}, overwrite=True, accelerator="cpu",
    devices=1, num_workers=2,
)
"""
_EMBED = """
import sys, time
import lightly_train

checkpoint, few, images, out, side, batch = sys.argv[1:]

def embed(data, out):
    lightly_train.embed(
        out=out, data=data, checkpoint=checkpoint, image_size=int(side), batch_size=int(batch),
        num_workers=2, accelerator="cpu", overwrite=True,
    )

embed(few, out + ".few")  # what is imported and built at the first call
begun = time.perf_counter()
embed(images, out)
print("seconds", time.perf_counter() - begun)
"""
SMALL = EncoderConfig(width=8, stage_blocks=(1,))  # little work, so that memory is soon measured


def different_images(count: int, size: tuple[int, int]) -> list[bytes]:
    """JPEG files, some hundred different ones."""
    rng, found = np.random.default_rng(0), []
    for _ in range(min(count, 100)):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        found.append(buffer.getvalue())
    return found


def write_tar(file: Path, count: int, side: int) -> None:
    different = different_images(count, (side, side))
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(different[number % len(different)])
            tar.addfile(member, io.BytesIO(different[number % len(different)]))


def write_folder(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Of one class, as ImageFolder wants it."""
    different = different_images(count, size)
    (folder / "all").mkdir(parents=True)
    for number in range(count):
        file = folder / "all" / f"{number:08d}.jpg"
        file.write_bytes(different[number % len(different)])


def write_encoder(file: Path, encoder: EncoderConfig, side: int) -> None:
    views = ViewsConfig(side_pixels=side)
    images = ImagesConfig(decoded_side=views.image_side)  # as a run has it
    config = RunConfig(encoder=encoder, images=images, views=views)
    save_encoder(file, untrained_encoder(config), config)


def embed_all(encoder: Path, images: Path, out: Path, threads: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    with Runtime(threads=threads) as runtime:
        opened, settings = open_encoder(str(encoder)), EmbedSettings(batch_size=BATCH)
        list(embed_images(str(encoder), opened, images, out, [Shard(0, 1)], settings, runtime))
    return time.perf_counter() - begun


def torchvision_loop(encoder: Path, side: int, images: Path, out: Path) -> float:
    """Seconds of the loop of torchvision's documentation, with its usual transforms."""
    begun = time.perf_counter()
    network, found = load_encoder(encoder).network.to(memory_format=torch.contiguous_format), []
    resized = [transforms.Resize(side * 8 // 7), transforms.CenterCrop(side)] if side > 32 else []
    normalize = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    chain = transforms.Compose([*resized, transforms.ToTensor(), normalize])
    data = datasets.ImageFolder(str(images), transform=chain)
    with torch.inference_mode():
        for batch, _ in DataLoader(data, batch_size=BATCH, num_workers=2):
            found.append(network(batch).numpy())
    np.save(out, np.concatenate(found))
    return time.perf_counter() - begun


def lightly_train(python: str, checkpoint: Path, side: int, images: Path, out: Path) -> float:
    """Seconds of its `embed`, on the same network with other weights."""
    few = checkpoint.parents[2] / "few"
    given = [str(one) for one in (checkpoint, few, images, out, side, BATCH)]
    answer = _ask(python, _EMBED, given)
    return float(answer.splitlines()[-1].removeprefix("seconds "))


def lightly_checkpoint(python: str, network: str, side: int, folder: Path) -> Path:
    """Of one epoch on 64 images; for `embed` wants no other file."""
    write_folder(folder / "few", 64, (side, side))
    _ask(python, _CHECKPOINT, [str(folder / "run"), str(folder / "few"), network, str(side)])
    return folder / "run/checkpoints/last.ckpt"


def _ask(python: str, script: str, arguments: list[str]) -> str:
    command = [python, "-c", script, *arguments]
    variables = runner_environment()  # without usage events
    done = subprocess.run(command, capture_output=True, text=True, env=variables)
    if done.returncode:
        raise SystemExit(f"lightly-train failed:\n{done.stderr[-2000:]}")
    return done.stdout


def bare(encoder: Path, side: int, count: int) -> float:
    """Seconds of the network on ready tensors, laid as it likes them."""
    network = load_encoder(encoder)
    views = torch.randn(BATCH, 3, side, side).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        network(views)
        begun = time.perf_counter()
        for _ in range(count // BATCH):
            network(views)
    return time.perf_counter() - begun


def speed(name: str, folder: Path, threads: int, other: str | None, *, quick: bool) -> list[Figure]:
    """Images per second of embedding over those of the others and of the network; medians."""
    network, side, size, count, goal = KINDS[name]
    count, rounds = (BATCH, 1) if quick else (count, 3)
    place = folder / name
    encoder, images = place / "encoder.safetensors", place / "images"
    write_folder(images, count, size)
    write_encoder(encoder, EncoderConfig(name=network, stem="imagenet"), side)
    ways: dict[str, Callable[[int], float]] = {
        "diptych": lambda turn: embed_all(encoder, images, place / str(turn), threads),
        "torchvision's loop": lambda _: torchvision_loop(encoder, side, images, place / "loop.npy"),
        "bare network": lambda _: bare(encoder, side, count),
    }
    if other is not None:
        checkpoint = lightly_checkpoint(other, network, side, place / "lightly")
        out = place / "lightly.pt"
        ways["lightly-train"] = lambda _: lightly_train(other, checkpoint, side, images, out)
    # The first turn compiles and warms up.
    turns = [[way(turn) for way in ways.values()] for turn in range(rounds + 1)][1:]
    seconds = dict(zip(ways, np.median(turns, axis=0).tolist(), strict=True))
    print(name, {way: f"{count / one:.1f} images/s" for way, one in seconds.items()})
    rates = {way: count / one for way, one in seconds.items()}
    ours = rates.pop("diptych")
    goals = {"bare network": SPEED_GOAL}
    return [
        Figure(
            f"{name}: over {way}",
            ours / rate,
            goals.get(way, goal),
            unit="images/s",
            ours=ours,
            others={way: rate},
        )
        for way, rate in rates.items()
    ]


def peak_bytes(folder: Path, count: int) -> int:
    """Most memory of a process that embeds so many images."""
    encoder, images = folder / "small.safetensors", folder / f"{count}.tar"
    write_encoder(encoder, SMALL, 32)
    write_tar(images, count, 32)
    arguments = [str(encoder), str(images), str(folder / f"out-{count}")]
    done = subprocess.run(
        [sys.executable, __file__, "--child", *arguments],
        check=True,
        capture_output=True,
        text=True,
    )
    return int(json.loads(done.stdout.splitlines()[-1])["peak"])


def child(encoder: str, images: str, out: str) -> None:
    keep_freed_memory()
    embed_all(Path(encoder), Path(images), Path(out), use_threads(1))
    print(json.dumps({"peak": resident_bytes("VmHWM")}))


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--lightly-train", metavar="PYTHON", help="of an environment with it")
    parser.add_argument("--only", choices=list(KINDS), help="this network and size alone")
    arguments = parser.parse_args()
    threads, quick = use_threads(None), arguments.quick
    sizes = (1_000, 10_000) if quick else (10_000, 100_000)
    figures = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small, large = (peak_bytes(folder, count) for count in sizes)
        name = f"peak memory, {sizes[1]:,} images over {sizes[0]:,}"
        figures.append(Figure(name, large / small, MEMORY_GOAL, bound="at most"))
        print(f"{small / 2**20:.0f} MB, {large / 2**20:.0f} MB")
        kinds = [arguments.only] if arguments.only else list(KINDS)[: 2 if quick else None]
        for kind in kinds:
            figures += speed(kind, folder, threads, arguments.lightly_train, quick=quick)
    publish(figures, "Embedding beside its network", arguments.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
