"""Runs a function of a test file in several processes that talk by gloo on the loopback device.

As a script it is one of these processes: `processes.py FILE FUNCTION RANK COUNT FOLDER`.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

Results = dict[str, Tensor]

LONGEST_SECONDS = 280


def run_processes(function: Callable[[int, int], Results], count: int) -> list[Results]:
    """The results of `function(rank, count)` of each process, in the order of ranks.

    The function stands at the top of its file, which is imported anew: pytest's own names of
    modules mean nothing to another process.
    """
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        workers = [
            subprocess.Popen(
                [
                    *(sys.executable, __file__, function.__code__.co_filename, function.__name__),
                    *(str(rank), str(count), folder),
                ],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank in range(count)
        ]
        deadline = time.monotonic() + LONGEST_SECONDS
        try:
            said = [
                worker.communicate(timeout=deadline - time.monotonic())[0] for worker in workers
            ]
        finally:
            for worker in workers:
                if worker.poll() is None:
                    worker.kill()
                    worker.communicate()
        for rank, (worker, text) in enumerate(zip(workers, said, strict=True)):
            assert worker.returncode == 0, f"process {rank} of {count} failed:\n{text}"
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(count)]


def _main(file: str, name: str, rank: int, count: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(count)}  # as torchrun does
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
    torch.save(getattr(module, name)(rank, count), Path(folder) / f"{rank}.pt")
    if dist.is_initialized():  # a test may have left it
        dist.destroy_process_group()


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
