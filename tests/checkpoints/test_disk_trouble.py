"""Whole runs on disks that fill up, vanish or turn read-only, and behind URLs."""

import errno
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.checkpoints import saver as saver_module
from diptych.checkpoints.save_and_load import list_checkpoints, load_checkpoint
from diptych.checkpoints.stores import LocalStore
from diptych.cli.main import main
from diptych.config.files import load_run_config
from diptych.errors import (
    ConfigError,
    FirstStopped,
    ForeignCheckpoint,
    Interrupted,
    NotSaved,
    RunFolderError,
    TrainingError,
)
from diptych.logging.progress import Silent
from diptych.pretraining import run_pretraining
from diptych.views.batches import Batch, ViewBatches
from processes import Results, run_processes

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

FOLDER = "DIPTYCH_TEST_FOLDER"
STEPS = 12
SMALL: dict[str, Any] = {
    "recipe": "moco_v2",
    "images": {},
    "encoder": {"width": 4, "stage_blocks": (1,)},
    "head": {"hidden_features": 8, "output_features": 8},
    "views": {"side_pixels": 16},
    "norm": {"kind": "group", "group": {"channel_groups": 2}},
    "method": {"dictionary": {"queue": {"size": 50}}},
    "training": {"batch_size": 16, "epochs": 3, "threads": 1},
    "probe": {"images": 32, "log_every_steps": 1},
    "checkpoint": {"every_seconds": 0.0, "asynchronous": False},
}


