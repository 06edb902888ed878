"""Runs over several processes: stopped, gone on with by other numbers, and left by one of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.errors import ConfigError, FirstStopped, ImagesError, Interrupted, LostProcess
from diptych.images.collection import Collection
from diptych.pretraining import pretrain
from diptych.runtime.rendezvous import process_group, run_on_all, wait_for_all
from diptych.runtime.world import read_world
from diptych.views.batches import Batch, ViewBatches
from processes import Results, run_processes

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

# The processes of `run_processes` are told by it where the images lie and runs go.
FOLDER = "DIPTYCH_TEST_FOLDER"
STEPS = 12
SLOW_SECONDS = 8.0
MOCO: dict[str, Any] = {
    "recipe": "moco_v1",
    "scale": "tiny",
    "epochs": 3,
    "encoder.width": 4,
    "encoder.stage_blocks": (1,),
    "head.output_features": 8,
    "views.side_pixels": 16,
    "norm.images_per_group": 4,
    "method.dictionary.queue.size": 50,
    "batch_size": 16,
    "training.threads": 1,
    "training.check_every_steps": 2,
    "probe.images": 32,
    "probe.log_every_steps": 1,
    "checkpoint.every_seconds": 1e9,
}


class Gone(Exception):
    """Stands for the end of a process."""


def run(name: str, *, resume: bool = False, **more: Any) -> Path:
    folder = Path(os.environ[FOLDER])
    settings = {**MOCO, **more}
    return pretrain(folder / "images.npz", out=folder / name, resume=resume, quiet=True, **settings)


def at_step(patch: pytest.MonkeyPatch, step: int, do: Callable[[], None]) -> None:
    """Does something when the views of a step are asked for."""
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        if wanted == step:
            do()
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


def interrupted(name: str, *, here: bool = True) -> str:
    """Runs until this process, or another one, gets a signal in the sixth step."""
    with pytest.MonkeyPatch.context() as patch:
        if here:
            at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted) as caught:
            run(name)
    return str(caught.value)


def several(rank: int, count: int) -> Results:
    """Runs in each process."""
    said = [interrupted("two then one", here=rank == 1)]
    said += [interrupted("broken", here=rank == 1)]
    run("broken", resume=True)
    run("one then two", resume=True)
    run("unbroken", resume=False, **{"probe.profile_steps": 2})
    return {"said": torch.tensor(list("\n".join(said).encode()))}


def left_alone(rank: int, count: int) -> Results:
    """The middle one of three processes goes away in the fourth step."""

    def go() -> None:
        dist.destroy_process_group()
        raise Gone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diptych.runtime.rendezvous.CALL_SECONDS", 3.0)
        if rank == 1:
            at_step(patch, 3, go)
        with pytest.raises(Gone if rank == 1 else LostProcess) as caught:
            run("left", batch_size=24)
    return {"said": torch.tensor(list(str(caught.value).encode()), dtype=torch.uint8)}


def opened_together(rank: int, count: int) -> Results:
    """The second process opens the images for longer than a collective call waits, then fails."""

    def opened() -> int:
        time.sleep(SLOW_SECONDS * rank)
        return rank

    def fail(*_: object) -> Collection:
        raise ImagesError("there are none here")

    dist.barrier()  # both have imported all, and meet again within the seconds
    dist.destroy_process_group()
    with (
        process_group(device="cpu", timeout_seconds=SLOW_SECONDS / 2),
        pytest.MonkeyPatch.context() as patch,
    ):
        begun = time.monotonic()
        made = run_on_all(opened)
        waited = time.monotonic() - begun
        wait_for_all()  # none was given up
        if rank == 1:
            patch.setattr("diptych.pretraining.open_images", fail)
        with pytest.raises(ImagesError if rank == 1 else FirstStopped) as caught:
            run("never")
    return {
        "made": torch.tensor(made),
        "waited": torch.tensor(waited),
        "said": torch.tensor(list(str(caught.value).encode())),
    }


def words(result: Results) -> str:
    return bytes(result["said"].tolist()).decode()


@pytest.fixture
def folder(tmp_path: Path, stripes: Stripes, monkeypatch: pytest.MonkeyPatch) -> Path:
    pixels, labels = stripes(72)  # of which 8 are held out for kNN
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    return tmp_path


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def untimed(line: dict[str, float]) -> set[str]:
    """The names of what a line holds besides times, which a part of no time is not among."""
    return {key for key in line if "/" not in key and key != "slowest_process"}


def assert_times_of_two(out: Path) -> None:
    """Rank 0 tells where its time went, and that of the slower of the two."""
    for line in metrics(out):
        assert line["slowest_process"] in (0, 1)
        for prefix in ("milliseconds/", "slowest_milliseconds/", "usual_milliseconds/"):
            assert line[f"{prefix}forward"] > 0
            assert line[f"{prefix}communication"] > 0
        if line["slowest_process"] == 0:
            assert line["slowest_milliseconds/forward"] == line["milliseconds/forward"]
    for rank in range(2):
        events = json.loads((out / "traces" / f"rank-{rank}.json").read_text())["traceEvents"]
        assert sum(event.get("name") == "communication" for event in events) > 2


def final(out: Path) -> dict[str, torch.Tensor]:
    tensors, _ = load_checkpoint(list_checkpoints(out / "checkpoints")[0])
    return {name: value for name, value in tensors.items() if not name.startswith("generator")}


def assert_same_run(one: Path, other: Path) -> None:
    """To rounding: float32, whose sums are made in another order."""
    ours, theirs = metrics(one), metrics(other)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, yours in zip(ours, theirs, strict=True):
        # What was done, not how long it took; "milliseconds/", "slowest_process" and so on.
        assert untimed(mine) == untimed(yours)
        assert mine["loss"] == pytest.approx(yours["loss"], rel=1e-4)
        assert mine["candidates"] == yours["candidates"]
    ours_left, theirs_left = final(one), final(other)
    assert ours_left.keys() == theirs_left.keys()
    for name, value in ours_left.items():
        torch.testing.assert_close(
            value.double(), theirs_left[name].double(), rtol=1e-2, atol=1e-3, msg=name
        )


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_processes(folder: Path) -> None:
    alone = run("alone")
    interrupted("one then two")
    for result in run_processes(several, 2):
        assert words(result).count("SIGTERM came; the run was saved after step 6.") == 2
    run("two then one", resume=True)
    for name in ("two then one", "one then two", "unbroken"):
        assert_same_run(folder / name, alone)
        assert (folder / name / "encoder.safetensors").exists()
        assert not list((folder / name).glob(".*"))
    assert_times_of_two(folder / "unbroken")
    # With the same number: the same bits.
    unbroken, broken = final(folder / "unbroken"), final(folder / "broken")
    assert all(torch.equal(value, broken[name]) for name, value in unbroken.items())
    assert [line["loss"] for line in metrics(folder / "unbroken")] == [
        line["loss"] for line in metrics(folder / "broken")
    ]


@pytest.mark.slow
def test_those_that_stay_name_the_one_that_is_gone(folder: Path) -> None:
    first, _, last = map(words, run_processes(left_alone, 3))
    for said, rank in ((first, 0), (last, 2)):
        assert said.startswith("process 1 of 3 did not take part in step 4: gone, or silent")
        assert f"Process {rank} stops." in said


@pytest.mark.slow
def test_all_wait_patiently_for_the_images_of_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(port))
    results = run_processes(opened_together, 2)
    assert [int(one["made"]) for one in results] == [0, 1]
    assert all(float(one["waited"]) > 0.9 * SLOW_SECONDS for one in results)
    assert words(results[0]) == "process 1 stopped with ImagesError; it says why"
    assert not (folder / "never").exists()


@pytest.mark.slow
def test_torchrun_makes_a_run_like_any_other(folder: Path) -> None:
    settings = {**MOCO, "epochs": 1, "encoder.stage_blocks": 1}
    flags = [
        word
        for name, value in settings.items()
        for word in (f"--{name.replace('_', '-')}", str(value))
    ]
    # Should a process ever abort, each of its threads says where it was.
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"}
    pretraining = ["-m", "diptych", "pretrain", str(folder / "images.npz"), *flags, "--out"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    said = {}
    for name, command in (("one", pretraining), ("two", [*launcher, *pretraining])):
        done = subprocess.run(
            [sys.executable, *command, str(folder / name)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        said[name] = done.stdout
    ours, theirs = (
        sorted(str(file.relative_to(folder / name)) for file in (folder / name).rglob("*"))
        for name in ("one", "two")
    )
    # The names of event files hold the time, those of features the weights, to the last bit.
    own_names = ("tfevents", "features/")
    assert [file for file in ours if not any(part in file for part in own_names)] == [
        file for file in theirs if not any(part in file for part in own_names)
    ]
    assert len(ours) == len(theirs)
    assert (folder / "one/config.toml").read_text() == (folder / "two/config.toml").read_text()
    assert_same_run(folder / "one", folder / "two")
    for rank in range(2):
        assert said["two"].count(f"Process {rank} of 2: ") == 1
    for sentence in ("2 processes share each batch, 8 images each.", "Report: ", "step 4/4"):
        assert said["two"].count(sentence) == 1


def test_what_no_launcher_says_is_refused() -> None:
    assert read_world({"WORLD_SIZE": "1", "RANK": "0"}).count == 1
    with pytest.raises(ConfigError, match="RANK does not say"):
        read_world({"WORLD_SIZE": "2"})
    with pytest.raises(ConfigError, match="RANK = 2 is not one of 2"):
        read_world({"WORLD_SIZE": "2", "RANK": "2"})
    with pytest.raises(ConfigError, match="WORLD_SIZE = 'two'"):
        read_world({"WORLD_SIZE": "two"})
