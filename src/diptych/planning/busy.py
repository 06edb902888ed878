"""Other processes at work meanwhile: those of a run share a machine's memory and caches."""

import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diptych.planning.case import Case


@contextmanager
def companions(case: Case, count: int, threads: int) -> Iterator[None]:
    """Keeps processes busy with the run's own networks until the context ends.

    Args:
        case: the run.
        count: of processes.
        threads: of each.
    """
    context = multiprocessing.get_context("spawn")
    ready = [context.Event() for _ in range(count)]
    workers = [
        context.Process(target=keep_busy, args=(case, threads, event), daemon=True)
        for event in ready
    ]
    for worker in workers:
        worker.start()
    try:
        for event in ready:
            event.wait(timeout=60)
        yield
    finally:
        for worker in workers:
            worker.kill()
            worker.join()


def keep_busy(case: Case, threads: int, ready: "multiprocessing.synchronize.Event") -> None:
    """Trains the network on noise until it is killed."""
    from diptych.planning.measure import build_small
    from diptych.runtime.device import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(threads)
    method, side = build_small(case), case.config.views.side_pixels
    count = case.images // case.chunks * max(1, case.query_views - case.config.views.small_views)
    views = torch.randn(count, case.config.images.channels, side, side)
    views = views.contiguous(memory_format=torch.channels_last)
    while True:
        torch.autograd.backward(method.network(views).sum())
        method.zero_grad(set_to_none=True)
        ready.set()
