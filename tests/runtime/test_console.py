"""What is printed where nobody reads any more ends no work, and is no error at the end."""

import errno
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from diptych.checkpoints.save_and_load import list_checkpoints
from diptych.runtime.console import SafeStream, safe_stream

Begun = Callable[..., "subprocess.Popen[bytes]"]
Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]


class Failing(StringIO):
    """Fails as told."""

    error: Exception | None = None

    def write(self, text: str) -> int:
        if self.error is not None:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO, errno.EBADF, errno.ESTALE])
def test_a_stream_that_is_gone_is_not_asked_again(number: int) -> None:
    stream = Failing()
    asked = SafeStream(stream)
    stream.error = OSError(number, os.strerror(number))
    assert asked.write("lost") == 4
    stream.error = None
    print("more", file=asked)
    asked.flush()
    asked.finish()
    assert stream.getvalue() == ""


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EAGAIN])
def test_a_disk_that_is_full_for_a_while(number: int) -> None:
    stream = Failing()
    asked = SafeStream(stream)
    stream.error = OSError(number, os.strerror(number))
    print("lost", file=asked)
    stream.error = None
    print("kept", file=asked)
    assert stream.getvalue() == "kept\n"


def test_a_stream_that_was_closed_and_none() -> None:
    stream = StringIO()
    asked = SafeStream(stream)
    stream.close()
    print("lost", file=asked)
    asked.flush()
    assert safe_stream(None) is None


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # that of the locale C.UTF-8
def test_a_name_that_is_no_text_is_escaped(errors: str, tmp_path: Path) -> None:
    with open(tmp_path / "log", "w", encoding="ascii", errors=errors) as file:
        print("caf\udce9 \u00e9", file=SafeStream(file))
    assert (tmp_path / "log").read_text() == "caf\\xe9 \\xe9\n"


@pytest.fixture
def command(tmp_path: Path, stripes: Stripes) -> list[str]:
    pixels, _ = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels)
    return [
        *(sys.executable, "-m", "diptych", "pretrain", str(tmp_path / "images.npz")),
        *("--recipe", "simclr", "--batch-size", "16", "--encoder.width", "4", "--threads", "1"),
        *("--views.side-pixels", "8", "--probe.images", "16", "--no-report", "--out"),
        str(tmp_path / "run"),
    ]


FEW, MANY = ("--epochs", "3"), ("--epochs", "100000")


def wait_for_lines(run: Path, process: subprocess.Popen[bytes], count: int = 2) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, process.stderr and process.stderr.read()
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError("no lines of metrics came")


# That a hang-up is ignored is inherited: of nohup, where it started the tests.
ENDED_BY_HANG_UP = """
import os, signal, sys
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])
"""
# One of its own, which sends it SIGHUP when it goes away.
ON_ITS_TERMINAL = f"""
import fcntl, os, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
{ENDED_BY_HANG_UP}"""


@pytest.fixture
def begun() -> Iterator[Begun]:
    """Starts a command, by a program that runs it in its own place; none outlives the test."""
    processes = list[subprocess.Popen[bytes]]()

    def begin(
        command: list[str], by: str = ENDED_BY_HANG_UP, **more: Any
    ) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([sys.executable, "-c", by, *command], **more))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "which",
    [
        "both",
        pytest.param("stdout", marks=pytest.mark.slow),
        pytest.param("stderr", marks=pytest.mark.slow),
    ],
)
def test_a_pipe_that_is_closed_does_not_end_a_run(
    which: str, command: list[str], begun: Begun, tmp_path: Path
) -> None:
    """As `| head -1` closes it; what a pipe was is seen at the first line that comes later."""
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = begun([*command, *FEW], **pipes)
    for name in ("stdout", "stderr"):
        if which in (name, "both"):
            getattr(process, name).close()
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "encoder.safetensors").exists()
    if process.stderr is not None and not process.stderr.closed:
        assert process.stderr.read() == b""
        process.stderr.close()
    if process.stdout is not None:
        process.stdout.close()


