"""How long a command takes until its first step, and until its help is on the screen.

Small JPEG files in class folders are made, and `diptych pretrain` opens them once, uncounted: the
index of the files, compiled loops and the pages of the libraries are then in their caches. After
that each start is a process of its own. It is timed from the command to the end of the first step
of the optimizer, and to the first line of metrics, which holds a measurement of the encoder too. Of
all starts the medians are given, and the seconds of processors that they took, which other work on
the machine changes less. `--lightly-train PYTHON` takes turns with lightly-train, by the
interpreter of an environment that has it: SimCLR on a ResNet-18 at the same side and batch, for
which diptych starts on a ResNet-18 too; so do `--lightly PYTHON` with lightly's example loop and
`--stable-pretraining PYTHON` with that library's script, the runners of `peers/`. The ratios are
those of the seconds of processors, as turns of different length meet different other work.

    python benchmarks/start.py            # 10,000 files, about two minutes on two idle cores
    python benchmarks/start.py --quick    # 1,000 files, three starts
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from command_line_runs import diptych
from measuring import Figure, add_arguments, publish
from peers.contenders import Run
from peers.environments import runner_environment
from PIL import Image

from diptych.cli.main import VERBS

START_GOAL, HELP_GOAL = 4.0, 0.3  # seconds
PEER_GOAL = 1.0
FILES, FILES_QUICK = 10_000, 1_000
STARTS, STARTS_QUICK = 5, 3
SIDE, BATCH, CLASSES = 32, 128, 10
WORKERS = max(1, len(os.sched_getaffinity(0)) - 1)
"""Processes that load images, of libraries that have them, as in `peers/`."""

_OURS = """
import os, sys, time
def mark():
    times = os.times()
    print("\\nmark", time.time(), times.user + times.system, flush=True)
from diptych.cli.main import main
import diptych.training.loop as loop
step, write = loop.train_step, loop.RunLog.write
def marked_step(*given, **named):
    output = step(*given, **named)
    mark()
    return output
def last_write(log, line):
    write(log, line)
    mark()
    os._exit(0)
loop.train_step, loop.RunLog.write = marked_step, last_write
main(["pretrain", sys.argv[1], "--out", sys.argv[2], "--batch-size", sys.argv[3], *sys.argv[5:]])
"""
_LIGHTLY_TRAIN = "lightly-train"
_RUNNERS = {"lightly": "lightly_loop", "stable-pretraining": "stable_pretraining_run"}
_FIRST_STEP = """
import os, sys, time
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
torch.set_num_threads(len(os.sched_getaffinity(0)))  # as diptych does in any environment
def last_step(*_):
    times = os.times()
    print("\\nmark", time.time(), times.user + times.system, flush=True)
    os._exit(0)
register_optimizer_step_post_hook(last_step)
"""
_TRAIN = """
import lightly_train
side = int(sys.argv[4])
lightly_train.pretrain(
    out=sys.argv[2], data=sys.argv[1], model="torchvision/resnet18", method="simclr", epochs=1,
    batch_size=int(sys.argv[3]), transform_args={"image_size": (side, side)},
    accelerator="cpu", devices=1, num_workers=int(sys.argv[5]),
)
"""
_RUN = """
import runpy
module, job = sys.argv[5:]
sys.argv[1:] = [job]
runpy.run_module("peers.runners." + module, run_name="__main__")
"""


# With torchvision's own stem: the one that diptych chooses for 32 pixels computes far more.
_SAME_NETWORK = ("--encoder", "resnet18", "--encoder.stem", "imagenet")


class Mark(NamedTuple):
    """A point of a start: seconds since the command, and seconds of processors so far."""

    seconds: float
    processor: float


def fill(folder: Path, count: int) -> None:
    """Class folders of so many different JPEG files."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / f"class{number % CLASSES}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE, SIDE)).save(path, quality=90)


