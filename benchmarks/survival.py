"""A run of two processes is broken by random faults: how many cost it no more than some steps?

A job under `diptych launch` trains on tar shards. At random steps one of these is done to it:

    killed process   SIGKILL of a worker, or of the launcher
    SIGTERM          to the launcher, as a scheduler does
    disk full        the small file system of the run folder is filled up, and emptied again later
    damaged newest   all processes are killed, and the newest checkpoint is cut short
    damaged shard    the job is stopped, a shard is cut short or zeros are written into it; a start
                     must refuse it and leave the run as it is; then the shard is put right

Whatever ends the job, it is started again, as a scheduler would. A fault counts as recovered when
the run has then done more steps than before it. At the end weights, optimizer and queue must have
the bits of a run that was left alone. Fifty faults take about a quarter of an hour on two idle
cores.
"""

import hashlib
import io
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from diptych.errors import DamagedCheckpoint
from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from launched import Job, is_alive, last_step
from measuring import Figure, add_arguments, publish

FAULTS, QUICK_FAULTS = 50, 5
STEPS_PER_FAULT = 24  # of the run; a fault comes in the first half of them
STEPS_PER_EPOCH = 8
SHARDS, IMAGES = 2, 128
STARTS = 4  # of one job until it trains on
PATIENCE_SECONDS = 900.0  # of a machine that does much else
DISK_MEGABYTES = 24
FLAGS = ("--checkpoint.every-seconds", "0.3")
RESUMED = re.compile(r"Going on from the checkpoint\s+after step (\d+)")


@dataclass
class Outcome:
    """What came of one fault."""

    kind: str
    recovered: bool
    repeated: int
    starts: int
    seconds: float


