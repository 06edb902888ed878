"""A batch of 4,096 through cached gradients against plain batches of 256: memory and time.

ResNet-18 with the small stem, views of 32 pixels, SimCLR's loss, on ready tensors. The large batch
is encoded 256 images at a time; its loss and gradients are those of the whole (proved in
tests/methods/test_grad_cache.py). Time: plain steps over as many images run before and after the
large step, in the same process; the figure is its time per image over theirs. Memory: the highest
resident memory of a process that does nothing else, one process for each.

    python benchmarks/grad_cache.py             # about a quarter of an hour on two cores
    python benchmarks/grad_cache.py --quick     # batch 512 in chunks of 32
"""

import subprocess
import sys
import time
from dataclasses import replace

from diptych.runtime.devices import shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import torch
from measuring import Figure, add_arguments, publish, resident_bytes

from diptych.config.model import EncoderConfig, NormConfig
from diptych.config.run import RunConfig
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.config.recipes import recipe_config
from diptych.runtime.devices import keep_freed_memory
from diptych.views.batches import Batch

LARGE, PLAIN = 4096, 256
LARGE_QUICK, PLAIN_QUICK = 512, 32
MOST_TIME, MOST_MEMORY = 1.45, 1.2


def config() -> RunConfig:
    """SimCLR with a ResNet-18 for tiny images and plain batch norm."""
    return replace(
        recipe_config("simclr", "tiny"),
        encoder=EncoderConfig(name="resnet18", stem="small"),
        norm=NormConfig(kind="batch"),
    )


def batch_of(images: int) -> Batch:
    """Noise in place of views."""
    views = [torch.randn(images, 3, 32, 32) for _ in range(2)]
    layout = [view.contiguous(memory_format=torch.channels_last) for view in views]
    return Batch(tuple(layout), torch.arange(images), 0)


def step(method: Contrastive, batch: Batch, chunk_size: int | None = None) -> None:
    """Forward and backward of a batch, at once or in chunks."""
    method.chunk_size = chunk_size
    method.zero_grad(set_to_none=True)
    torch.autograd.backward(method(batch).loss)


def build() -> Contrastive:
    """The network as training lays it out."""
    keep_freed_memory()
    use_threads(None)
    return build_contrastive(config()).train().to(memory_format=torch.channels_last)


def time_ratio(large: int, plain: int) -> float:
    """Time per image of the large step over that of plain steps around it."""
    method, small, big = build(), batch_of(plain), batch_of(large)
    step(method, small)  # warms up

    def plain_seconds() -> float:
        begun = time.perf_counter()
        for _ in range(large // plain // 2):
            step(method, small)
        return time.perf_counter() - begun

    before = plain_seconds()
    begun = time.perf_counter()
    step(method, big, plain)
    seconds = time.perf_counter() - begun
    return seconds / (before + plain_seconds())


def peak_megabytes(images: int, chunk_size: int | None) -> float:
    """Highest resident memory of a new process that takes one step."""
    command = [sys.executable, __file__, "--one-step", str(images), str(chunk_size or 0)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout)


def one_step(images: int, chunk_size: int) -> None:
    """What the process of ``peak_megabytes`` does: a step and a half, so that all is warm."""
    method, batch = build(), batch_of(images)
    for _ in range(1 if chunk_size else 2):
        step(method, batch, chunk_size or None)
    print(resident_bytes("VmHWM") / 2**20)


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--one-step", nargs=2, type=int, metavar=("IMAGES", "CHUNK"))
    arguments = parser.parse_args()
    if arguments.one_step:
        one_step(*arguments.one_step)
        return
    large, plain = (LARGE_QUICK, PLAIN_QUICK) if arguments.quick else (LARGE, PLAIN)
    memory = peak_megabytes(large, plain) / peak_megabytes(plain, None)
    figures = [
        Figure(
            f"peak memory, {large:,} in chunks over {plain}", memory, MOST_MEMORY, bound="at most"
        ),
        Figure(
            f"time per image, {large:,} over {plain}",
            time_ratio(large, plain),
            MOST_TIME,
            bound="at most",
        ),
    ]
    publish(figures, "Cached gradients: ResNet-18 at 32 pixels, SimCLR", arguments.json)


if __name__ == "__main__":
    main()
