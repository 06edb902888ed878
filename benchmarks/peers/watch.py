"""Runs a command and watches it: how long it takes, and how much memory all its processes hold."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

SAMPLE_SECONDS: Final = 0.25
MEGABYTE: Final = 1e6


class Watched(NamedTuple):
    """What a command took.

    Attributes:
        seconds: from its start to its end.
        megabytes: highest sum over its processes of proportional resident memory (PSS), in which a
            page that several of them share counts once. 0 where it was not asked for.
        begun: its start, in seconds since the epoch, as times of files are.
    """

    seconds: float
    megabytes: float
    begun: float


def watch(
    command: Sequence[str], variables: Mapping[str, str], log: Path, *, memory: bool = False
) -> Watched:
    """Runs a command to its end.

    Raises:
        RuntimeError: it failed; the end of what it said is in the message.
    """
    begun_at, begun = time.time(), time.perf_counter()
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=dict(variables), stdout=file, stderr=file)
        peak = _Peak(process.pid) if memory else None
        try:
            code = process.wait()
        finally:  # where the harness is stopped, its command and workers must not go on
            for pid in tree(process.pid) if process.poll() is None else ():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        seconds = time.perf_counter() - begun
    megabytes = peak.stop() if peak is not None else 0.0
    if code:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
        raise RuntimeError(f"{' '.join(command[:4])} ... ended with {code}:\n{end}")
    return Watched(seconds, megabytes, begun_at)


class _Peak:
    """Adds up the memory of a process and its children, several times a second."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most = pid, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            self._most = max(self._most, sum(_pss_bytes(pid) for pid in tree(self._pid)))

    def stop(self) -> float:
        """The highest sum, in megabytes."""
        self._ended.set()
        self._thread.join()
        return self._most / MEGABYTE


def tree(pid: int) -> list[int]:
    """A process and all that descend from it, as far as they are still there."""
    found, waiting = list[int](), [pid]
    while waiting:
        one = waiting.pop()
        found.append(one)
        for listing in Path(f"/proc/{one}/task").glob("*/children"):
            try:
                waiting += map(int, listing.read_text().split())
            except (OSError, ValueError):  # it has ended meanwhile
                continue
    return found


def _pss_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
