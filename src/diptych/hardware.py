"""What a run works on: CPU threads, for networks and views alike, and the device.

Imports torch only when it is needed: the command line comes here before it may be imported.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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


def views_device(applier: str, device: "torch.device") -> "torch.device | None":
    """Where views are made by tensor operations, for ``views.applier``; None for compiled loops."""
    on_device = applier == "device" or (applier == "auto" and device.type == "cuda")
    return device if on_device else None


def choose_device(wanted: str) -> "torch.device":
    """The device for ``training.device``: for ``auto`` an accelerator if there is one."""
    import torch

    if wanted != "auto":
        return torch.device(wanted)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
