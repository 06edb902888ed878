"""How close a whole training step comes to its ceiling, the bare network.

The whole step is the real training loop: it draws and makes two views of each image (held in
memory), runs the method, moves weights, momentum encoder and dictionary, checks the loss and
writes metrics. The ceiling is the forward and backward of the same networks on ready tensors:
eager, channels last. For SimCLR that is the encoder and head over both views; for MoCo the query
network forward and backward and the key network forward. The two alternate in one process: the
loop reports every few steps, and there the same number of bare steps is timed. The figure is the
median over these blocks of bare time over whole time, that is, views per second of the step over
those of the network. Each is measured as runs are by default, and with `training.compile`, for
which a C++ compiler has to be there; the bare network is eager in both.

    python benchmarks/step_ceiling.py            # about twenty minutes on two cores
    python benchmarks/step_ceiling.py --quick    # about five
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diptych.runtime.devices import require_compiler, shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import numpy as np
import torch
from measuring import Figure, parse_arguments, publish

from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.methods.contrastive import build_contrastive
from diptych.errors import ConfigError
from diptych.images.collection import Collection
from diptych.images.open import from_array
from diptych.config.recipes import recipe_config
from diptych.runs.folder import RunFolder
from diptych.runs.folder import RunRecord, new_identity, write_record
from diptych.diagnostics.health import build_health
from diptych.training.loop import train
from diptych.logging.progress import Silent

GOAL = 1.0
ENCODERS = {
    "small_resnet": EncoderConfig(),
    "resnet18": EncoderConfig(name="resnet18", stem="small"),
}
BATCHES = {"small_resnet": 256, "resnet18": 64}
BLOCK_STEPS = {"small_resnet": 4, "resnet18": 1}
BLOCKS = {"small_resnet": 41, "resnet18": 25}
BLOCKS_QUICK = {"small_resnet": 5, "resnet18": 3}


def bare_step(config: RunConfig) -> Callable[[], None]:
    """Forward and backward of a method's networks on ready tensors, and nothing else."""
    method = build_contrastive(config).train().to(memory_format=torch.channels_last)
    side, batch = config.views.side_pixels, config.training.batch_size
    both = torch.randn(2 * batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    first, second = both.chunk(2)

    def simclr() -> None:
        method.network.zero_grad(set_to_none=True)
        method.network(both).sum().backward()

    def moco() -> None:
        assert method.momentum_encoder is not None
        method.network.zero_grad(set_to_none=True)
        method.momentum_encoder(second)
        method.network(first).sum().backward()

    return simclr if method.momentum_encoder is None else moco


@dataclass
class Interleave(Silent):
    """Times the loop's steps between two lines of metrics, and then as many bare ones."""

    bare: Callable[[], None]
    steps: int
    ratios: list[float] = field(default_factory=list)
    begun: float | None = None

    def metrics(self, line: dict[str, Any]) -> None:
        """A block of the loop has ended."""
        ended = time.perf_counter()
        for _ in range(self.steps):
            self.bare()
        bare_ended = time.perf_counter()
        # The first block warms up; one with a measurement of health is not a block of steps.
        if self.begun is not None and "effective_rank" not in line:
            self.ratios.append((bare_ended - ended) / (ended - self.begun))
        self.begun = time.perf_counter()


def measure(recipe: str, encoder: str, blocks: int, *, compiled: bool) -> float:
    """The median ratio for one recipe with one encoder at 32 pixels."""
    torch.compiler.reset()  # what was compiled before counts against a limit
    steps, config = BLOCK_STEPS[encoder], recipe_config(recipe, "tiny")
    batch = BATCHES[encoder]
    count = (blocks + 2) * steps * batch  # one epoch
    config = replace(
        config,
        encoder=ENCODERS[encoder],
        training=replace(
            config.training,
            epochs=1,
            batch_size=batch,
            threads=use_threads(None),
            compile=compiled,
        ),
        checkpoint=replace(config.checkpoint, every_seconds=1e9),
        probe=replace(config.probe, log_every_steps=steps, images=16),
    )
    pixels = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images = Collection(from_array(pixels, None, config.images), None, "noise")
    watcher = Interleave(bare_step(config), steps)
    with (
        ThreadPoolExecutor(use_threads(None)) as executor,
        tempfile.TemporaryDirectory() as place,
    ):
        folder = RunFolder(Path(place))
        write_record(folder, RunRecord(new_identity(folder), images.train.fingerprint()))
        health = build_health(images, config.views, executor, image_count=config.probe.images)
        train(config, images, folder, executor, watcher, health)
    return statistics.median(watcher.ratios)


def has_compiler() -> bool:
    """Whether `training.compile` can be measured here."""
    try:
        require_compiler(torch.device("cpu"))
    except ConfigError as error:
        print(error)
        return False
    return True


def main() -> None:
    arguments = parse_arguments(__doc__)
    blocks = BLOCKS_QUICK if arguments.quick else BLOCKS
    figures, kinds = [], (False, True) if has_compiler() else (False,)
    for encoder in ENCODERS:
        for recipe in ("simclr", "moco_v2"):
            for compiled in kinds:
                name = f"{recipe}, {encoder}{', compiled' * compiled}"
                value = measure(recipe, encoder, blocks[encoder], compiled=compiled)
                print(f"{name}: {value:.3f}", flush=True)
                figures.append(Figure(name, value, GOAL))
    title = "Views per second of a whole training step over those of the bare network"
    publish(figures, title, arguments.json)


if __name__ == "__main__":
    main()
