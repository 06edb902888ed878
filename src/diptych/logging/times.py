"""Where the time of a run goes: lines of metrics, their means, and a profiler's trace."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, schedule

from diptych.config.run import ProbeConfig
from diptych.runs.atomic import atomic_path
from diptych.runs.folder import RunFolder
from diptych.runtime.distributed import gather_rows, process_count, process_rank
from diptych.runtime.stopwatch import PARTS, Stopwatch

OWN: Final = "milliseconds/"
SLOWEST: Final = "slowest_milliseconds/"
USUAL: Final = "usual_milliseconds/"
SLOWEST_PROCESS: Final = "slowest_process"
"""Keys, or their beginnings, in a line of metrics; docs/run-folder.md says what they are."""

NOT_WORK: Final = ("communication", "measuring", "checkpoint")
"""Parts in which a process waits for the others, or that are the first one's alone."""


def time_metrics(seconds: Mapping[str, float], steps: int) -> dict[str, float]:
    """The times in a line of metrics, since the line before. Collective.

    Args:
        seconds: of this process, by part.
        steps: in which they passed.

    Returns:
        ``milliseconds/PART`` of this process, the mean over the steps. With several processes also
        ``slowest_process``, the one that works longest, its ``slowest_milliseconds/PART``, and
        ``usual_milliseconds/PART``, the median of all.
    """
    own = torch.tensor([seconds[part] for part in PARTS], dtype=torch.float64) * (1000.0 / steps)
    found = _by_part(OWN, own)
    if process_count() > 1:
        found |= _compared(gather_rows(own[None]))
    return found


def _compared(everyone: Tensor) -> dict[str, float]:
    """Of milliseconds (processes, parts): those of the slowest process, and the median."""
    work = [index for index, part in enumerate(PARTS) if part not in NOT_WORK]
    slowest = int(everyone[:, work].sum(dim=1).argmax())
    return {
        SLOWEST_PROCESS: slowest,
        **_by_part(SLOWEST, everyone[slowest]),
        **_by_part(USUAL, everyone.median(dim=0).values),
    }


def _by_part(prefix: str, milliseconds: Tensor) -> dict[str, float]:
    """Parts that took no time at all are left out."""
    parts = zip(PARTS, milliseconds.tolist(), strict=True)
    return {f"{prefix}{part}": round(value, 3) for part, value in parts if value > 0}


Milliseconds = Mapping[str, float]
"""Of a step, by part; parts that take no time may be missing."""


class Times(NamedTuple):
    """Where the time of some steps went, on average.

    Attributes:
        own: of process 0.
        slowest: of the process that works longest; None with one process.
        usual: the median over all processes; None with one process.
        slowest_process: its number.
    """

    own: Milliseconds
    slowest: Milliseconds | None = None
    usual: Milliseconds | None = None
    slowest_process: int | None = None


def times_of(
    metrics: Sequence[Mapping[str, Any]], *, last_lines: int | None = None
) -> Times | None:
    """The mean over lines of metrics, each weighed by its steps; None where no line has times.

    The first step is left out if there are others: in it kernels are compiled.

    Args:
        metrics: the lines of ``metrics.jsonl``, oldest first.
        last_lines: only so many; all when not given.
    """
    pairs = pairwise([{"step": 0}, *metrics])
    timed = [
        (line, line["step"] - before["step"]) for before, line in pairs if f"{OWN}other" in line
    ]
    if len(timed) > 1 and timed[0][0]["step"] == 1:
        timed = timed[1:]
    if not timed:
        return None
    timed = timed[-(last_lines or len(timed)) :]
    own, last = _mean(timed, OWN), timed[-1][0]
    if SLOWEST_PROCESS not in last:
        return Times(own)
    slowest_process = int(last[SLOWEST_PROCESS])
    # A run may have gone on with more processes: lines of one alone have no median.
    together = [one for one in timed if SLOWEST_PROCESS in one[0]]
    same = [one for one in together if one[0][SLOWEST_PROCESS] == slowest_process]
    return Times(own, _mean(same, SLOWEST), _mean(together, USUAL), slowest_process)


def time_in_words(times: Times) -> str:
    """A sentence: how long a step takes, and what the most of it is."""
    whole = sum(times.own.values())
    largest = sorted(times.own.items(), key=lambda item: -item[1])[:3]
    shares = [f"{value / whole:.0%} {named(part)}" for part, value in largest]
    return f"A step took {whole:,.3g} ms on average: {', '.join(shares)}."


def named(part: str) -> str:
    """A part as people read it."""
    return part.replace("_", " ")


def _mean(timed: Sequence[tuple[Mapping[str, Any], int]], prefix: str) -> dict[str, float]:
    steps = sum(count for _, count in timed)
    sums = {
        part: sum(line.get(f"{prefix}{part}", 0.0) * count for line, count in timed)
        for part in PARTS
    }
    return {part: total / steps for part, total in sums.items() if total > 0}


WARM_UP_STEPS: Final = 5
"""Not traced, at a start or resumption: in them kernels are compiled and memory is allocated."""


@contextmanager
def profiled(
    stopwatch: Stopwatch, config: ProbeConfig, folder: RunFolder
) -> Iterator[Callable[[], None]]:
    """Traces some steps of this process, if the config asks for it, for Perfetto or Chrome.

    A run that ends earlier leaves the trace of the steps it made.

    Args:
        stopwatch: the trace names its parts.
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
    # The profiler is slow at first: it is on in the last warm-up step already.
    when = schedule(wait=WARM_UP_STEPS - 1, warmup=1, active=config.profile_steps, repeat=1)
    stopwatch.traced = True
    try:
        with profile(activities=activities, schedule=when, on_trace_ready=write) as profiler:
            yield profiler.step
    finally:
        stopwatch.traced = False
