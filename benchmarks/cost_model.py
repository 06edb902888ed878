"""How close `diptych plan` comes to runs that it has not seen: step time and peak memory.

Each run is planned by `diptych plan --measure`, in a process of its own, and made by `diptych
pretrain`, in one or two processes of their own; compared are the median step of its second half and
the highest resident memory of its first process, with what was planned. The plan is made first, of
some steps on noise without views and logits, and of those by themselves: it sees no step of a run.

    python benchmarks/cost_model.py               # about ten minutes on two idle cores
    python benchmarks/cost_model.py --quick       # three runs, under two minutes

Two figures of a CPU are known from whole runs only: the share of memory that lies free in the heap,
and what a step takes beside its parts. They were found, once, by two runs that are not among those
compared, and stand in `planning/machine.py`; `--calibrate` finds them again.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from command_line_runs import diptych
from measuring import Figure, add_arguments, publish, resident_bytes
from rich.console import Console
from rich.table import Table

from diptych.logging.metrics import read_metrics
from diptych.planning.storage import HEAP

GOAL = 0.20
STEPS = 24
PIXELS = 48


@dataclass(frozen=True)
class BenchmarkRun:
    """A run to plan and to make.

    Attributes:
        name: in words.
        flags: of both verbs.
        batch: images in a step.
        processes: that share it, on this machine.
    """

    name: str
    flags: tuple[str, ...]
    batch: int
    processes: int = 1


@dataclass(frozen=True)
class Cost:
    """Of a run: planned, or measured.

    Attributes:
        step_seconds: of a step.
        peak_bytes: that its first process holds at most.
        needed_bytes: planned, that are alive in the fullest moment of a step.
        heap_bytes: planned, that lie free in the heap at that moment.
    """

    step_seconds: float
    peak_bytes: float
    needed_bytes: float = 0.0
    heap_bytes: float = 0.0


def benchmark_run(name: str, flags: str, batch: int, processes: int = 1) -> BenchmarkRun:
    return BenchmarkRun(name, tuple(flags.split()), batch, processes)


CALIBRATIONS = (
    benchmark_run(
        "calibration, small", "--recipe moco_v1 --encoder.width 24 --views.side-pixels 40", 192
    ),
    benchmark_run(
        "calibration, large", "--recipe simclr --encoder resnet34 --views.side-pixels 40", 32
    ),
)
QUEUE = "--method.dictionary.queue.size 2048"
RUNS = (
    benchmark_run("simclr, small ResNet", "--recipe simclr", 256),
    benchmark_run("moco_v2, small ResNet", f"--recipe moco_v2 {QUEUE}", 128),
    benchmark_run("memory_bank, wider", "--recipe memory_bank --encoder.width 48", 160),
    benchmark_run("simclr, ResNet-18", "--recipe simclr --encoder resnet18", 64),
    benchmark_run("moco_v3, ResNet-18", "--recipe moco_v3 --encoder resnet18", 48),
    benchmark_run("end_to_end, group norm", "--recipe end_to_end --norm.kind group", 128),
    benchmark_run("simclr, chunks", "--recipe simclr --training.chunk-size 64", 512),
    benchmark_run("moco_v2, ResNet-50", f"--recipe moco_v2 --encoder resnet50 {QUEUE}", 32),
    benchmark_run("simclr, two processes", "--recipe simclr", 256, processes=2),
    benchmark_run(
        "moco_v2, ResNet-18, two processes",
        f"--recipe moco_v2 --encoder resnet18 --norm.kind split {QUEUE}",
        64,
        processes=2,
    ),
)
QUICK = (RUNS[1], RUNS[2], RUNS[8])


def settings(run: BenchmarkRun, images: Path, *, steps: int) -> list[str]:
    """What both verbs are given: two epochs, as the first one of a bank only fills it."""
    return [
        str(images),
        *("--scale", "tiny", "--epochs", "2", "--images.limit", str(run.batch * (steps // 2))),
        *("--batch-size", str(run.batch), *run.flags),
        *("--probe.log-every-steps", "1", "--probe.images", "64"),
        *("--checkpoint.every-seconds", "1e9"),
    ]


def planned(run: BenchmarkRun, images: Path, folder: Path, *, steps: int) -> Cost:
    """What the plan says."""
    file = folder / "plan.json"
    count = str(run.processes)
    given = [*settings(run, images, steps=steps), "--json", str(file), "--quiet"]
    here = ["--measure", "--processes", count, "--processes-here", count]
    subprocess.run(diptych("plan", *given, *here), check=True)
    plan = json.loads(file.read_text())
    memory = plan["memory"]
    fullest = max(memory["moments"].values(), key=lambda parts: sum(parts.values()))
    heap = fullest.get(HEAP, 0.0)
    return Cost(
        plan["step_seconds"],
        memory["device_bytes"] + memory["host_bytes"],
        needed_bytes=sum(fullest.values()) - heap,
        heap_bytes=heap,
    )


def measured(run: BenchmarkRun, images: Path, folder: Path, *, steps: int) -> Cost:
    """What the run takes."""
    out = folder / "run"
    given = [
        *("pretrain", *settings(run, images, steps=steps), "--out", str(out)),
        *("--no-report", "--quiet"),
    ]
    peaks = [folder / f"{rank}.peak" for rank in range(run.processes)]
    port = _free_port()
    workers = [
        subprocess.Popen(
            [sys.executable, __file__, "--one-run", str(peak), *given],
            env={**os.environ, **_place(rank, run.processes, port)},
        )
        for rank, peak in enumerate(peaks)
    ]
    codes = [worker.wait() for worker in workers]
    if any(codes):
        raise SystemExit(f"{run.name}: the run failed with {codes}")
    lines = [line for line in read_metrics(out / "metrics.jsonl") if line["step"] > steps // 2]
    views = [line["views_per_second"] for line in lines]
    per_step = run.batch * _views_of_an_image(out)
    return Cost(per_step / statistics.median(views), float(peaks[0].read_text()))


def _views_of_an_image(out: Path) -> int:
    from diptych.config.files import load_run_config

    config = load_run_config(out / "config.toml")
    return config.method.views + config.views.small_views


def _place(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun would say in the environment."""
    if count == 1:
        return {}
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    numbers = map(str, (rank, count, rank, count))
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    return {**dict(zip(names, numbers, strict=True)), **address}


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def one_run(peak: Path, arguments: Sequence[str]) -> None:
    """A run in this process, which then tells its peak."""
    from diptych.cli.main import main as command

    code = command(list(arguments))
    peak.write_text(str(resident_bytes("VmHWM")))
    sys.exit(code)


