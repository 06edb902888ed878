"""How quick messages between processes of this machine are: gloo over the loopback device."""

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
_PATIENCE_SECONDS: Final = 60


def measure_exchange(processes: int = 2) -> tuple[float, float]:
    """Seconds of a turn without bytes, and bytes per second that a process sends.

    Args:
        processes: that take part, two or more.
    """
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        found = context.Queue()
        workers = [
            context.Process(target=_exchange, args=(rank, processes, folder, found), daemon=True)
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


def _exchange(rank: int, count: int, folder: str, found: Any) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{Path(folder) / 'meeting_point'}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=_PATIENCE_SECONDS),
    )
    seconds = tuple(_median(torch.zeros(size)) for size in (_SMALL, _LARGE))
    if rank == 0:
        found.put(seconds)
    dist.barrier()
    dist.destroy_process_group()


def _median(numbers: torch.Tensor) -> float:
    times = []
    for _ in range(_REPEATS):
        begun = time.perf_counter()
        dist.all_reduce(numbers)
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])
