"""What a command runs on, chosen once and handed down: device, threads, batch size, progress.

Also how torch and glibc use the machine. torch is imported inside functions only: the command line
calls ``shorten_spinning``, which must come before the first import of torch.
"""

import ctypes
import math
import os
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from diptych.errors import ConfigError
from diptych.runtime.console import ProgressReporter
from diptych.runtime.world import read_world

if TYPE_CHECKING:
    import torch

BATCH_SIZE: Final = 256
"""Images that a frozen network sees at once, where nothing else is asked for."""

DEVICES: Final = ("auto", "cpu", "cuda", "mps")


@dataclass(frozen=True)
class Runtime:
    """Device, threads, batch size of inference, and progress of one command.

    A context: when it ends, so do its threads.

    Attributes:
        device: ``auto`` takes an accelerator if there is one; ``cpu``, ``cuda`` or ``mps``.
        threads: CPU threads of all ``processes`` together; all cores for None.
        batch_size: images that a frozen network sees at once. In evaluation mode an image's
            features do not depend on the rest of its batch, but for rounding.
        progress: shows what is being done, and how many of how many images are done.
        processes: of this machine that run at once, and share the threads.

    Raises:
        ConfigError: one of them is out of range, or there is no such device here.

    Example:
        >>> with Runtime(device="cpu", threads=1) as runtime:
        ...     list(runtime.executor.map(abs, [-1, 2]))
        [1, 2]
    """

    device: str = "auto"
    threads: int | None = None
    batch_size: int = BATCH_SIZE
    progress: ProgressReporter = field(default_factory=ProgressReporter)
    processes: int = 1

    def __post_init__(self) -> None:
        _require(self.device in DEVICES, f"--device is one of {', '.join(DEVICES)}", self.device)
        if self.threads is not None:
            _require(_is_count(self.threads), "--threads must be a positive number", self.threads)
        wanted = "the batch size of inference must be a positive number"
        _require(_is_count(self.batch_size), wanted, self.batch_size)

    @cached_property
    def torch_device(self) -> "torch.device":
        """The device that ``device`` names here."""
        return choose_device(self.device, setting="--device")

    @cached_property
    def executor(self) -> ThreadPoolExecutor:
        """Threads that decode and make views; the networks' own are set to as many."""
        return ThreadPoolExecutor(use_threads(self.threads, processes=self.processes))

    def views_device(self, applier: str) -> "torch.device | None":
        """Where tensor operations make random views, for ``views.applier``; None for loops."""
        return views_device(applier, self.torch_device)

    def counting(self, what: str) -> Callable[[int, int], None]:
        """A function that takes how many of how many images are done, of what is being done."""
        return partial(self.progress.images, what)

    def __enter__(self) -> "Runtime":
        keep_freed_memory()  # each batch asks for the blocks that the one before gave back
        return self

    def __exit__(self, *_: object) -> None:
        if "executor" in vars(self):
            self.executor.shutdown()


def _is_count(value: Any) -> bool:
    # Python's True is an int, and no number of threads.
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(holds: bool, wanted: str, came: object) -> None:
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")


def available_threads() -> int:
    """Cores that this process may run on, no more than its container's quota of time allows."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min(cores, quota_cores() or cores))


def quota_cores(
    own: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Cores whose time the control groups of this process may use, rounded up; None for all.

    A container that was started with ``--cpus 2`` still sees all cores of its machine. With a
    thread on each, all of them are stopped together as soon as the time of two is used up.

    Args:
        own: the groups of this process, one in a line.
        mounted: where the groups are folders.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mounted / ("cpu" if controllers else "")
        # Limits of groups around count too. Within a container its own group is the top, while
        # the path may be the one outside, which does not exist here.
        folder = top / path.strip("/")
        found += [_quota(one) for one in (folder, *folder.parents) if one.is_relative_to(top)]
    return min((one for one in found if one is not None), default=None)


def _quota(group: Path) -> int | None:
    """Of one control group, of version 2 or 1."""
    for names in (["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        try:
            quota, period = " ".join((group / name).read_text() for name in names).split()
            microseconds = int(quota)  # "max", and -1 in version 1, are none
            return math.ceil(microseconds / int(period)) if microseconds > 0 else None
        except (OSError, ValueError):
            continue
    return None


def shorten_spinning() -> None:
    """Makes torch's idle threads sleep sooner, so that other threads can make views.

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
    # Several processes cannot exchange tensors over mps.
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


def require_compiler(device: "torch.device") -> None:
    """Of ``training.compile``, which writes C++ for a CPU.

    Raises:
        ConfigError: the device is a CPU, and no compiler for it is there.
    """
    usual = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")  # torch takes the same
    wanted = os.environ.get("CXX", "").strip() or usual
    # A command, as "ccache g++" is one; of Windows the path of a program, which may have spaces.
    program = wanted if sys.platform == "win32" else wanted.split()[0]
    if device.type == "cpu" and shutil.which(program) is None:
        raise ConfigError(
            f"training.compile needs a C++ compiler on a CPU, and {wanted!r} is not there. Install "
            "it, name another one by the variable CXX, or leave out training.compile."
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
