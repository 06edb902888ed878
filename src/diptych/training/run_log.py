"""Metrics of a run: one JSON object a line, and the same as TensorBoard events."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from diptych.run_folder import RunFolder, write_aside


class RunLog:
    """Appends metrics to a run folder; when a run goes on, what it will repeat is dropped.

    Args:
        folder: of the run.
        resumed_step: steps done when this sitting begins; lines of later steps are removed.
    """

    def __init__(self, folder: RunFolder, *, resumed_step: int) -> None:
        kept = [line for line in read_metrics(folder.metrics) if line["step"] <= resumed_step]
        text = "".join(json.dumps(line) + "\n" for line in kept)
        write_aside(folder.metrics, text.encode())
        self._file = open(folder.metrics, "a", encoding="utf-8")  # noqa: SIM115
        self._events = SummaryWriter(str(folder.tensorboard), purge_step=resumed_step + 1)

    def write(self, metrics: Mapping[str, float | int]) -> None:
        """Writes one line; it must have a ``step``."""
        self._file.write(json.dumps(metrics) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            if name not in ("step", "seconds"):
                self._events.add_scalar(name, value, metrics["step"])

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()
        self._events.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return [line for line in lines if isinstance(line, dict) and "step" in line]