@pytest.mark.slow
def test_standard_files_that_are_not_there(command: list[str], tmp_path: Path) -> None:
    shell = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *command, *FEW]
    assert subprocess.run(shell, timeout=120).returncode == 0
    newest = list_checkpoints(tmp_path / "run" / "checkpoints")[0]
    assert newest.name == "step-000000048"


@pytest.mark.slow
def test_a_log_on_a_full_disk_does_not_end_a_run(command: list[str], tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        assert (
            subprocess.run([*command, *FEW], stdout=full, stderr=full, timeout=120).returncode == 0
        )
    assert (tmp_path / "run" / "encoder.safetensors").exists()


def on_a_terminal(
    begun: Begun, command: list[str], by: str = ENDED_BY_HANG_UP
) -> tuple[subprocess.Popen[bytes], int]:
    ours, theirs = pty.openpty()
    process = begun(command, by, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    os.set_blocking(ours, False)
    return process, ours


def read_until_lines(run: Path, process: subprocess.Popen[bytes], terminal: int) -> None:
    """The terminal must be read, or the process waits for it."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None
        try:
            os.read(terminal, 65536)
        except BlockingIOError:
            time.sleep(0.02)
        metrics = run / "metrics.jsonl"
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= 2:
            return
    raise AssertionError("no lines of metrics came")


@pytest.mark.slow
def test_a_terminal_that_goes_away_leaves_a_saved_run(
    command: list[str], begun: Begun, tmp_path: Path
) -> None:
    """In the middle of the bar that is drawn there; the run is told by SIGHUP."""
    process, terminal = on_a_terminal(begun, [*command, *MANY], ON_ITS_TERMINAL)
    read_until_lines(tmp_path / "run", process, terminal)
    os.close(terminal)
    assert process.wait(60) == 128 + signal.SIGHUP
    assert list_checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_a_terminal_that_fails_and_says_nothing(
    command: list[str], begun: Begun, tmp_path: Path
) -> None:
    process, terminal = on_a_terminal(begun, [*command, "--epochs", "30"])
    read_until_lines(tmp_path / "run", process, terminal)
    os.close(terminal)
    assert process.wait(120) == 0
    assert (tmp_path / "run" / "encoder.safetensors").exists()


@pytest.mark.slow
def test_hang_up_saves_and_no_hang_up_is_left(
    command: list[str], begun: Begun, tmp_path: Path
) -> None:
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = begun([*command, *MANY], **quiet)
    wait_for_lines(tmp_path / "run", process)
    process.send_signal(signal.SIGHUP)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 129
    assert b"SIGHUP came; the run was saved after step" in said
    ignoring = begun(["nohup", *command, *MANY, "--resume"], **quiet, stdin=subprocess.DEVNULL)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    wait_for_lines(tmp_path / "run", ignoring, lines + 2)
    ignoring.send_signal(signal.SIGHUP)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    wait_for_lines(tmp_path / "run", ignoring, lines + 2)
    ignoring.send_signal(signal.SIGTERM)
    ignoring.communicate(timeout=60)
    assert ignoring.returncode == 143


@pytest.mark.slow
def test_several_processes_save_at_a_hang_up(
    command: list[str], begun: Begun, tmp_path: Path
) -> None:
    interpreter, verb = command[:3], command[3:]
    launched = [*interpreter, "launch", "--nproc-per-node", "2", "--", *verb, *MANY]
    process = begun(launched, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.close()  # of all of them
    wait_for_lines(tmp_path / "run", process)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 129
    assert list_checkpoints(tmp_path / "run" / "checkpoints")


@pytest.mark.slow
def test_several_processes_ignore_a_hang_up_that_is_ignored(
    command: list[str], begun: Begun, tmp_path: Path
) -> None:
    interpreter, verb = command[:3], command[3:]
    launched = ["nohup", *interpreter, "launch", "--nproc-per-node", "2", "--", *verb, *MANY]
    nowhere: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    process = begun(launched, **nowhere)
    wait_for_lines(tmp_path / "run", process)
    process.send_signal(signal.SIGHUP)
    lines = (tmp_path / "run" / "metrics.jsonl").read_bytes().count(b"\n")
    wait_for_lines(tmp_path / "run", process, lines + 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
