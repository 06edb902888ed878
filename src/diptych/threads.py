"""How many CPU threads to use, for the networks and for making views."""

import os


def available_threads() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int | None) -> int:
    """Sets the number of threads of the networks and returns it; all cores for None."""
    import torch

    threads = count or available_threads()
    torch.set_num_threads(threads)
    return threads
