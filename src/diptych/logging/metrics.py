"""Metrics of a run: one JSON object a line, and the same as TensorBoard events."""

import json
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from diptych.errors import NotSaved
from diptych.logging.events import first_events, line_events, new_events_path
from diptych.logging.symptoms import NOT_WORK, OWN, SLOWEST, SLOWEST_PROCESS, USUAL
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder
from diptych.runtime.distributed import gather_rows, process_count
from diptych.runtime.stopwatch import PARTS


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
        atomic_write(folder.metrics, self._all_lines())
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


class AppendedFile:
    """Adds bytes to the end of a file; what cannot be written is kept and written with the next.

    Args:
        path: of the file, which is made if it is not there, with its folder.
        whole: all bytes up to now, for when the file was there and has vanished.
    """

    def __init__(self, path: Path, whole: Callable[[], bytes]) -> None:
        self._path, self._whole = path, whole
        self._file: FileIO | None = None
        self._waiting = b""

    def add(self, data: bytes) -> None:
        """Adds bytes after all that wait.

        Raises:
            OSError: not all could be written; the rest waits.
        """
        self._waiting += data
        try:
            file = self._opened()
            while self._waiting:
                self._waiting = self._waiting[file.write(self._waiting) :]
        except OSError:
            self.close()  # a handle may have gone stale with its folder
            raise

    @property
    def lines_waiting(self) -> int:
        """Ends of lines among what could not be written."""
        return self._waiting.count(b"\n")

    def close(self) -> None:
        """Closes the file; it is opened again when more comes."""
        if self._file is not None:
            with suppress(OSError):
                self._file.close()
            self._file = None

    def _opened(self) -> FileIO:
        if self._file is not None and not self._is_there(self._file):
            self.close()
            self._waiting = self._whole()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                self._waiting = self._whole()
            # Not buffered: what was written is then known to the byte.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        return self._file

    def _is_there(self, file: FileIO) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


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
