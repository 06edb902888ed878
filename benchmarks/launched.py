"""A run under `diptych launch`, watched from outside as a scheduler would, and disturbed.

The campaign of benchmarks/survival.py and the tests of survival share it.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

LONGEST_SECONDS = 900.0
FLAGS = (
    *("--recipe", "moco_v1", "--scale", "tiny", "--encoder.width", "4"),
    *("--encoder.stage-blocks", "1", "--head.output-features", "8", "--views.side-pixels", "16"),
    *("--norm.images-per-group", "4", "--method.dictionary.queue.size", "50"),
    *("--batch-size", "16", "--threads", "2", "--no-report", "--probe.images", "32"),
    *("--probe.health-every-epochs", "1000", "--probe.log-every-steps", "1"),
    *("--checkpoint.every-seconds", "0"),  # and so in each step, which also keeps them slow
)


class Job:
    """Processes of one run.

    Args:
        images: to learn from.
        out: the run folder.
        options: of torchrun.
        flags: of pretrain, beside `FLAGS`.
        prefix: words before the command.
        environment: beside this process's.
    """

    def __init__(
        self,
        images: Path,
        out: Path,
        *,
        options: Sequence[str] = ("--nproc-per-node", "2"),
        flags: Sequence[str] = (),
        prefix: Sequence[str] = (),
        environment: dict[str, str] | None = None,
    ) -> None:
        self.out = out
        self.log = out.with_name(f"{out.name}-{time.monotonic_ns()}.log")
        command = [*prefix, sys.executable, "-m", "diptych", "launch", *options, "--", "pretrain"]
        network = {"GLOO_SOCKET_IFNAME": "lo", **(environment or {})}
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [*command, str(images), "--out", str(out), *FLAGS, *flags],
                env={**os.environ, **network},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def kill(self) -> None:
        """Ends all processes at once, as a loss of power would."""
        if self.process.poll() is None:  # else its number may be another's by now
            for pid in [*self.workers().values(), self.process.pid]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def workers(self) -> dict[int, int]:
        """Process ids by rank."""
        found = {}
        for pid in child_processes(self.process.pid):
            rank = _environment(pid).get("RANK")
            if rank is not None:
                found[int(rank)] = pid
        return found

    def step(self) -> int:
        """The last step that the run folder tells of."""
        return last_step(self.out)

    def until(self, happens: Callable[[], bool], what: str) -> None:
        """Waits for something that happens while the job goes on."""
        deadline = time.monotonic() + LONGEST_SECONDS
        while not happens():
            assert self.process.poll() is None, f"ended before {what}:\n{self.said()}"
            assert time.monotonic() < deadline, f"{what} never came:\n{self.said()}"
            time.sleep(0.01)

    def until_step(self, step: int) -> None:
        """Waits until a step is done."""
        self.until(lambda: self.step() >= step, f"step {step}")

    def wait(self, seconds: float = LONGEST_SECONDS) -> int:
        """Its exit code."""
        return self.process.wait(timeout=seconds)

    def said(self) -> str:
        """All that was printed."""
        return self.log.read_text()


def last_step(out: Path) -> int:
    """The last step that a run folder tells of; 0 where none is done."""
    try:
        lines = (out / "metrics.jsonl").read_text().splitlines()
        return int(json.loads(lines[-1])["step"])
    except (FileNotFoundError, IndexError, json.JSONDecodeError):
        return 0


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def child_processes(pid: int) -> list[int]:
    """Ids of what a process has started and what has not ended; none where it is gone."""
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _environment(pid: int) -> dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/environ").read_bytes().decode()
    except (FileNotFoundError, ProcessLookupError):
        return {}
    return dict(line.partition("=")[::2] for line in text.split("\0") if "=" in line)
