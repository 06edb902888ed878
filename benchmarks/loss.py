"""NT-Xent, forward and backward, against lightly's and pytorch-metric-learning's: time and memory.

Both get the same unit vectors, 128 long, in float32. Times are of runs that alternate in one
process; the figure is the median over rounds of lightly's time over ours. Peak memory is that of a
process of its own for each: the largest resident size after one run, less the resident size just
before it. Of 65,536 pairs only ours is run: lightly would need some hundred gigabytes.
pytorch-metric-learning's holds a row of all pairs for every pair, gigabytes for some hundred: it is
compared on 256.

    python benchmarks/loss.py            # about four minutes on two idle cores
    python benchmarks/loss.py --quick    # about one minute; leaves out the 65,536 pairs

Needs lightly and pytorch-metric-learning: pip install -e '.[dev]'.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

from diptych.runtime.devices import shorten_spinning

shorten_spinning()  # as the command line does, before torch is imported

import torch
from measuring import Figure, parse_arguments, publish, resident_bytes
from torch import Tensor
from torch.nn import functional

from diptych.methods.losses import nt_xent

DIM = 128
TEMPERATURE = 0.1
PAIRS = 8_192
FEW_PAIRS = 256
MANY_PAIRS = 65_536
ROUNDS = 7
ROUNDS_QUICK = 3
GIGABYTE = 1e9

Loss = Callable[[Tensor, Tensor], Tensor]


def build_loss(name: str) -> Loss:
    """Ours, or another library's."""
    if name == "diptych":
        return lambda first, second: nt_xent(first, second, temperature=TEMPERATURE)
    if name == "pytorch-metric-learning":
        from pytorch_metric_learning import losses

        wrapped: Loss = losses.SelfSupervisedLoss(losses.NTXentLoss(temperature=TEMPERATURE))
        return wrapped
    from lightly.loss import NTXentLoss

    peer: Loss = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=0)
    return peer


def two_views(pairs: int) -> tuple[Tensor, Tensor]:
    """Random unit vectors; the second of a pair lies near the first."""
    torch.manual_seed(0)
    first = functional.normalize(torch.randn(pairs, DIM), dim=1)
    second = functional.normalize(first + 0.1 * torch.randn(pairs, DIM), dim=1)
    return first.requires_grad_(), second.requires_grad_()


def timed(loss: Loss, first: Tensor, second: Tensor) -> float:
    """Seconds of one forward and backward."""
    first.grad = second.grad = None
    begun = time.perf_counter()
    loss(first, second).backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - begun


def measure_here(name: str, pairs: int) -> dict[str, float]:
    """Peak bytes and seconds of one run; only in a process that does nothing else."""
    loss = build_loss(name)
    timed(loss, *two_views(64))  # threads and libraries have their memory
    first, second = two_views(pairs)
    before = resident_bytes("VmRSS")
    seconds = timed(loss, first, second)
    return {"bytes": resident_bytes("VmHWM") - before, "seconds": seconds}


def measure_apart(name: str, pairs: int) -> dict[str, float]:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--measure-here", name, str(pairs)]
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(answer.stdout)
    return result


def time_of(rounds: int, name: str, pairs: int) -> Figure:
    """The median over rounds of a peer's time over ours."""
    first, second = two_views(pairs)
    ours, peer = build_loss("diptych"), build_loss(name)
    for loss in (ours, peer, ours):  # what is built at the first call is no time of a step
        timed(loss, first, second)
    turns = [(timed(peer, first, second), timed(ours, first, second)) for _ in range(rounds)]
    ratio = statistics.median(theirs / own for theirs, own in turns)
    theirs, own = (statistics.median(some) for some in zip(*turns, strict=True))
    what = f"time of {name}'s over ours, {pairs:,} pairs"
    return Figure(what, ratio, 3.0, unit="s", ours=own, others={name: theirs})


def memory_of(name: str, pairs: int, ours: float, theirs: float) -> Figure:
    """A peer's peak over ours, both in bytes."""
    what = f"memory of {name}'s over ours, {pairs:,} pairs"
    gigabytes = {name: theirs / GIGABYTE}
    return Figure(what, theirs / ours, 20.0, unit="GB", ours=ours / GIGABYTE, others=gigabytes)


def main() -> None:
    if sys.argv[1:2] == ["--measure-here"]:
        print(json.dumps(measure_here(sys.argv[2], int(sys.argv[3]))))
        return
    arguments = parse_arguments(__doc__)
    if find_spec("lightly") is None or find_spec("pytorch_metric_learning") is None:
        sys.exit("lightly and pytorch-metric-learning are missing: pip install -e '.[dev]'")
    rounds = ROUNDS_QUICK if arguments.quick else ROUNDS
    metric = "pytorch-metric-learning"
    times = time_of(rounds, "lightly", PAIRS), time_of(rounds, metric, FEW_PAIRS)
    ours, peer = measure_apart("diptych", PAIRS), measure_apart("lightly", PAIRS)
    print(
        f"{PAIRS:,} pairs, one run each: diptych {ours['seconds']:.1f} s and"
        f" {ours['bytes'] / GIGABYTE:.3f} GB, lightly {peer['seconds']:.1f} s and"
        f" {peer['bytes'] / GIGABYTE:.1f} GB"
    )
    few = {name: measure_apart(name, FEW_PAIRS)["bytes"] for name in (metric, "diptych")}
    figures = [
        *times,
        memory_of("lightly", PAIRS, ours["bytes"], peer["bytes"]),
        memory_of(metric, FEW_PAIRS, few["diptych"], few[metric]),
    ]
    if not arguments.quick:
        many = measure_apart("diptych", MANY_PAIRS)
        print(f"{MANY_PAIRS:,} pairs, one run: {many['seconds']:.0f} s")
        gigabytes = many["bytes"] / GIGABYTE
        what = f"peak GB of ours, {MANY_PAIRS:,} pairs"
        figures.append(Figure(what, gigabytes, 2.0, "at most", "GB"))
    publish(figures, "NT-Xent, forward and backward, beside others", arguments.json)


if __name__ == "__main__":
    main()
