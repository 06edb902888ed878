"""Metrics of a run: one JSON object a line, and the same as TensorBoard events.

TensorBoard's own writer has a thread that ends with the first error of the disk, and names its
files by the clock alone, so the bytes of its event files are made here.
"""

import io
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary

from diptych.errors import NotSaved
from diptych.logging.trackers import Tracking
from diptych.runs.atomic import atomic_write
from diptych.runs.folder import RunFolder


@dataclass(frozen=True)
class TaskAccuracy:
    """How the accuracy of a method at its training task is worded.

    ``chance_NAME`` beside it in a line of metrics is what guessing reaches.

    Attributes:
        name: of the metric.
        short: before a percentage, where there is little room.
        does: between "it" and "53% of its views".
        choices: the metric that says how many there are to choose among; empty for none.
        sentence: of the share at the end of a run.
        share: what it is a share of; empty where that is not known.
    """

    name: str
    short: str
    does: str
    choices: str
    sentence: str
    share: str = ""


PRETEXT_ACCURACY: Final = TaskAccuracy(
    "pretext_accuracy",
    short="pretext acc",
    does="finds the key of",
    choices="candidates",
    sentence="the pretext accuracy is {share:.0%}: so many queries match their key.",
    share="the share of queries whose own key has the largest logit of all",
)
TEACHER_AGREEMENT: Final = TaskAccuracy(
    "teacher_agreement",
    short="teacher agreement",
    does="names the teacher's class of",
    choices="classes",
    sentence="on {share:.0%} of the views student and teacher name the same class.",
    share="the share of views on which student and teacher name the same class",
)


RETRIEVAL_ACCURACY: Final = TaskAccuracy(
    "retrieval_accuracy",
    short="retrieval acc",
    does="finds the other view of",
    choices="candidates",
    sentence="the retrieval accuracy is {share:.0%}: of so many images the other view is nearest.",
    share="the share of images whose other view is nearest; the loss does not ask for it",
)
"""Of methods without negatives, which are not trained for it; see ``methods.siamese``."""


def task_accuracy(line: Mapping[str, Any]) -> TaskAccuracy | None:
    """The accuracy at the training task in a line of metrics; None where there is none.

    Of a method that is not known here it is the first metric with a level of chance.
    """
    for known in (PRETEXT_ACCURACY, TEACHER_AGREEMENT, RETRIEVAL_ACCURACY):
        if known.name in line:
            return known
    names = (key.removeprefix("chance_") for key in line if key.startswith("chance_"))
    found = next((name for name in names if name != "loss" and name in line), None)
    if found is None:
        return None
    words = found.replace("_", " ")
    return TaskAccuracy(found, words, "solves its task for", "", f"{words} is {{share:.0%}}.")


def chance_of(line: Mapping[str, Any], name: str) -> float:
    """What guessing reaches in a metric of a line."""
    return float(line[f"chance_{name}"])


def has_choice(line: Mapping[str, Any]) -> bool:
    """Whether the training task of a line of metrics could be missed.

    At the first step of an empty queue, and in a batch of one class, queries have positive keys
    only.
    """
    task = task_accuracy(line)
    return task is not None and chance_of(line, task.name) < 1.0


class RunLog:
    """Appends metrics to a run folder; when a run goes on, what it will repeat is dropped.

    Lines that cannot be written are kept and written with the next. Where the files vanish, they
    are made anew with all lines of the run.

    Args:
        folder: of the run.
        resumed_step: steps done when this process begins; lines of later steps are removed.
        say: called with a sentence when lines cannot be written, and when they can again.

    Raises:
        OSError: the files cannot be begun.

    Attributes:
        lines: of the run so far.
        tracking: gets a copy of each new line, where it is set.
    """

    def __init__(
        self, folder: RunFolder, *, resumed_step: int, say: Callable[[str], None] = lambda _: None
    ) -> None:
        kept = [line for line in read_metrics(folder.metrics) if line["step"] <= resumed_step]
        self.lines: list[dict[str, Any]] = kept
        self._resumed_step, self._say, self._folder = resumed_step, say, folder
        self.tracking: Tracking | None = None
        self._in_trouble = False
        atomic_write(folder.metrics, self._all_lines())
        self._metrics = AppendedFile(folder.metrics, self._all_lines)
        self._events = AppendedFile(new_events_path(folder.tensorboard), self._all_events)

    def write(self, line: Mapping[str, float | int]) -> None:
        """Writes one line, or keeps it; it must have a ``step``."""
        self.lines.append(dict(line))
        if self.tracking is not None:
            self.tracking.write(line)
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
        if self.tracking is not None:
            self.tracking.finish()

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
        """Of this process; after a vanished folder that is all there is."""
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
    """Appends to a file; what cannot be written is kept and written with what comes next.

    Args:
        path: of the file, which is made if it is not there, with its folder.
        whole: all bytes up to now, for when the file was there and has vanished.
    """

    def __init__(self, path: Path, whole: Callable[[], bytes]) -> None:
        self._path, self._whole = path, whole
        self._file: io.FileIO | None = None
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
                # A write without a buffer may take a part only, as where a disk fills up.
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

    def _opened(self) -> io.FileIO:
        if self._file is not None and not self._is_there(self._file):
            self.close()
            self._waiting = self._whole()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            if not self._path.exists():
                # In the place of what waits, and not before it: whole has all of that already.
                self._waiting = self._whole()
            # Not buffered: what was written is then known to the byte.
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115
        return self._file

    def _is_there(self, file: io.FileIO) -> bool:
        """Whether the path still leads to the open file."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(file.fileno()))
        except FileNotFoundError:
            return False


def new_events_path(folder: Path) -> Path:
    """A path for a new event file, with a name that sorts after those that are there.

    TensorBoard reads them in the order of their names, which begin with a time. A clock that went
    back must not put a later file before an earlier one.
    """
    found = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("*")]
    newest = max((int(one[1]) for one in found if one is not None), default=0)
    number = max(int(time.time()), newest + 1)
    name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
    return folder / name


def first_events(resumed_step: int) -> bytes:
    """What an event file begins with: a session, which replaces what was written of its steps."""
    step = resumed_step + 1
    start = SessionLog(status=SessionLog.START)
    return _records(
        [
            Event(wall_time=time.time(), file_version="brain.Event:2"),
            Event(wall_time=time.time(), step=step, session_log=start),
        ]
    )


def line_events(line: Mapping[str, float | int]) -> bytes:
    """The figures of a line of metrics, as events of its step."""
    now = time.time()  # shown as the time of day; nothing is ordered by it
    return _records(
        Event(wall_time=now, step=int(line["step"]), summary=_scalar(name, value))
        for name, value in line.items()
        if name not in ("step", "seconds")
    )


def _scalar(name: str, value: float) -> Summary:
    return Summary(value=[Summary.Value(tag=name, simple_value=float(value))])


def _records(events: Iterable[Event]) -> bytes:
    """Events as TensorBoard reads them."""
    # Only now: importing it takes as long as the first steps of a small network.
    from tensorboard.summary.writer.record_writer import RecordWriter

    written = io.BytesIO()
    writer = RecordWriter(written)
    for event in events:
        writer.write(event.SerializeToString())
    return written.getvalue()