@dataclass
class Campaign:
    """A run, the job that trains it now, and what may be done to both."""

    shards: Path
    out: Path
    epochs: int
    chance: random.Random
    jobs: list[Job] = field(default_factory=list)
    starts: int = 0

    @property
    def job(self) -> Job:
        """The job that was started last."""
        return self.jobs[-1]

    @property
    def runs(self) -> bool:
        """Whether the job has not ended."""
        return self.job.process.poll() is None

    @property
    def ended(self) -> bool:
        """Whether the run is complete."""
        return (self.out / "head.safetensors").exists() and self.job.process.poll() == 0

    def start(self, *, restarts: int = 3) -> None:
        """Starts the job, as a scheduler does once nothing is left of the last one."""
        options = ("--nproc-per-node", "2", "--max-restarts", str(restarts))
        flags = ("--epochs", str(self.epochs), *FLAGS)
        self.jobs.append(Job(self.shards, self.out, options=options, flags=flags))
        self.starts += 1

    def resumed(self) -> list[int]:
        """The steps from which the run went on, in all jobs so far."""
        return [int(step) for job in self.jobs for step in RESUMED.findall(job.said())]

    def until(self, happens: Callable[[], bool]) -> bool:
        """Waits for something; False where it never happens."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not happens():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def trains_on(self, step: int) -> bool:
        """Whether the run comes beyond a step, or to its end; started anew wherever a job ends."""
        for start in range(STARTS + 1):
            self.until(lambda: last_step(self.out) > step or not self.runs)
            if self.ended:
                return True
            if self.runs and last_step(self.out) > step:
                return True
            if self.runs or start == STARTS:
                break
            self.start()
        return False

    def kill_process(self) -> int:
        """SIGKILL of one of all processes."""
        workers = self.job.workers()
        launcher = self.job.process.pid
        victim = self.chance.choice([launcher, *sorted(workers.values())])
        with suppress(ProcessLookupError):
            os.kill(victim, 9)
        if victim == launcher:
            self.job.process.wait()
            self.until(lambda: not any(map(is_alive, workers.values())))
            return last_step(self.out)
        before = len(self.resumed())
        self.until(lambda: not is_alive(victim))
        time.sleep(0.5)  # the others may end the step that they are in
        reached = last_step(self.out)
        self.until(lambda: len(self.resumed()) > before or not self.runs)
        return reached

    def terminate(self) -> int:
        """SIGTERM to the job."""
        self.job.process.terminate()
        self.job.process.wait(PATIENCE_SECONDS)
        return last_step(self.out)

    def fill_disk(self) -> int:
        """No byte is left until the job has ended, or has shown that it can go on."""
        reached, ballast = last_step(self.out), self.out.parent / "ballast"
        said = len(self.job.said())
        with suppress(OSError), open(ballast, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        self.until(
            lambda: (
                not self.runs
                or last_step(self.out) > reached + STEPS_PER_FAULT // 2
                or "No space left" in self.job.said()[said:]
            )
        )
        reached = max(reached, last_step(self.out))
        time.sleep(1.0)  # so that more than the first write fails
        ballast.unlink()
        return max(reached, last_step(self.out))

    def damage_checkpoint(self) -> int:
        """A loss of power that takes a part of the newest checkpoint along."""
        self.until(self._has_two_good_checkpoints)
        self.job.kill()
        reached = last_step(self.out)
        tensors = list_checkpoints(self.out / "checkpoints")[0] / "tensors.safetensors"
        os.truncate(tensors, self.chance.randrange(tensors.stat().st_size))
        return reached

    def damage_shard(self) -> int:
        """A start on a shard that is not what it was must refuse, and change nothing."""
        self.job.kill()
        reached = last_step(self.out)
        shard = self.chance.choice(sorted(self.shards.glob("*.tar")))
        whole = shard.read_bytes()
        shard.write_bytes(_damaged(whole, self.chance))
        checkpoints = list_checkpoints(self.out / "checkpoints")
        self.start(restarts=0)
        refused = self.job.process.wait(PATIENCE_SECONDS) != 0
        shard.write_bytes(whole)
        if not refused or list_checkpoints(self.out / "checkpoints") != checkpoints:
            raise RuntimeError(f"a damaged shard was not refused:\n{self.job.said()}")
        return reached

    def _has_two_good_checkpoints(self) -> bool:
        try:
            newest = list_checkpoints(self.out / "checkpoints")[:2]
            return len([load_checkpoint(one) for one in newest]) == 2
        except DamagedCheckpoint:  # the older one was just deleted
            return False


KINDS: dict[str, Callable[[Campaign], int]] = {
    "killed process": Campaign.kill_process,
    "SIGTERM": Campaign.terminate,
    "disk full": Campaign.fill_disk,
    "damaged newest": Campaign.damage_checkpoint,
    "damaged shard": Campaign.damage_shard,
}


def inflict(campaign: Campaign, kind: str, step: int) -> Outcome:
    """Waits for a step, does it, and sees to it that the run goes on."""
    campaign.trains_on(step)
    campaign.until(campaign._has_two_good_checkpoints)
    begun, starts, resumed = time.monotonic(), campaign.starts, len(campaign.resumed())
    reached = KINDS[kind](campaign)
    recovered = campaign.trains_on(reached)
    went_on = campaign.resumed()[resumed:]
    repeated = reached - min(went_on) if went_on else 0
    seconds = time.monotonic() - begun
    return Outcome(kind, recovered, max(0, repeated), campaign.starts - starts, seconds)


def _damaged(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data) // 4, len(data) // 2)
    if chance.random() < 0.5:
        return data[:place]
    return data[:place] + bytes(8192) + data[place + 8192 :]


def write_shards(folder: Path) -> None:
    """Small JPEG files of noise in colours of their own."""
    rng = np.random.default_rng(3)
    folder.mkdir()
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for image in range(IMAGES // SHARDS):
                color = rng.integers(0, 256, 3)
                pixels = np.clip(color + rng.normal(0, 40, (32, 32, 3)), 0, 255)
                buffer = io.BytesIO()
                Image.fromarray(pixels.astype(np.uint8)).save(buffer, "JPEG")
                info = tarfile.TarInfo(f"{number}-{image:03d}.jpg")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """A file system of its own at a folder, where that is allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "diptych", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def digest(out: Path) -> str:
    """SHA-256 of the last checkpoint's weights, queue, optimizer and generators."""
    tensors, _ = load_checkpoint(list_checkpoints(out / "checkpoints")[0])
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].contiguous().numpy().tobytes())
    return found.hexdigest()


