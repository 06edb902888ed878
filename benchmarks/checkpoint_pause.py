"""How much of the time between checkpoints training stands still, beside training and in between.

MoCo with a ResNet-50, its momentum encoder, SGD with momentum and a queue of 65,536 keys (about
340 MB to be saved), a checkpoint each minute. The steps are real ones on ready views of 64 pixels,
16 images each; what is saved does not depend on them. Measured is the time that the training
thread spends at a checkpoint: whether the weights are numbers, the copy, and without
`checkpoint.asynchronous` the writing, too. The share is that time over the time from the first
checkpoint to the last. While a copy is written, steps get slower, since the writer sums and writes
with a core that they would use. The second figure of each adds that: the time of the steps that
ran meanwhile, beyond the median of those that ran alone.

    python benchmarks/checkpoint_pause.py             # about a quarter of an hour
    python benchmarks/checkpoint_pause.py --quick     # small ResNet, each three seconds
"""

import statistics
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from diptych.config.method import QueueConfig
from diptych.runtime.devices import shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import torch
from measuring import Figure, parse_arguments, publish

from diptych.config.method import DictionaryConfig
from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.config.run import CheckpointConfig
from diptych.methods.contrastive import build_contrastive
from diptych.optimization.optimizers import build_optimizer
from diptych.config.recipes import recipe_config
from diptych.runs.folder import Identity
from diptych.runtime.devices import keep_freed_memory
from diptych.checkpoints.saver import Saver
from diptych.checkpoints.state import RunState
from diptych.training.step import train_step
from diptych.views.batches import Batch

KEYS, SIDE, BATCH = 65_536, 64, 16
INTERVAL_SECONDS, CHECKPOINTS = 60.0, 6
INTERVAL_QUICK, CHECKPOINTS_QUICK = 3.0, 4
MOST = 0.05
MOST_IN_BETWEEN = 1.0  # there is no goal for it; it stands beside the other


@dataclass
class Times:
    """Seconds of steps and of pauses between the first checkpoint and the last."""

    pauses: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    meanwhile: list[float] = field(default_factory=list)

    @property
    def all_seconds(self) -> float:
        """From the first checkpoint to the last."""
        return sum(self.pauses) + sum(self.alone) + sum(self.meanwhile)

    @property
    def pause_share(self) -> float:
        """Of the time in which training stood still."""
        return sum(self.pauses) / self.all_seconds

    @property
    def lost_share(self) -> float:
        """The same with what steps took longer while a checkpoint was written."""
        usual = statistics.median(self.alone)
        slower = sum(seconds - usual for seconds in self.meanwhile)
        return (sum(self.pauses) + max(0.0, slower)) / self.all_seconds


def build(encoder: str) -> tuple[RunState, RunConfig]:
    """A run as training lays it out."""
    config = recipe_config("moco_v2", "small")
    config = replace(
        config,
        encoder=EncoderConfig(name=encoder),
        method=replace(
            config.method, dictionary=DictionaryConfig("queue", queue=QueueConfig(size=KEYS))
        ),
        training=replace(config.training, batch_size=BATCH),
    )
    method = build_contrastive(config).train().to(memory_format=torch.channels_last)
    return RunState(method, build_optimizer(config.optimizer, method)), config


def measure(encoder: str, *, asynchronous: bool, interval: float, checkpoints: int) -> Times:
    """Trains until so many checkpoints are begun after the first."""
    state, config = build(encoder)
    views = [torch.randn(BATCH, 3, SIDE, SIDE) for _ in range(2)]
    layout = [view.contiguous(memory_format=torch.channels_last) for view in views]
    batch, times = Batch(tuple(layout), torch.arange(BATCH), 0), Times()

    def step() -> None:
        train_step(state.method, state.optimizer, batch, rate=0.01, momentum=0.99, config=config)
        state.step += 1

    for _ in range(3):  # warms up; moments of the optimizer are there from the first step on
        step()
    saving = CheckpointConfig(every_seconds=interval, asynchronous=asynchronous)
    run = Identity("0" * 32, "benchmark")
    with tempfile.TemporaryDirectory() as folder, Saver(Path(folder), run, saving, print) as saver:
        saver.begin(state)  # as any run: the first copy asks for its memory
        while len(times.pauses) < checkpoints or not times.alone:
            writing, begun = saver.is_writing, time.perf_counter()
            step()
            due, ended = saver.is_due(), time.perf_counter()
            (times.meanwhile if writing else times.alone).append(ended - begun)
            if due:
                assert state.is_finite()
                saver.begin(state)
                times.pauses.append(time.perf_counter() - ended)
    return times


def main() -> None:
    arguments = parse_arguments(__doc__)
    keep_freed_memory()
    use_threads(None)
    encoder = "small_resnet" if arguments.quick else "resnet50"
    interval = INTERVAL_QUICK if arguments.quick else INTERVAL_SECONDS
    checkpoints = CHECKPOINTS_QUICK if arguments.quick else CHECKPOINTS
    figures = []
    for asynchronous in (True, False):
        times = measure(
            encoder, asynchronous=asynchronous, interval=interval, checkpoints=checkpoints
        )
        goal = MOST if asynchronous else MOST_IN_BETWEEN
        where = "beside training" if asynchronous else "in between"
        figures += [
            Figure(f"standing still, {where}", times.pause_share, goal, bound="at most"),
            Figure(f"and slower steps, {where}", times.lost_share, goal, bound="at most"),
        ]
    title = f"Share of time that a checkpoint each {interval:g} seconds costs, {encoder}"
    publish(figures, title, arguments.json)


if __name__ == "__main__":
    main()