class Listener(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


def run(
    name: str, *, resume: bool = False, settings: dict[str, Any] = SMALL, **checkpoint: Any
) -> list[str]:
    """What a run says; its folder lies in that of the test."""
    root, listener = Path(os.environ[FOLDER]), Listener()
    settings = {**settings, "images": {"path": str(root / "images.npz"), **settings["images"]}}
    settings["checkpoint"] = {**SMALL["checkpoint"], **checkpoint}
    run_pretraining(settings, out=root / name, config_file=None, resume=resume, watcher=listener)
    return listener.said


@pytest.fixture
def folder(tmp_path: Path, stripes: Stripes, monkeypatch: pytest.MonkeyPatch) -> Path:
    pixels, labels = stripes(72)  # of which 8 are held out for kNN
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    monkeypatch.setenv(FOLDER, str(tmp_path))
    monkeypatch.setattr(saver_module, "LAST_PAUSES", (0.0,))
    return tmp_path


@pytest.fixture
def small_disk(folder: Path) -> Iterator[Path]:
    """A disk of 400 kB in memory, under the test's folder."""
    disk = folder / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(disk)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small tmpfs may not be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(disk: Path) -> None:
    """Takes all that is left of it."""
    with open(disk / "other people's files", "ab", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


def at_step(patch: pytest.MonkeyPatch, *events: tuple[int, Callable[[], None]]) -> None:
    """Does something when the views of a step are asked for."""
    original = ViewBatches.at

    def at(self: ViewBatches, wanted: int) -> Batch:
        for step, do in events:
            if step == wanted:
                do()
        return original(self, wanted)

    patch.setattr(ViewBatches, "at", at)


def write_errors(patch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Every checkpoint fails from now on."""

    def failing(*_: Any) -> None:
        raise error

    patch.setattr(LocalStore, "write", failing)


def full() -> OSError:
    return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))


def state(place: Path | str) -> tuple[int, dict[str, torch.Tensor]]:
    tensors, scalars = load_checkpoint(list_checkpoints(place)[0])
    return scalars["step"], tensors


def assert_same_run(one: Path, other: Path, place: Path | str | None = None) -> None:
    """The same bits, and the same lines of metrics but for times."""
    steps, ours = state(one / "checkpoints")
    other_steps, theirs = state(place or other / "checkpoints")
    assert steps == other_steps
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert losses(one) == losses(other)


def losses(out: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_disk_that_is_full_for_a_while(
    asynchronous: bool, small_disk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("unbroken")
    good = dict[str, int]()

    def look() -> None:
        good["step"] = state(small_disk / "run" / "checkpoints")[0]
        assert not list((small_disk / "run" / "checkpoints").glob(".*")) or asynchronous

    at_step(
        monkeypatch,
        (3, lambda: fill(small_disk)),
        (8, look),
        (9, (small_disk / "other people's files").unlink),
    )
    said = run("disk/run", asynchronous=asynchronous, keep=1)
    assert 1 <= good["step"] <= 4
    assert_same_run(folder / "unbroken", small_disk / "run")
    words = "\n".join(said)
    assert "could not be written to " in words
    assert "No space left on device" in words
    assert "is kept. Training goes on" in words
    assert asynchronous or "Checkpoints are written again: The one after step 10" in words


def test_a_disk_that_is_full_at_the_end(
    small_disk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, (5, lambda: fill(small_disk)))
        with pytest.raises(NotSaved, match=rf"after step {STEPS}.*No space left.*is kept\. Mend"):
            run("disk/run", keep=1)
    assert state(small_disk / "run" / "checkpoints")[0] == 5
    assert not (small_disk / "run" / "encoder.safetensors").exists()
    with pytest.raises(NotSaved, match=r"run folder .*run cannot be written: No space left"):
        run("disk/run", resume=True, keep=1)  # started again too early
    (small_disk / "other people's files").unlink()
    run("disk/run", resume=True, keep=1)
    assert losses(small_disk / "run")[:5] == losses(folder / "unbroken")[:5]
    assert_same_run(folder / "unbroken", small_disk / "run")


def test_a_read_only_disk_is_an_error_in_words(small_disk: Path, folder: Path) -> None:
    run("disk/run", keep=1)
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    subprocess.run([one.format("ro") for one in remount], check=True)
    try:
        for name, resume in (("disk/other", False), ("disk/other", True), ("disk/run", True)):
            with pytest.raises(RunFolderError, match="cannot be written: Read-only file system"):
                run(name, resume=resume, keep=1)
        place = str(small_disk / "checkpoints")
        with pytest.raises(NotSaved, match=r"could not be saved.*Read-only file system"):
            run("run", folder=place)
    finally:
        subprocess.run([one.format("rw") for one in remount], check=True)
    run("disk/run", resume=True, keep=1)


@pytest.mark.parametrize("name", ["x" * 300, "images.npz", "images.npz/run"])
def test_a_folder_that_cannot_be_is_an_error_in_words(name: str, folder: Path) -> None:
    with pytest.raises((RunFolderError, NotSaved), match=r"cannot be|--out needs a folder"):
        run(name)


@pytest.mark.slow
def test_a_spare_checkpoint_makes_room(
    small_disk: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, (5, lambda: fill(small_disk)))
        # Checkpoints go on, but in the end there is no room for metrics, or for the encoder.
        with pytest.raises(NotSaved, match=r"No space left.*last step|last step.*No space left"):
            run("disk/run", keep=3)
    assert state(small_disk / "run" / "checkpoints")[0] == STEPS
    assert not list((small_disk / "run").glob(".*"))
    (small_disk / "other people's files").unlink()
    run("disk/run", resume=True, keep=3)
    assert (small_disk / "run" / "encoder.safetensors").exists()


def test_a_signal_on_a_full_disk_claims_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop() -> None:
        write_errors(monkeypatch, full())
        os.kill(os.getpid(), signal.SIGTERM)

    at_step(monkeypatch, (5, stop))
    flags = [
        *("--recipe", "moco_v2", "--encoder.width", "4", "--views.side-pixels", "16"),
        *("--batch-size", "16", "--epochs", "3", "--threads", "1", "--probe.images", "32"),
        *("--checkpoint.every-seconds", "0", "--checkpoint.no-asynchronous", "--no-report"),
    ]
    code = main(["pretrain", str(folder / "images.npz"), "--out", str(folder / "run"), *flags])
    assert code == 74
    error = capsys.readouterr().err
    assert "could not be saved after step 6" in error
    assert "Disk quota exceeded" in error
    assert "step-000000005 is kept" in error
    assert "was saved" not in error


def test_a_run_folder_that_vanishes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        at_step(
            patch,
            (5, lambda: shutil.rmtree(folder / "run")),
            (8, lambda: os.kill(os.getpid(), signal.SIGTERM)),
        )
        with pytest.raises(Interrupted):
            run("run")
    assert (folder / "run" / "config.toml").exists()
    run("run", resume=True)
    assert_same_run(folder / "unbroken", folder / "run")


def test_a_run_saves_behind_a_url_and_goes_on_from_there(folder: Path) -> None:
    url = "memory://bucket/run"
    fsspec.filesystem("memory").store.clear()
    run("unbroken")
    with pytest.MonkeyPatch.context() as patch:
        at_step(patch, (5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
        with pytest.raises(Interrupted, match="saved after step 6"):
            run("run", folder=url)
    assert not (folder / "run" / "checkpoints").exists()
    shutil.copytree(folder / "run", folder / "copy")
    run("run", resume=True, folder=url)
    assert_same_run(folder / "unbroken", folder / "run", url)
    with pytest.raises(ForeignCheckpoint, match=rf"{url} holds checkpoints already, of run"):
        run("another", folder=url)
    with pytest.raises(RunFolderError, match=r"whose folder is still there.*--out .*run"):
        run("another", resume=True, folder=url)
    assert not (folder / "another").exists()
    # Where the machine is lost, and with it the run folder: the same settings suffice, and those
    # that only say what a machine has are the new one's.
    shutil.rmtree(folder / "run")
    here = {
        **SMALL,
        "images": {"cache_megabytes": 7},
        "training": {**SMALL["training"], "threads": 2, "device": "cpu"},
        "views": {**SMALL["views"], "threads": 3},
        "probe": {**SMALL["probe"], "tracker_project": "here"},
    }
    run("on another machine", resume=True, settings=here, folder=url)
    found = load_run_config(folder / "on another machine" / "config.toml")
    assert found.images.cache_megabytes == 7
    assert (found.training.threads, found.training.device) == (2, "cpu")
    assert (found.views.threads, found.probe.tracker_project) == (3, "here")
    assert found.checkpoint.folder == url
    _, ours = state(folder / "unbroken" / "checkpoints")
    _, theirs = state(url)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    fsspec.filesystem("memory").store.clear()


def test_a_run_saves_in_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run("run", folder="elsewhere")
    assert list_checkpoints(folder / "elsewhere")[0].name == "step-000000012"
    assert f'folder = "{folder}/elsewhere"' in (folder / "run" / "config.toml").read_text()
    assert not (folder / "run" / "checkpoints").exists()


@pytest.mark.parametrize("resume", [True, False])
def test_a_place_that_cannot_be_leaves_no_run_behind(resume: bool, folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.folder: nothing://bucket cannot be opened"):
        run("run", resume=resume, folder="nothing://bucket")
    assert not (folder / "run").exists()


def one_fails(rank: int, count: int) -> Results:
    """Runs in each process; only the first has a disk."""
    said = []
    patch = pytest.MonkeyPatch()
    patch.setattr(saver_module, "LAST_PAUSES", (0.0,))
    with patch.context() as inner:
        at_step(
            inner,
            (3, lambda: write_errors(inner, full())),
            (7, lambda: inner.setattr(LocalStore, "write", write)),
        )
        said += run("a while", asynchronous=True)
    for name, error in (("end", full()), ("thread", ZeroDivisionError("by chance"))):
        with patch.context() as inner:
            at_step(inner, (3, partial(write_errors, inner, error)))
            expected = {"end": NotSaved, "thread": TrainingError}[name]
            with pytest.raises(FirstStopped if rank else expected) as caught:
                run(name, asynchronous=True)
        said.append(f"{type(caught.value).__name__} {caught.value}")
    return {"said": torch.tensor(list("\n".join(said).encode()), dtype=torch.uint8)}


write = LocalStore.write


@pytest.mark.slow
def test_processes_agree_on_what_the_first_ones_disk_does(folder: Path) -> None:
    run("alone")
    first, second = (bytes(one["said"].tolist()).decode() for one in run_processes(one_fails, 2))
    assert "Disk quota exceeded" in first
    assert f"NotSaved the run could not be saved after step {STEPS}" in first
    assert "TrainingError the checkpoint before step" in first
    assert second.count("FirstStopped") == 2
    assert "quota" not in second
    assert state(folder / "a while" / "checkpoints")[0] == STEPS
    ours, theirs = losses(folder / "alone"), losses(folder / "a while")
    assert [step for step, _ in ours] == [step for step, _ in theirs]
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], rel=1e-4)
    for name in ("end", "thread"):
        assert state(folder / name / "checkpoints")[0] <= 4
        assert not (folder / name / "encoder.safetensors").exists()
