"""Metrics as the bytes of a TensorBoard event file.

TensorBoard's own writer has a thread that ends with the first error of the disk, and names its
files by the clock alone.
"""

import io
import os
import re
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter


def new_events_path(folder: Path) -> Path:
    """A path for a new event file, whose name sorts after those that are there.

    TensorBoard reads them in the order of their names, which begin with a time. A clock that went
    back must not put this sitting before the last one.
    """
    found = [re.match(r"events\.out\.tfevents\.(\d+)\.", path.name) for path in folder.glob("*")]
    newest = max((int(one[1]) for one in found if one is not None), default=0)
    number = max(int(time.time()), newest + 1)
    name = f"events.out.tfevents.{number:010d}.{socket.gethostname()}.{os.getpid()}"
    return folder / name


def first_events(resumed_step: int) -> bytes:
    """What an event file begins with: a sitting, which drops what comes after its first step."""
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
    written = io.BytesIO()
    writer = RecordWriter(written)
    for event in events:
        writer.write(event.SerializeToString())
    return written.getvalue()