def start(python: str, program: str, images: Path, out: Path, *flags: str) -> list[Mark]:
    """The points that a program of one of the libraries passes until it ends itself."""
    command = [python, "-c", program, str(images), str(out), str(BATCH), str(SIDE), *flags]
    # A file and no pipe, which the workers of a loader would hold open.
    log = out.with_suffix(".log")
    # A program that is cut off leaves lightly-train's list of files behind, which it then refuses.
    # And nothing is sent: usage events would be in its time.
    kept = {"LIGHTLY_TRAIN_CACHE_DIR": str(out.with_suffix(".cache"))}
    environment = {**runner_environment(), **kept}
    with open(log, "w") as written:
        begun = time.time()
        process = subprocess.Popen(
            command,
            stdout=written,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        process.wait()
    with suppress(ProcessLookupError):  # the workers, if any are left
        os.killpg(process.pid, signal.SIGKILL)
    words = [line.split() for line in log.read_text().splitlines() if line.startswith("mark ")]
    if not words:
        raise SystemExit(f"no step was taken:\n{log.read_text()[-3000:]}")
    return [Mark(float(now) - begun, float(processor)) for _, now, processor in words]


def start_of(name: str, python: str, images: Path, out: Path) -> list[Mark]:
    """The first step of another library."""
    if name == _LIGHTLY_TRAIN:
        return start(python, _FIRST_STEP + _TRAIN, images, out, str(WORKERS))
    job = Run(
        images=str(images),
        out=str(out),
        network="resnet18",
        side=SIDE,
        batch=BATCH,
        workers=WORKERS,
    )
    words = (_RUNNERS[name], json.dumps(asdict(job)))
    return start(python, _FIRST_STEP + _RUN, images, out, *words)


def run(command: Sequence[str]) -> Mark:
    """The end of a command that ends by itself."""
    begun, before = time.perf_counter(), os.times()
    silent = subprocess.DEVNULL
    variables = runner_environment()
    subprocess.run(command, check=True, stdout=silent, stderr=silent, env=variables)
    seconds, after = time.perf_counter() - begun, os.times()
    user = after.children_user - before.children_user
    return Mark(seconds, user + after.children_system - before.children_system)


def middle(marks: Sequence[Mark], what: str) -> Mark:
    """The medians, which are printed."""
    seconds, processor = (statistics.median(each) for each in zip(*marks, strict=True))
    print(f"{what}: {seconds:.2f} s, {processor:.2f} s of processors")
    return Mark(seconds, processor)


def measure_starts(count: int, starts: int, others: Mapping[str, str]) -> list[Figure]:
    """Medians of so many starts of each library, which take turns.

    Args:
        count: files to learn from.
        starts: of each library.
        others: interpreters of other libraries, by their names.
    """
    ours, same = list[list[Mark]](), list[Mark]()
    theirs = {name: list[Mark]() for name in others}
    with tempfile.TemporaryDirectory() as place:
        images = Path(place) / "images"
        fill(images, count)
        for number in range(starts + 1):  # the first turn fills the caches and does not count
            ours.append(start(sys.executable, _OURS, images, Path(place) / f"ours{number}"))
            if others:
                out = Path(place) / f"same{number}"
                same += start(sys.executable, _OURS, images, out, *_SAME_NETWORK)[:1]
            for name, python in others.items():
                theirs[name] += start_of(name, python, images, Path(place) / f"{name}{number}")
    what = f"with {count:,} JPEG files"
    step = middle([first for first, _ in ours[1:]], f"diptych to its first step, {what}")
    middle([line for _, line in ours[1:]], "diptych to its first line of metrics")
    wanted = f"seconds to the first step {what}"
    figures = [Figure(wanted, step.seconds, START_GOAL, "at most", "s")]
    if others:
        own = middle(same[1:], "diptych to its first step, ResNet-18")
        for name, marks in theirs.items():
            other = middle(marks[1:], f"{name} to its first step, ResNet-18")
            figures.append(over("start, ResNet-18", name, other, own))
    return figures


def over(what: str, name: str, theirs: Mark, ours: Mark) -> Figure:
    """How much more of the processors the other library takes."""
    return Figure(
        f"{name}'s {what} over diptych's, processors",
        theirs.processor / ours.processor,
        PEER_GOAL,
        unit="s of processors",
        ours=ours.processor,
        others={name: theirs.processor},
    )


def measure_help(starts: int, peer: str | None) -> list[Figure]:
    """Medians of `--help`, and of that of the verb that takes longest."""
    commands = {"": diptych("--help")} | {verb: diptych(verb, "--help") for verb in VERBS}
    if peer is not None:
        commands[_LIGHTLY_TRAIN] = [str(Path(peer).parent / _LIGHTLY_TRAIN), "--help"]
    ends: dict[str, list[Mark]] = {name: [] for name in commands}
    for _ in range(starts):  # by turns, so that other work meets all alike
        for name, command in commands.items():
            ends[name].append(run(command))
    # By the processors: of the seconds of two dozen the longest would be that of a disturbance.
    slowest = max(VERBS, key=lambda verb: statistics.median(end.processor for end in ends[verb]))
    whole = middle(ends[""], "diptych --help")
    verb = middle(ends[slowest], f"diptych {slowest} --help")
    figures = [
        Figure("seconds of `diptych --help`", whole.seconds, HELP_GOAL, "at most", "s"),
        Figure(f"of the slowest verb, `{slowest} --help`", verb.seconds, HELP_GOAL, "at most", "s"),
    ]
    if peer is not None:
        other = middle(ends[_LIGHTLY_TRAIN], f"{_LIGHTLY_TRAIN} --help")
        figures.append(over("--help", _LIGHTLY_TRAIN, other, whole))
    return figures


def main() -> None:
    """Measures starts and help."""
    parser = add_arguments(__doc__)
    for name in (_LIGHTLY_TRAIN, *_RUNNERS):
        parser.add_argument(f"--{name}", metavar="PYTHON", help="an interpreter that has it")
    flags = parser.parse_args()
    count, starts = (FILES_QUICK, STARTS_QUICK) if flags.quick else (FILES, STARTS)
    found = {name: getattr(flags, name.replace("-", "_")) for name in (_LIGHTLY_TRAIN, *_RUNNERS)}
    figures = measure_starts(count, starts, {name: one for name, one in found.items() if one})
    figures += measure_help(starts, flags.lightly_train)
    publish(figures, "Start", flags.json)


if __name__ == "__main__":
    main()
