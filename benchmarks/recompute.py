"""Stages computed again in the backward pass against stages kept: memory and time of a step.

ResNet-18 with the small stem, views of 32 pixels, SimCLR's loss, on ready tensors. Memory: the
highest resident memory of a process that does nothing else, one process for each, over that of
a process that has built the same network and batch and taken no step. Time: steps of both kinds
take turns in one process; the figure is the ratio of the medians.

    python benchmarks/recompute.py             # about five minutes on two cores
    python benchmarks/recompute.py --quick     # a batch of 64
"""

import statistics
import subprocess
import sys
import time
from dataclasses import replace

from diptych.runtime.devices import shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import torch
from measuring import Figure, add_arguments, publish, resident_bytes

from diptych.config.model import EncoderConfig, NormConfig
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.models.activations import recompute_stages
from diptych.config.recipes import recipe_config
from diptych.runtime.devices import keep_freed_memory
from diptych.views.batches import Batch

BATCH, BATCH_QUICK = 256, 64
STEPS, STEPS_QUICK = 7, 3
MOST_MEMORY, MOST_TIME = 0.6, 1.4


def batch_of(images: int) -> Batch:
    """Noise in place of views."""
    views = [torch.randn(images, 3, 32, 32) for _ in range(2)]
    layout = [view.contiguous(memory_format=torch.channels_last) for view in views]
    return Batch(tuple(layout), torch.arange(images), 0)


def build(*, recompute: bool) -> Contrastive:
    """The network as training lays it out."""
    keep_freed_memory()
    use_threads(None)
    config = replace(
        recipe_config("simclr", "tiny"),
        encoder=EncoderConfig(name="resnet18", stem="small"),
        norm=NormConfig(kind="batch"),
    )
    method = build_contrastive(config).train().to(memory_format=torch.channels_last)
    if recompute:
        recompute_stages(method.encoder)
    return method


def step(method: Contrastive, batch: Batch) -> float:
    """Seconds of forward and backward."""
    method.zero_grad(set_to_none=True)
    begun = time.perf_counter()
    torch.autograd.backward(method(batch).loss)
    return time.perf_counter() - begun


def time_ratio(images: int, steps: int) -> float:
    """A step that computes stages again over one that keeps them, in turns."""
    batch, methods = batch_of(images), [build(recompute=True), build(recompute=False)]
    for method in methods:
        step(method, batch)  # warms up
    pairs = [[step(method, batch) for method in methods] for _ in range(steps)]
    again, kept = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return again / kept


def megabytes(images: int, kind: str) -> float:
    """Highest resident memory of a new process: ``kept``, ``again``, or ``idle`` for no step."""
    command = [sys.executable, __file__, "--one-step", str(images), kind]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def one_step(images: int, kind: str) -> None:
    """What the process of ``megabytes`` does."""
    method, batch = build(recompute=kind == "again"), batch_of(images)
    if kind != "idle":
        for _ in range(2):
            step(method, batch)
    print(resident_bytes("VmHWM") / 2**20)


def main() -> None:
    parser = add_arguments(__doc__)
    parser.add_argument("--one-step", nargs=2, metavar=("IMAGES", "KIND"))
    arguments = parser.parse_args()
    if arguments.one_step:
        one_step(int(arguments.one_step[0]), arguments.one_step[1])
        return
    images, steps = (BATCH_QUICK, STEPS_QUICK) if arguments.quick else (BATCH, STEPS)
    idle, kept, again = (megabytes(images, kind) for kind in ("idle", "kept", "again"))
    memory = (again - idle) / (kept - idle)
    figures = [
        Figure(f"memory of a step at batch {images}", memory, MOST_MEMORY, bound="at most"),
        Figure(f"time at batch {images}", time_ratio(images, steps), MOST_TIME, bound="at most"),
    ]
    publish(figures, "Stages computed again over stages kept: ResNet-18", arguments.json)


if __name__ == "__main__":
    main()
