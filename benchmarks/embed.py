"""`diptych embed` over the bare network on ready tensors, and its memory at two sizes of a set.

Speed: images per second of one shard, everything included (decoding, views, network, Parquet), over
those of the same network on tensors that are ready, batch by batch in turn. Memory: the most that a
process of its own holds while it embeds 10,000 and 100,000 images from files on disk; their ratio
should be close to one.

    python benchmarks/embed.py               # some ten minutes on two cores
    python benchmarks/embed.py --quick       # fewer images; figures mean little
"""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from diptych.runtime.devices import shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import numpy as np
import torch
from measuring import Figure, parse_arguments, publish, resident_bytes
from PIL import Image

from diptych.config.data import ViewsConfig
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.embeddings.embed import embed_shards
from diptych.config.downstream import EmbedSettings
from diptych.embeddings.shards import Shard
from diptych.models.weights import load_encoder, save_encoder, untrained_encoder
from diptych.runtime.devices import keep_freed_memory
from diptych.runtime.devices import Runtime

SPEED_GOAL, MEMORY_GOAL = 0.9, 1.15
BATCH = 256
KINDS = {  # encoder, side of the views, side of the JPEG files, images
    "ResNet-18, 32 pixels": (EncoderConfig(name="resnet18", stem="small"), 32, 32, 4096),
    "ResNet-18, 224 pixels": (EncoderConfig(name="resnet18", stem="imagenet"), 224, 256, 1024),
}
SMALL = EncoderConfig(width=8, stage_blocks=(1,))  # little work, so that memory is soon measured


def write_images(file: Path, count: int, side: int) -> None:
    """A tar shard of JPEG files, some hundred different ones."""
    rng = np.random.default_rng(0)
    different = []
    for _ in range(min(count, 100)):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        buffer = io.BytesIO()
        coarse.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
        different.append(buffer.getvalue())
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            member = tarfile.TarInfo(f"{number:08d}.jpg")
            member.size = len(different[number % len(different)])
            tar.addfile(member, io.BytesIO(different[number % len(different)]))


def write_encoder(file: Path, encoder: EncoderConfig, side: int) -> None:
    config = RunConfig(encoder=encoder, views=ViewsConfig(side_pixels=side))
    save_encoder(file, untrained_encoder(config), config)


def embed_all(encoder: Path, images: Path, out: Path, threads: int) -> float:
    """Seconds."""
    begun = time.perf_counter()
    with Runtime(threads=threads) as runtime:
        settings = EmbedSettings(batch_size=BATCH)
        list(embed_shards(encoder, images, out, [Shard(0, 1)], settings, runtime))
    return time.perf_counter() - begun


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


def speed(name: str, folder: Path, threads: int, *, quick: bool) -> float:
    """Images per second of embedding over those of the network; the median of three pairs."""
    network, side, file_side, count = KINDS[name]
    count, pairs = (BATCH, 1) if quick else (count, 3)
    encoder, images = folder / f"{side}.safetensors", folder / f"{side}.tar"
    write_encoder(encoder, network, side)
    write_images(images, count, file_side)
    ratios = []
    for pair in range(pairs + 1):  # the first compiles and warms up
        below = bare(encoder, side, count)
        ratios.append(below / embed_all(encoder, images, folder / f"{side}-{pair}", threads))
    return float(np.median(ratios[1:]))


def peak_bytes(folder: Path, count: int) -> int:
    """Most memory of a process that embeds so many images."""
    encoder, images = folder / "small.safetensors", folder / f"{count}.tar"
    write_encoder(encoder, SMALL, 32)
    write_images(images, count, 32)
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
    arguments = parse_arguments(__doc__)
    threads, quick = use_threads(None), arguments.quick
    sizes = (1_000, 10_000) if quick else (10_000, 100_000)
    figures = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        small, large = (peak_bytes(folder, count) for count in sizes)
        name = f"peak memory, {sizes[1]:,} images over {sizes[0]:,}"
        figures.append(Figure(name, large / small, MEMORY_GOAL, bound="at most"))
        print(f"{small / 2**20:.0f} MB, {large / 2**20:.0f} MB")
        for kind in list(KINDS)[: 1 if quick else None]:
            ratio = speed(kind, folder, threads, quick=quick)
            figures.append(Figure(f"{kind}: embed over bare network", ratio, SPEED_GOAL))
    publish(figures, "Embedding beside its network", arguments.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        main()
