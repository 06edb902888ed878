"""What is done to a run under `diptych launch`; it ends with the bits of one left alone."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from launched import LONGEST_SECONDS, Job, is_alive, last_step
from safetensors.torch import load_file

from conftest import striped
from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint

# The time-out is for a machine that does much else: alone it takes a minute.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3000),
    pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc"),
]

STEPS = 40
EPOCHS = ("--epochs", "10")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("survival") / "images.npz"
    np.savez(path, images=np.stack([striped(number % 3, rng) for number in range(64)]))
    return path


@pytest.fixture(scope="module")
def unbroken(images: Path) -> Path:
    with Job(images, images.with_name("unbroken"), flags=EPOCHS) as job:
        assert job.wait() == 0, job.said()
    assert last_step(job.out) == STEPS
    return job.out


def assert_same_bits(one: Path, other: Path) -> None:
    ours, theirs = (
        load_checkpoint(list_checkpoints(run / "checkpoints")[0]) for run in (one, other)
    )
    assert ours[1]["step"] == theirs[1]["step"] == STEPS
    assert ours[0].keys() == theirs[0].keys()
    for name, value in ours[0].items():
        assert torch.equal(value, theirs[0][name]), name
    encoders = [load_file(run / "encoder.safetensors") for run in (one, other)]
    assert encoders[0].keys() == encoders[1].keys()
    assert all(torch.equal(value, encoders[1][name]) for name, value in encoders[0].items())


def test_killed_workers_a_killed_launcher_and_a_scheduler(images: Path, unbroken: Path) -> None:
    out = images.with_name("broken")
    with Job(images, out, flags=EPOCHS) as job:
        job.until_step(5)
        before = job.workers()
        os.kill(before[1], signal.SIGKILL)
        job.until(
            lambda: (
                len(job.workers()) == 2 and not set(before.values()) & set(job.workers().values())
            ),
            "a restart",
        )
        job.until(lambda: "Going on from the checkpoint after step" in job.said(), "resuming")
        job.until_step(job.step() + 5)
        # Without their launcher the processes stop; else the next start would have rivals.
        left = job.workers()
        job.process.kill()
        job.wait()
        deadline = time.monotonic() + LONGEST_SECONDS
        while any(map(is_alive, left.values())):
            assert time.monotonic() < deadline, "processes train on without their launcher"
            time.sleep(0.05)
    assert 5 < last_step(out) < STEPS
    with Job(images, out, flags=EPOCHS) as job:
        job.until_step(last_step(out) + 5)
        job.process.terminate()  # as a scheduler does
        assert job.wait() == 143
        assert f"SIGTERM came; the run was saved after step {last_step(out)}." in job.said()
        assert not any(map(is_alive, job.workers().values()))
    assert last_step(out) < STEPS
    with Job(images, out, flags=EPOCHS) as job:
        assert job.wait() == 0, job.said()
    assert_same_bits(unbroken, out)


def test_a_peer_that_hangs_is_named_with_the_step(images: Path) -> None:
    options = ("--nproc-per-node", "2", "--max-restarts", "0", "--shutdown-timeout", "2")
    patience = ("--training.process-timeout-seconds", "12")
    with Job(images, images.with_name("hung"), options=options, flags=[*EPOCHS, *patience]) as job:
        job.until_step(3)
        hung = job.workers()[1]
        os.kill(hung, signal.SIGSTOP)
        job.until(lambda: is_asked_to_end(hung), "what torchrun sends to the others")
        os.kill(hung, signal.SIGKILL)  # as torchrun does half a minute later
        assert job.wait() == 1
    assert (
        f"process 1 of 2 did not take part in step {last_step(job.out) + 1}: gone, or silent for "
        "the 12 seconds of training.process_timeout_seconds."
    ) in job.said()


def is_asked_to_end(pid: int) -> bool:
    """Whether a stopped process would find a SIGTERM if it went on."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    pending = next(line for line in lines if line.startswith("ShdPnd"))
    return bool(int(pending.split()[1], 16) & 1 << (signal.SIGTERM - 1))


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Host:
    """A network namespace with one cable to the other one."""

    def __init__(self, number: int) -> None:
        self.name = f"dip{os.getpid()}h{number}"
        self.cable = f"dip{os.getpid()}c{number}"[-15:]
        self.address = f"10.213.77.{number + 1}"

    def plug_in(self) -> None:
        ip("link", "set", self.cable, "netns", self.name)
        ip("-n", self.name, "address", "add", f"{self.address}/24", "dev", self.cable)
        for device in ("lo", self.cable):
            ip("-n", self.name, "link", "set", device, "up")

    def job(self, images: Path, out: Path, meeting: "Host") -> Job:
        is_host = str(self is meeting).lower()
        options = [
            *("--nnodes", "2", "--nproc-per-node", "1"),
            *("--rdzv-endpoint", f"{meeting.address}:29400", "--local-addr", self.address),
            *("--rdzv-conf", f"is_host={is_host}"),
        ]
        return Job(
            images,
            out,
            options=options,
            # As many for this process as each of two has that share --threads 2 on one host.
            flags=[*EPOCHS, "--threads", "1"],
            prefix=["ip", "netns", "exec", self.name],
            environment={"GLOO_SOCKET_IFNAME": self.cable},
        )

    def kill_everything(self) -> None:
        """Ends all processes there, as a loss of power would."""
        pids = subprocess.run(
            ["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True
        )
        for pid in pids.stdout.split():
            os.kill(int(pid), signal.SIGKILL)


@contextmanager
def connected_hosts() -> Iterator[tuple[Host, Host]]:
    """Two hosts, which are taken away again; if this process is killed, by the next that comes."""
    remove_left_behind()
    hosts = Host(0), Host(1)
    try:
        for host in hosts:
            ip("netns", "add", host.name)
        ip("link", "add", hosts[0].cable, "type", "veth", "peer", "name", hosts[1].cable)
        for host in hosts:
            host.plug_in()
    except subprocess.CalledProcessError as error:
        remove(hosts)
        pytest.skip(f"no network namespaces here: {error.stderr.strip()}")
    try:
        yield hosts
    finally:
        remove(hosts)


def remove_left_behind() -> None:
    """Takes away hosts of test processes that are no more."""
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    for name, pid in re.findall(r"^(dip(\d+)h\d)\b", listed, re.MULTILINE):
        if not is_alive(int(pid)):
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)


def remove(hosts: Sequence[Host]) -> None:
    for host in hosts:  # a cable goes with its end
        subprocess.run(["ip", "link", "delete", host.cable], capture_output=True)
        subprocess.run(["ip", "netns", "delete", host.name], capture_output=True)


@pytest.mark.skipif(shutil.which("ip") is None, reason="there is no `ip` (Debian: iproute2)")
def test_a_host_is_lost_and_comes_back(images: Path, unbroken: Path) -> None:
    out = images.with_name("two-hosts")
    with connected_hosts() as (first, second), first.job(images, out, first) as stays:
        with second.job(images, out, first) as job:
            stays.until_step(5)
            second.kill_everything()
            job.wait()
        stays.until(lambda: "gone, or silent" in stays.said(), "the loss is noticed")
        assert last_step(out) < STEPS
        with second.job(images, out, first) as again:
            assert again.wait() == 0, again.said() + stays.said()
        assert stays.wait() == 0, stays.said()
    assert "Going on from the checkpoint after step" in stays.said() + again.said()
    assert_same_bits(unbroken, out)