def compare(runs: Sequence[BenchmarkRun], *, steps: int) -> list[Figure]:
    """Plans and makes each run, and prints what was planned and found."""
    table = Table(title="Planned and measured", title_justify="left")
    for column in ("run", "step, ms", "planned", "over", "peak, MB", "planned", "over"):
        table.add_column(column, justify="left" if column == "run" else "right")
    figures = list[Figure]()
    for run, plan, found in _each(runs, steps=steps):
        figures += _figures(run, plan, found)
        table.add_row(run.name, *_row(plan, found))
    Console(width=110 if not sys.stdout.isatty() else None).print(table)
    return figures


def calibrate(*, steps: int) -> None:
    """Prints a line through the peaks of two runs, and what their steps took beside their parts."""
    needed, beside = list[float](), list[float]()
    for run, plan, found in _each(CALIBRATIONS, steps=steps):
        needed.append(plan.needed_bytes)
        beside.append(found.peak_bytes - plan.peak_bytes + plan.heap_bytes)
        late = found.step_seconds - plan.step_seconds
        print(f"{run.name}: {late * 1e3:+.1f} ms of {found.step_seconds * 1e3:.1f} not planned")
    share = (beside[1] - beside[0]) / (needed[1] - needed[0])
    print(f"heap_share {share:.2f}, and {(beside[0] - share * needed[0]) / 1e6:.0f} MB beside it")


def _each(runs: Sequence[BenchmarkRun], *, steps: int) -> Iterator[tuple[BenchmarkRun, Cost, Cost]]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = _images(root, max(run.batch for run in runs) * steps)
        for number, run in enumerate(runs):
            folder = root / str(number)
            folder.mkdir()
            plan = planned(run, images, folder, steps=steps)
            yield run, plan, measured(run, images, folder, steps=steps)


def _images(folder: Path, count: int) -> Path:
    path = folder / "images.npy"
    shape = (count, PIXELS, PIXELS, 3)
    np.save(path, np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    return path


def _figures(run: BenchmarkRun, plan: Cost, found: Cost) -> list[Figure]:
    errors = {
        "step time": plan.step_seconds / found.step_seconds - 1,
        "peak memory": plan.peak_bytes / found.peak_bytes - 1,
    }
    return [
        Figure(f"{run.name}: {what}, relative error", abs(error), GOAL, bound="at most")
        for what, error in errors.items()
    ]


def _row(plan: Cost, found: Cost) -> list[str]:
    return [
        f"{found.step_seconds * 1e3:,.1f}",
        f"{plan.step_seconds * 1e3:,.1f}",
        f"{plan.step_seconds / found.step_seconds:.2f}",
        f"{found.peak_bytes / 1e6:,.0f}",
        f"{plan.peak_bytes / 1e6:,.0f}",
        f"{plan.peak_bytes / found.peak_bytes:.2f}",
    ]


def main() -> None:
    if sys.argv[1:2] == ["--one-run"]:
        one_run(Path(sys.argv[2]), sys.argv[3:])
    parser = add_arguments(__doc__)
    parser.add_argument("--only", type=int, nargs="+", metavar="RUN", help="numbers, from 0")
    parser.add_argument("--calibrate", action="store_true", help="make the two other runs instead")
    arguments: Any = parser.parse_args()
    if arguments.calibrate:
        calibrate(steps=STEPS)
        return
    chosen: tuple[BenchmarkRun, ...] = QUICK if arguments.quick else RUNS
    if arguments.only is not None:
        chosen = tuple(RUNS[number] for number in arguments.only)
    figures = compare(chosen, steps=12 if arguments.quick else STEPS)
    publish(figures, "The plan against runs it was not fitted to", arguments.json)


if __name__ == "__main__":
    main()
