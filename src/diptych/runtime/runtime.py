"""What a command runs on, chosen once and handed down: device, threads, batch size, progress.

Imports torch only when it is needed: the command line comes here before it may be imported.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Final

from diptych.errors import ConfigError
from diptych.runtime.device import choose_device, use_threads, views_device
from diptych.runtime.progress import ProgressReporter

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
        progress: told what is being done, and how many of how many images are.
        processes: of this machine that do the same at once, and share the threads.

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
        return self

    def __exit__(self, *_: object) -> None:
        if "executor" in vars(self):
            self.executor.shutdown()


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _require(holds: bool, wanted: str, came: object) -> None:
    if not holds:
        raise ConfigError(f"{wanted}; got {came!r}.")
