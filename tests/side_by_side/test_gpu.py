"""The checks of a device: what they need, what they leave behind, what they call wrong."""

import time
from pathlib import Path
from typing import Any

import gpu
import pytest
from gpu import NEEDED, Bench, filled, resumed


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("cpu", True, tmp_path, time.monotonic() + 60)


def test_a_folder_that_could_not_be_filled_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(folder: Path, size: tuple[int, int], count: int) -> None:
        (folder / "class0").mkdir()
        raise ModuleNotFoundError("no photographs")

    def fills(folder: Path, size: tuple[int, int], count: int) -> None:
        (folder / "class0").mkdir()
        (folder / "class0" / "a.jpg").touch()

    monkeypatch.setattr("opening.fill", fails)
    for _ in range(2):  # a second check does not find the leftovers of the first
        with pytest.raises(ModuleNotFoundError):
            filled(tmp_path / "small", (8, 8), 4)
        assert not (tmp_path / "small").exists()
    monkeypatch.setattr("opening.fill", fills)

    assert [one.name for one in filled(tmp_path / "small", (8, 8), 4).rglob("*.jpg")] == ["a.jpg"]


def test_packages_that_hold_the_pictures_and_decode_are_named() -> None:
    assert {"scikit-learn", "scikit-image", "imagecodecs", "tifffile"} <= set(NEEDED.values())


@pytest.mark.parametrize(
    ("repeated", "goes_on", "state"),
    [([], [], "right"), ([], ["a"], "wrong"), (["b"], ["a"], "not decided"), (["b"], [], "right")],
)
def test_resuming_is_not_wrong_where_two_whole_runs_differ(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    repeated: list[str],
    goes_on: list[str],
    state: str,
) -> None:
    def pretrain(bench: Bench, name: str, recipe: str) -> Path:
        run = bench.scratch / name
        for step in (1, 2):
            (run / "checkpoints" / f"step-{step}").mkdir(parents=True)
        (run / "encoder.safetensors").touch()
        return run

    def differing(one: Path, other: Path) -> list[str]:
        return {"again": repeated, "split": goes_on}[other.name]

    monkeypatch.setattr(gpu, "pretrain", pretrain)
    monkeypatch.setattr(gpu, "differing", differing)
    monkeypatch.setattr("diptych.pretrain", lambda **_: None, raising=False)

    found: dict[str, Any] = resumed("simclr")(bench)

    assert found["state"] == state
    assert found["differs_when_repeated"] == repeated
    assert found["differs_when_resumed"] == goes_on
