"""Processes of tests: a command to be killed, or several that talk by gloo on the loopback device.

They are forked from one process that has imported what is slow to import and nothing else, and has
no threads: torch takes seconds to load, in each of several processes and for each of many tests.
"""

import importlib.util
import os
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

Results = dict[str, Tensor]

LONGEST_SECONDS = 280

_FORKED = get_context("forkserver")
# What pytest itself is: multiprocessing imports the main module of this process in each.
_FORKED.set_forkserver_preload(
    ["pytest", "torch._dynamo", "torchvision", "diptych.methods.build", "diptych.pretraining"]
)


def start_command(*words: str) -> BaseProcess:
    """`diptych` with these words, begun in a process of its own."""
    process = _FORKED.Process(target=_command, args=(words, dict(os.environ)), daemon=True)
    process.start()
    return process


def run_processes(function: Callable[[int, int], Results], count: int) -> list[Results]:
    """The results of `function(rank, count)` of each process, in the order of ranks.

    The function stands at the top of its file, which is imported anew: pytest's own names of
    modules mean nothing to another process.
    """
    file, name = function.__code__.co_filename, function.__name__
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment["WORLD_SIZE"] = str(count)  # as torchrun does
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            _FORKED.Process(
                target=_run, args=(file, name, rank, count, folder, environment), daemon=True
            )
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        try:
            _wait_for([worker.sentinel for worker in workers])
        finally:
            for worker in workers:
                if worker.is_alive():
                    worker.kill()
                worker.join()
        for rank, worker in enumerate(workers):
            text = (Path(folder) / f"{rank}.txt").read_text(errors="replace")
            assert worker.exitcode == 0, f"process {rank} of {count} failed:\n{text}"
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(count)]


def _command(words: tuple[str, ...], environment: dict[str, str]) -> None:
    from diptych.cli.main import main

    os.environ.clear()
    os.environ |= environment
    sys.exit(main(words))


def _wait_for(ends: list[int]) -> None:
    deadline = time.monotonic() + LONGEST_SECONDS
    while ends:
        ended = wait(ends, timeout=deadline - time.monotonic())
        assert ended, f"{len(ends)} processes have not ended after {LONGEST_SECONDS} seconds"
        ends = [end for end in ends if end not in ended]


def _run(
    file: str, name: str, rank: int, count: int, folder: str, environment: dict[str, str]
) -> None:
    said = os.open(f"{folder}/{rank}.txt", os.O_WRONLY | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(said, standard)
    os.environ.clear()
    os.environ |= {**environment, "RANK": str(rank)}
    torch.set_num_threads(1)
    torch.save(_call(file, name, rank, count, folder), Path(folder) / f"{rank}.pt")


def _call(file: str, name: str, rank: int, count: int, folder: str) -> Results:
    spec = importlib.util.spec_from_file_location(Path(file).stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting_point",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=LONGEST_SECONDS),
    )
    results: Results = getattr(module, name)(rank, count)
    if dist.is_initialized():  # a test may have left it
        dist.destroy_process_group()
    return results
