"""How many CPU threads to use, for the networks and for making views."""

import os


def available_threads() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def shorten_spinning() -> None:
    """Keeps torch's idle threads from turning in circles while other threads make views.

    GNU OpenMP lets a thread spin for milliseconds after each operation; on few cores that is time
    taken from the views. It reads the variable once, so this comes before torch is imported; a
    value that is set already stays.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


def use_threads(count: int | None) -> int:
    """Sets the number of threads of the networks and returns it; all cores for None."""
    import torch

    threads = count or available_threads()
    torch.set_num_threads(threads)
    return threads
