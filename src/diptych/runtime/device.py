"""The device by its name, the number of threads, and how torch and glibc use a machine.

Imports torch only when it is needed: the command line comes here before it may be imported.
"""

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Final

from diptych.errors import ConfigError
from diptych.runtime.world import read_world

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


def use_threads(count: int | None, *, processes: int = 1) -> int:
    """Sets the number of threads of the networks and returns it.

    Args:
        count: for all processes of this machine together; all cores for None.
        processes: of this machine, among which they are divided.
    """
    import torch

    threads = divided(count or available_threads(), processes)
    torch.set_num_threads(threads)
    return threads


def divided(threads: int, processes: int) -> int:
    """Threads for each of the processes of a machine; one at least."""
    return max(1, threads // processes)


def views_device(applier: str, device: "torch.device") -> "torch.device | None":
    """Where views are made by tensor operations, for ``views.applier``; None for compiled loops."""
    on_device = applier == "device" or (applier == "auto" and device.type == "cuda")
    return device if on_device else None


def choose_device(wanted: str, *, setting: str = "training.device") -> "torch.device":
    """The device of a name: for ``auto`` an accelerator if there is one.

    Of several processes on a machine each has the CUDA device with its own number.

    Args:
        wanted: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        setting: where the name comes from, for the message.

    Raises:
        ConfigError: there is no such device here.
    """
    import torch

    _require_device(wanted, setting)
    if wanted in ("auto", "cuda") and torch.cuda.is_available():
        here = read_world()
        return torch.device("cuda", here.local_rank) if here.count > 1 else torch.device("cuda")
    if wanted != "auto":
        return torch.device(wanted)
    alone = read_world().count == 1
    return torch.device("mps" if alone and torch.backends.mps.is_available() else "cpu")


def _require_device(wanted: str, setting: str) -> None:
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda or torch.version.hip
        why = (
            "torch finds no GPU, or no driver for it (see nvidia-smi)"
            if built
            else f"torch {torch.__version__} was built without CUDA"
        )
    elif wanted == "mps" and not torch.backends.mps.is_available():
        why = "torch finds no GPU of Apple's here"
    else:
        return
    raise ConfigError(
        f"{setting} = {wanted!r}, but {why}. Use --{setting.removeprefix('--')} auto, which takes "
        "what there is, or cpu."
    )


_TRIM_THRESHOLD: Final = -1  # numbers from malloc.h
_MMAP_MAX: Final = -4
_NEVER: Final = 2**31 - 1


def keep_freed_memory() -> None:
    """Lets glibc re-use the large blocks that each step frees and the next one asks for again.

    By default such blocks are mapped from the system and returned, and every page is cleared
    anew: 10 to 20% of a step of a small network. Does nothing without glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    mallopt(_MMAP_MAX, 0)
    mallopt(_TRIM_THRESHOLD, _NEVER)