def plan(faults: int, kinds: list[str], chance: random.Random) -> list[tuple[str, int]]:
    """Which fault comes after which step: all kinds about as often, in random order."""
    order = [kinds[number % len(kinds)] for number in range(faults)]
    chance.shuffle(order)
    return [
        (kind, number * STEPS_PER_FAULT + chance.randint(3, STEPS_PER_FAULT // 2))
        for number, kind in enumerate(order)
    ]


def show(outcomes: list[Outcome], console: Console) -> None:
    table = Table(title="Faults by kind", title_justify="left")
    for column in ("kind", "faults", "recovered", "steps repeated", "new starts", "seconds each"):
        table.add_column(column, justify="left" if column == "kind" else "right")
    for kind in [*KINDS, "all"]:
        found = [one for one in outcomes if kind in (one.kind, "all")]
        if found:
            table.add_row(
                kind,
                str(len(found)),
                str(sum(one.recovered for one in found)),
                str(sum(one.repeated for one in found)),
                str(sum(one.starts for one in found)),
                f"{sum(one.seconds for one in found) / len(found):.1f}",
            )
    console.print(table)


def figures(outcomes: list[Outcome], *, equal: bool) -> list[Figure]:
    count = len(outcomes)
    recovered = sum(one.recovered for one in outcomes)
    repeated = sum(one.repeated for one in outcomes)
    by_kind = [
        Figure(
            f"{kind}: recovered of {len(found)}",
            sum(one.recovered for one in found),
            len(found),
        )
        for kind in KINDS
        if (found := [one for one in outcomes if one.kind == kind])
    ]
    return [
        Figure(f"faults recovered of {count}", recovered, count),
        *by_kind,
        Figure("final state equal to the unbroken run's", float(equal), 1.0),
        Figure("steps repeated for each fault", repeated / count, STEPS_PER_FAULT, "at most"),
    ]


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # and clean up
    parser = add_arguments(__doc__)
    parser.add_argument("--faults", type=int, metavar="N", help=f"{FAULTS} by default")
    parser.add_argument("--seed", type=int, default=0, help="decides faults, order and steps")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    flags = parser.parse_args()
    faults = flags.faults or (QUICK_FAULTS if flags.quick else FAULTS)
    console = Console(width=None if sys.stdout.isatty() else 100)
    chance = random.Random(flags.seed)
    epochs = -(-(faults + 1) * STEPS_PER_FAULT // STEPS_PER_EPOCH)
    with tempfile.TemporaryDirectory() as name, small_disk(Path(name) / "disk") as small:
        shards, disk = Path(name) / "shards", Path(name) / "disk"
        write_shards(shards)
        kinds = [kind for kind in flags.kinds if small or kind != "disk full"]
        if kinds != flags.kinds:
            console.print("No disk is filled up: a small file system cannot be mounted here.")
        whole = Campaign(shards, Path(name) / "unbroken", epochs, chance)
        whole.start()
        with whole.job:
            if whole.job.wait(4 * PATIENCE_SECONDS) != 0:
                raise RuntimeError(f"the unbroken run failed:\n{whole.job.said()}")
        campaign = Campaign(shards, disk / "run", epochs, chance)
        campaign.start()
        outcomes = []
        try:
            for number, (kind, step) in enumerate(plan(faults, kinds, chance), start=1):
                one = inflict(campaign, kind, step)
                outcomes.append(one)
                console.print(
                    f"{number} of {faults}: {kind} after step {step}, "
                    f"{'recovered' if one.recovered else 'NOT recovered'}, {one.repeated} steps "
                    f"repeated, {one.seconds:.1f} s",
                    highlight=False,
                )
            while not campaign.ended and campaign.trains_on(last_step(campaign.out)):
                continue
        finally:
            campaign.job.kill()
        states = [digest(run.out) for run in (whole, campaign)]
    console.print(f"Unbroken: {states[0]}\nBroken:   {states[1]}", highlight=False)
    show(outcomes, console)
    title = f"Survival: {faults} faults, seed {flags.seed}, {epochs * STEPS_PER_EPOCH} steps"
    publish(figures(outcomes, equal=states[0] == states[1]), title, flags.json)


if __name__ == "__main__":
    main()
