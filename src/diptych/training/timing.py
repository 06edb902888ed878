"""What a line of metrics says of time: milliseconds a step by part, of one process and of all.

All lines of a process together give the whole of its training, but for what comes after the last.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from diptych.distributed import gather_rows, process_count
from diptych.evaluation.times import NOT_WORK, OWN, SLOWEST, SLOWEST_PROCESS, USUAL
from diptych.stopwatch import PARTS


def time_figures(seconds: Mapping[str, float], steps: int) -> dict[str, float]:
    """What a line of metrics says of the time since the line before.

    Of several processes every one calls it, and each is told what all of them did.

    Args:
        seconds: of this process, by part.
        steps: in which they passed.

    Returns:
        ``milliseconds/PART``, the mean over the steps. With several processes, where these are of
        this one, also ``slowest_process``, the one whose own work takes longest, its
        ``slowest_milliseconds/PART``, and ``usual_milliseconds/PART``, the median of all.
    """
    own = torch.tensor([seconds[part] for part in PARTS], dtype=torch.float64) * (1000.0 / steps)
    figures = _named(OWN, own)
    if process_count() > 1:
        figures |= _compared(gather_rows(own[None]))
    return figures


def _compared(everyone: Tensor) -> dict[str, float]:
    """Of milliseconds (processes, parts): those of the slowest process, and the median."""
    work = [index for index, part in enumerate(PARTS) if part not in NOT_WORK]
    slowest = int(everyone[:, work].sum(dim=1).argmax())
    return {
        SLOWEST_PROCESS: slowest,
        **_named(SLOWEST, everyone[slowest]),
        **_named(USUAL, everyone.median(dim=0).values),
    }


def _named(prefix: str, milliseconds: Tensor) -> dict[str, float]:
    """Parts that took no time at all are left out."""
    parts = zip(PARTS, milliseconds.tolist(), strict=True)
    return {f"{prefix}{part}": round(value, 3) for part, value in parts if value > 0}
