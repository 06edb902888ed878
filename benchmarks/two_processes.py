"""Two processes of one thread each against one process of two threads: the same run and cores.

Both are the real command (`diptych launch --nproc-per-node 2 -- pretrain` and `diptych pretrain`)
with the same recipe, images, seed and whole batch, ResNet-18 at 32 pixels. The two processes draw
and make their own halves of the views, and send each other statistics of batch norm, keys and
gradients through gloo over the loopback device; all that is in the figure. The contestants take
turns: one is stopped (SIGSTOP) while the other does some steps. The figure is the median over pairs
of turns of the time of one process over the time of two, that is, the throughput of two processes
over that of one. The first losses of both are compared, too, for they are to be the same run.

    python benchmarks/two_processes.py             # about six minutes on two cores
    python benchmarks/two_processes.py --quick     # SimCLR alone, a batch of 64, fewer turns
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from command_line_runs import diptych
from launched import child_processes, last_step
from measuring import Figure, parse_arguments, publish

from diptych.logging.metrics import read_metrics

GOAL = 0.97
LOSSES_DIFFER = 1e-3  # of the first steps; rounding in float32, which training lets grow
RECIPES = ("simclr", "moco_v2")
BATCH, STEPS, PAIRS = 128, 2, 7
BATCH_QUICK, STEPS_QUICK, PAIRS_QUICK = 64, 1, 3
WARM_UP_STEPS = 2
SLOWEST_START_SECONDS = 300.0


class Contestant:
    """A run that goes on only in its turns.

    Args:
        command: words before ``pretrain``'s arguments.
        arguments: of ``pretrain``.
        out: the run folder.
    """

    def __init__(self, command: Sequence[str], arguments: Sequence[str], out: Path) -> None:
        self.out = out
        self.log = out.with_suffix(".log")
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, *arguments, "--out", str(out)],
                env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Contestant":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing that was begun outlives the benchmark."""
        self._signal(signal.SIGKILL)
        self.process.wait()

    def turn(self, steps: int) -> float:
        """Seconds of so many steps, from where the run was stopped."""
        goal, begun = last_step(self.out) + steps, time.perf_counter()
        self._signal(signal.SIGCONT)
        while last_step(self.out) < goal:
            if self.process.poll() is not None:
                raise SystemExit(f"the run ended too early:\n{self.log.read_text()}")
            if time.perf_counter() > begun + SLOWEST_START_SECONDS:
                raise SystemExit(f"no step in {SLOWEST_START_SECONDS:g} seconds")
            time.sleep(0.001)
        seconds = time.perf_counter() - begun
        self._signal(signal.SIGSTOP)
        return seconds

    def losses(self) -> dict[int, float]:
        """Of each step so far."""
        return {line["step"]: line["loss"] for line in read_metrics(self.out / "metrics.jsonl")}

    def _signal(self, number: signal.Signals) -> None:
        for pid in (*child_processes(self.process.pid), self.process.pid):
            os.kill(pid, number)


def arguments(recipe: str, images: Path, batch: int, steps: int) -> list[str]:
    """What both runs are told."""
    return [
        *("pretrain", str(images), "--recipe", recipe, "--scale", "tiny"),
        *("--encoder.name", "resnet18", "--encoder.stem", "small", "--batch-size", str(batch)),
        *("--epochs", "1", "--images.limit", str(batch * steps), "--no-report"),
        *("--probe.log-every-steps", "1", "--probe.images", "16"),
        *("--checkpoint.every-seconds", "1e9"),
    ]


def measure(recipe: str, folder: Path, *, batch: int, steps: int, pairs: int) -> list[Figure]:
    """The ratio for one recipe, and how far the two runs' losses are from each other."""
    most = WARM_UP_STEPS + steps * pairs + 8  # neither comes to its end
    images = folder / "images.npy"
    shape = (batch * most, 32, 32, 3)
    np.save(images, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    given = arguments(recipe, images, batch, most)
    launch = diptych("launch", "--nproc-per-node", "2", "--")
    with ExitStack() as opened:
        two = opened.enter_context(Contestant(launch, given, folder / f"{recipe}-two"))
        two.turn(WARM_UP_STEPS)
        one = opened.enter_context(Contestant(diptych(), given, folder / f"{recipe}-one"))
        one.turn(WARM_UP_STEPS)
        ratios = []
        for pair in range(pairs):
            # Whoever comes second finds the machine as the first left it: they alternate.
            order = (one, two) if pair % 2 else (two, one)
            seconds = {contestant: contestant.turn(steps) for contestant in order}
            ratios.append(seconds[one] / seconds[two])
        found, expected = two.losses(), one.losses()
    first = range(1, WARM_UP_STEPS + 1)
    apart = max(abs(found[step] - expected[step]) for step in first) / max(expected.values())
    print(f"{recipe}: {', '.join(f'{ratio:.3f}' for ratio in sorted(ratios))}", flush=True)
    return [
        Figure(f"{recipe}: throughput of two processes over one", statistics.median(ratios), GOAL),
        Figure(f"{recipe}: first losses apart", apart, LOSSES_DIFFER, bound="at most"),
    ]


def main() -> None:
    flags: Any = parse_arguments(__doc__)
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("This wants two cores.")
    sizes = (
        {"batch": BATCH_QUICK, "steps": STEPS_QUICK, "pairs": PAIRS_QUICK}
        if flags.quick
        else {"batch": BATCH, "steps": STEPS, "pairs": PAIRS}
    )
    figures = list[Figure]()
    for recipe in RECIPES[:1] if flags.quick else RECIPES:
        with tempfile.TemporaryDirectory() as name:
            figures += measure(recipe, Path(name), **sizes)
    title = f"ResNet-18, 32 pixels, batch {sizes['batch']}: two processes of one thread each"
    publish(figures, title, flags.json)


if __name__ == "__main__":
    main()
