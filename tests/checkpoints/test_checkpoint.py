"""Checkpoints: whole or not there, and damage is noticed."""

import errno
import json
import os
import re
from itertools import count
from pathlib import Path

import pytest
import torch

from diptych.checkpoints.save_and_load import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from diptych.errors import DamagedCheckpoint
from diptych.runs.folder import Identity

RUN = Identity("0" * 32, "runs/test")


def save(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"a": torch.full((50,), float(step)), "b": torch.arange(3)}
    return save_checkpoint(folder, RUN, tensors, {"step": step, "seconds": 1.5}, keep=keep)


def newest(folder: Path) -> tuple[int, list[str]]:
    said: list[str] = []
    found = load_newest(folder, RUN, said.append)
    assert found is not None
    tensors, scalars = found
    assert torch.equal(tensors["a"], torch.full((50,), float(scalars["step"])))
    return scalars["step"], said


def test_what_is_loaded_is_what_was_saved(tmp_path: Path) -> None:
    save(tmp_path, 7)
    tensors, scalars = load_checkpoint(tmp_path / "step-000000007")
    assert scalars == {"step": 7, "seconds": 1.5}
    assert torch.equal(tensors["b"], torch.arange(3))


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 30, 4000):
        save(tmp_path, step, keep=3)
    assert [c.name for c in list_checkpoints(tmp_path)] == [
        "step-000004000",
        "step-000000030",
        "step-000000002",
    ]


def test_no_checkpoint_is_no_error(tmp_path: Path) -> None:
    assert load_newest(tmp_path / "nothing", RUN, print) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
def test_a_damaged_newest_one_gives_way_to_the_one_before(
    damage: str, name: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if damage == "remove":
        file.unlink()
    elif damage == "flip":
        data[len(data) * 2 // 3] ^= 1
        file.write_bytes(bytes(data))
    else:
        file.write_bytes(bytes(data[: len(data) // 2] if damage == "truncate" else b""))
    step, said = newest(tmp_path)
    assert step == 1
    assert "step-000000002" in said[0]
    save(tmp_path, 2)  # the damaged one is replaced when the run gets there again
    assert newest(tmp_path) == (2, [])


def test_every_single_flipped_byte_is_noticed(tmp_path: Path) -> None:
    folder = save(tmp_path, 2)
    for file in folder.iterdir():
        good = file.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 60)):
            bad = bytearray(good)
            bad[position] ^= 0x10
            file.write_bytes(bytes(bad))
            try:
                load_checkpoint(folder)
            except DamagedCheckpoint:
                continue
            # A manifest may differ where nothing is read from it, as in its white space.
            assert file.name == "manifest.json"
            assert json.loads(bad)["files"] == json.loads(good)["files"]
        file.write_bytes(good)


def test_only_damaged_ones_are_an_error(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "state.json").unlink()
    with pytest.raises(DamagedCheckpoint, match="none of the 1 checkpoints"):
        load_newest(tmp_path, RUN, lambda _: None)


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".step-000000009.01234567.aside").mkdir()
    (tmp_path / ".step-000000009.01234567.aside" / "tensors.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]


def test_a_damaged_later_one_does_not_push_out_the_new_one(tmp_path: Path) -> None:
    """A run that passed over a damaged checkpoint writes ones of fewer steps."""
    (save(tmp_path, 20, keep=1) / "state.json").unlink()
    save(tmp_path, 11, keep=1)
    save(tmp_path, 12, keep=1)
    assert newest(tmp_path)[0] == 12
    assert [c.name for c in list_checkpoints(tmp_path)] == ["step-000000020", "step-000000012"]


def test_the_newest_is_that_of_the_most_steps(tmp_path: Path) -> None:
    for step, age in ((3, 0), (1_000_000_000, 10**9), (20, 10**8)):
        os.utime(save(tmp_path, step, keep=9), (2e9 - age, 2e9 - age))
    (tmp_path / "step-notes").mkdir()
    assert newest(tmp_path) == (1_000_000_000, [])


class Disk:
    """A disk with room for so many bytes under a folder, by a patched system call."""

    def __init__(self, folder: Path, room: int, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.room = folder, room
        patch.setattr(os, "fsync", self.fsync)

    def fsync(self, _: int) -> None:
        used = sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
        if used > self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def one_size(tmp_path: Path) -> int:
    """Bytes of a checkpoint."""
    return sum(file.stat().st_size for file in save(tmp_path / "measure", 1).iterdir())


def test_on_a_full_disk_the_oldest_give_way(
    one_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        save(folder, step, keep=3)
    Disk(folder, 3 * one_size + 50, monkeypatch)
    save(folder, 4, keep=3)
    assert [c.name[-1] for c in list_checkpoints(folder)] == ["4", "3", "2"]


def test_on_a_full_disk_a_good_one_stays(
    one_size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    for step in (1, 2, 3):
        save(folder, step, keep=3)
    (folder / "step-000000003" / "state.json").write_bytes(b"damaged")
    Disk(folder, one_size + 50, monkeypatch)
    with pytest.raises(OSError, match="No space left"):
        save(folder, 4, keep=3)
    assert [path.name for path in folder.iterdir()] == ["step-000000002"]  # the newest good one
    assert newest(folder) == (2, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", range(4))
def test_a_failed_write_leaves_nothing(
    call: int, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the syncs fails: of three files, and of their folder before it is renamed."""
    save(tmp_path, 1)
    fail_at(call, number, monkeypatch)
    with pytest.raises(OSError, match=re.escape(os.strerror(number))):
        save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert newest(tmp_path) == (1, [])


def test_a_rename_that_may_not_last_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1, keep=1)
    fail_at(4, errno.EIO, monkeypatch)
    with pytest.raises(OSError, match=re.escape(os.strerror(errno.EIO))):
        save(tmp_path, 2, keep=1)
    assert len(list_checkpoints(tmp_path)) == 2  # the older one stays until a newer one is sure


def fail_at(call: int, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets one call of fsync fail."""
    calls = count()

    def fsync(_: int) -> None:
        if next(calls) == call:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
