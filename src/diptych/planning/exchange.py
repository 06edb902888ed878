"""How quick messages between processes of this machine are: gloo over the loopback device.

A message between idle processes says little of a run. There each message ends a stretch of work,
which one process finishes a little later than the other; and who receives it has to be woken while
all cores are busy. So small messages are measured between stretches of work as long as the run's.
"""

import multiprocessing
import os
import statistics
import tempfile
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist

_SMALL: Final = 4  # numbers: a message that is all latency
_LARGE: Final = 4 * 2**20  # numbers, 16 MB
_REPEATS: Final = 9
_WORK_SECONDS: Final = 1.0  # of all stretches between messages, and once more without messages
_LEAST_STRETCHES: Final = 20
_SHORTEST, _LONGEST = 2e-4, 2e-2  # seconds of a stretch
_PATIENCE_SECONDS: Final = 60


def measure_exchange(
    processes: int = 2, *, threads: int = 1, work_seconds: float = 0.0
) -> tuple[float, float]:
    """Seconds of a turn without bytes, and bytes per second that a process sends.

    Args:
        processes: that take part, two or more.
        threads: of each.
        work_seconds: that each works between two messages; idle processes for 0.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found = context.Queue()
        place = (processes, threads, work_seconds, folder, found)
        workers = [
            context.Process(target=_exchange, args=(rank, *place), daemon=True)
            for rank in range(processes)
        ]
        for worker in workers:
            worker.start()
        try:
            small, large = found.get(timeout=_PATIENCE_SECONDS)
        finally:
            for worker in workers:
                worker.join(timeout=10)
                worker.kill()
    turns = 2 * (processes - 1)
    sent = 2 * (processes - 1) / processes * _LARGE * 4
    return small / turns, sent / max(large - small, 1e-9)


def _exchange(
    rank: int, count: int, threads: int, work_seconds: float, folder: str, found: Any
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(threads)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'meeting_point'}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=_PATIENCE_SECONDS),
    )
    idle, large = (_median(torch.zeros(size)) for size in (_SMALL, _LARGE))
    small = max(idle, _at_work(work_seconds)) if work_seconds else idle
    if rank == 0:
        found.put((small, large))
    dist.barrier()
    dist.destroy_process_group()


def _median(numbers: torch.Tensor) -> float:
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        dist.all_reduce(numbers)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


def _at_work(seconds: float) -> float:
    """What a small message adds to a stretch of work, in which all processes are."""
    values, numbers = torch.randn(256, 256), torch.zeros(_SMALL)
    begun = time.perf_counter()
    for _ in range(_REPEATS):
        torch.mm(values, values)
    one = (time.perf_counter() - begun) / _REPEATS
    stretch = min(max(seconds, _SHORTEST), _LONGEST)
    # All take the same number of products, as the processes of a run have the same work.
    products = torch.tensor(max(1.0, stretch / one))
    dist.broadcast(products, src=0)
    stretches = max(_LEAST_STRETCHES, round(_WORK_SECONDS / stretch))

    def work(*, tell: bool) -> float:
        dist.barrier()
        begun = time.perf_counter()
        for _ in range(stretches):
            for _ in range(int(products)):
                torch.mm(values, values)
            if tell:
                dist.all_reduce(numbers)
        dist.barrier()
        return time.perf_counter() - begun

    alone = work(tell=False)
    return max(0.0, work(tell=True) - alone) / stretches
