"""Checkpoints: whole or not there, and damage is noticed."""

import json
from pathlib import Path

import pytest
import torch

from diptych.errors import DamagedCheckpoint
from diptych.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)


def save(folder: Path, step: int, keep: int = 2) -> Path:
    tensors = {"a": torch.full((50,), float(step)), "b": torch.arange(3)}
    return save_checkpoint(folder, tensors, {"step": step, "seconds": 1.5}, keep=keep)


def newest(folder: Path) -> tuple[int, list[str]]:
    said: list[str] = []
    found = load_newest(folder, said.append)
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
    assert load_newest(tmp_path / "nothing", print) is None


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
        load_newest(tmp_path, lambda _: None)


def test_leftovers_of_a_killed_run_are_cleared(tmp_path: Path) -> None:
    (tmp_path / ".writing-step-000000009").mkdir()
    (tmp_path / ".writing-step-000000009" / "tensors.safetensors").write_bytes(b"half")
    save(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
