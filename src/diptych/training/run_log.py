"""Metrics of a run: one JSON object a line, and the same as TensorBoard events."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from diptych.errors import NotSaved
from diptych.run_folder import RunFolder, write_aside
from diptych.training.appended import AppendedFile
from diptych.training.events import first_events, line_events, new_events_path


class RunLog:
    """Appends metrics to a run folder; when a run goes on, what it will repeat is dropped.

    Lines that cannot be written are kept and written with the next. Where the files vanish, they
    are made anew with all lines of the run.

    Args:
        folder: of the run.
        resumed_step: steps done when this sitting begins; lines of later steps are removed.
        say: told when lines cannot be written, and when they can again.

    Raises:
        OSError: the files cannot be begun.

    Attributes:
        lines: of the run so far.
    """

    def __init__(
        self, folder: RunFolder, *, resumed_step: int, say: Callable[[str], None] = lambda _: None
    ) -> None:
        kept = [line for line in read_metrics(folder.metrics) if line["step"] <= resumed_step]
        self.lines: list[dict[str, Any]] = kept
        self._resumed_step, self._say, self._folder = resumed_step, say, folder
        self._in_trouble = False
        write_aside(folder.metrics, self._all_lines())
        self._metrics = AppendedFile(folder.metrics, self._all_lines)
        self._events = AppendedFile(new_events_path(folder.tensorboard), self._all_events)
        self._events.add(b"")  # begins the file

    def write(self, line: Mapping[str, float | int]) -> None:
        """Writes one line, or keeps it; it must have a ``step``."""
        self.lines.append(dict(line))
        trouble = self._add(_as_json(line), line_events(line))
        if trouble is not None and not self._in_trouble:
            self._say(
                f"Metrics cannot be written to {self._folder.path}: {trouble}. Lines are kept in "
                "memory and tried again with each that comes. Training goes on."
            )
        elif trouble is None and self._in_trouble:
            self._say("Metrics are written again, the lines that were kept first.")
        self._in_trouble = trouble is not None

    def finish(self) -> None:
        """Writes what is kept.

        Raises:
            NotSaved: it cannot be written.
        """
        trouble = self._add(b"", b"")
        if self._metrics.lines_waiting:
            raise NotSaved(
                f"the last {self._metrics.lines_waiting} lines of metrics cannot be written to "
                f"{self._folder.path} ({trouble}) and are lost. The checkpoint after the last "
                "step is there. Mend that before you go on with --resume."
            )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._add(b"", b"")  # a last try, also where the run failed
        self._metrics.close()
        self._events.close()

    def _add(self, metrics: bytes, events: bytes) -> str | None:
        """Adds to both files; what was in the way, if anything."""
        trouble = None
        for file, data in ((self._metrics, metrics), (self._events, events)):
            try:
                file.add(data)
            except OSError as error:
                trouble = error.strerror or str(error)
        return trouble

    def _all_lines(self) -> bytes:
        return b"".join(map(_as_json, self.lines))

    def _all_events(self) -> bytes:
        """Of this sitting; after a vanished folder that is all there is."""
        new = (line for line in self.lines if line["step"] > self._resumed_step)
        return first_events(self._resumed_step) + b"".join(map(line_events, new))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; a last line cut short by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            lines.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return [line for line in lines if isinstance(line, dict) and type(line.get("step")) is int]


def _as_json(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line) + "\n").encode()
