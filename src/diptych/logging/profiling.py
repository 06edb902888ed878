"""A trace of a few steps by torch's profiler, for a timeline viewer (Perfetto, Chrome)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from diptych.config.run import ProbeConfig
from diptych.runs.atomic import atomic_path
from diptych.runs.folder import RunFolder
from diptych.runtime.distributed import process_rank
from diptych.runtime.stopwatch import Stopwatch

WARM_UP_STEPS: Final = 5
"""Not traced, when a run begins or is resumed: kernels are compiled, memory is found in them."""


@contextmanager
def profiled(
    stopwatch: Stopwatch, config: ProbeConfig, folder: RunFolder
) -> Iterator[Callable[[], None]]:
    """Traces some steps of this process if the config asks for it.

    The last of the warm-up steps has the profiler on already, which is slow at first. A run that
    ends earlier leaves the trace of what it came to.

    Args:
        stopwatch: whose parts are named in the trace.
        config: says how many steps.
        folder: of the run.

    Yields:
        What to call at the end of each step.
    """
    if config.profile_steps is None:
        yield lambda: None
        return

    def write(profiler: Any) -> None:
        stopwatch.traced = False
        final = folder.traces / f"rank-{process_rank()}.json"
        with atomic_path(final) as temporary:
            profiler.export_chrome_trace(str(temporary))

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    when = schedule(wait=WARM_UP_STEPS - 1, warmup=1, active=config.profile_steps, repeat=1)
    stopwatch.traced = True
    try:
        with profile(activities=activities, schedule=when, on_trace_ready=write) as profiler:
            yield profiler.step
    finally:
        stopwatch.traced = False
