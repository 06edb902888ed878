"""What MoCo costs beside its networks: a training step on ready views over its bare work.

The bare work is what no implementation can leave out: forward and backward of the query network and
forward of the key network, on the same views. The step does that and all the rest: shuffled keys,
look-up in a full queue of 65,536, the loss, SGD, the momentum encoder and the queue. Both
alternate in one process; the figure is the median over pairs of the step's time over the bare
work's.

    python benchmarks/moco_step.py               # about five minutes on two cores
    python benchmarks/moco_step.py --quick       # batch 64, a queue of 16,384
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

from diptych.runtime.devices import shorten_spinning, use_threads

shorten_spinning()  # as the command line does, before torch is imported

import torch
from measuring import Figure, parse_arguments, publish

from diptych.config.model import EncoderConfig
from diptych.config.run import RunConfig
from diptych.methods.dictionaries import KeyQueue
from diptych.methods.contrastive import Contrastive, build_contrastive
from diptych.config.recipes import recipe_config
from diptych.runtime.devices import keep_freed_memory
from diptych.optimization.optimizers import build_optimizer
from diptych.training.step import train_step
from diptych.views.batches import Batch

GOAL = 1.03


def config(batch_size: int, queue_size: int) -> RunConfig:
    """MoCo v2 with a ResNet-18 at 32 pixels."""
    given = recipe_config("moco_v2", "tiny")
    dictionary = replace(
        given.method.dictionary, queue=replace(given.method.dictionary.queue, size=queue_size)
    )
    return replace(
        given,
        encoder=EncoderConfig(name="resnet18", stem="small"),
        method=replace(given.method, dictionary=dictionary),
        training=replace(given.training, batch_size=batch_size),
    )


def bare(method: Contrastive, batch: Batch) -> None:
    """Query forward and backward, key forward."""
    assert method.momentum_encoder is not None
    method.network.zero_grad(set_to_none=True)
    method.momentum_encoder(batch.views[1])
    torch.autograd.backward(method.network(batch.views[0]).sum())


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def measure(batch_size: int, queue_size: int, pairs: int) -> float:
    """Median of step time over bare time."""
    keep_freed_memory()
    use_threads(None)
    given = config(batch_size, queue_size)
    method = build_contrastive(given).train().to(memory_format=torch.channels_last)
    assert isinstance(method.dictionary, KeyQueue)
    method.dictionary.enqueue(torch.nn.functional.normalize(torch.randn(queue_size, 128), dim=1))
    optimizer = build_optimizer(given.optimizer, method)
    views = torch.randn(2, batch_size, 3, 32, 32)
    layout = tuple(view.contiguous(memory_format=torch.channels_last) for view in views)
    batch = Batch(layout, torch.arange(batch_size), 0)

    def step() -> None:
        train_step(method, optimizer, batch, rate=0.03, momentum=0.999, config=given)

    step()
    bare(method, batch)
    ratios = []
    for pair in range(pairs):
        # Whoever comes second finds the machine as the first left it: they take turns.
        if pair % 2:
            below = seconds(lambda: bare(method, batch))
            ratios.append(seconds(step) / below)
        else:
            above = seconds(step)
            ratios.append(above / seconds(lambda: bare(method, batch)))
    return statistics.median(ratios)


def main() -> None:
    arguments = parse_arguments(__doc__)
    batch, queue, pairs = (64, 16384, 9) if arguments.quick else (256, 65536, 9)
    name = f"moco_v2, ResNet-18, batch {batch}, queue {queue:,}: step over bare work"
    figures = [Figure(name, measure(batch, queue, pairs), GOAL, bound="at most")]
    publish(figures, "What MoCo costs beside its networks", arguments.json)


if __name__ == "__main__":
    main()
