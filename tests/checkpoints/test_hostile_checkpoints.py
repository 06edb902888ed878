"""Checkpoints of which anything may be wrong: one that is right is taken, or an error says why.

Whatever lies in a run's place, nothing of another run is changed, and no error is a traceback.
"""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from torch import nn

from diptych.checkpoints.save_and_load import load_newest, save_checkpoint
from diptych.checkpoints.state import RunState
from diptych.checkpoints.stores import make_manifest
from diptych.errors import DiptychError, ForeignCheckpoint
from diptych.optimization.loss_scale import LossScale
from diptych.runs.folder import Identity
from diptych.runs.tensor_files import tensor_pieces

OURS, OTHER = Identity("a" * 32, "runs/ours"), Identity("b" * 32, "runs/other")
FILES = ("tensors.safetensors", "state.json", "manifest.json")
OPTIMIZERS: Final[list[Callable[[Any], torch.optim.Optimizer]]] = [
    lambda parameters: torch.optim.AdamW(parameters, lr=0.1),
    lambda parameters: torch.optim.SGD(parameters, lr=0.1, momentum=0.9),
]


def new_state(kind: int) -> RunState:
    torch.manual_seed(3)
    network: Any = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    return RunState(network, OPTIMIZERS[kind](network.parameters()), LossScale(enabled=kind == 0))


@cache
def trained(kind: int, steps: int) -> RunState:
    """Not to be changed by who gets it."""
    state = new_state(kind)
    for _ in range(steps):
        method: Any = state.method
        state.optimizer.zero_grad()
        method(torch.randn(5, 4)).square().sum().backward()
        state.optimizer.step()
        state.step += 1
    return state


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)


class CheckpointLocation:
    """A run's place with its checkpoints after steps 1 and 2, and another run's for comparison."""

    def __init__(self, folder: Path, kind: int) -> None:
        self.folder, self.kind = folder, kind
        self.good = {step: trained(kind, step).tensors() for step in (1, 2)}
        for step in (1, 2):
            state = trained(kind, step)
            save_checkpoint(folder, OURS, self.good[step], state.scalars(), keep=9)

    def newest(self) -> Path:
        return self.folder / "step-000000002"

    def seal(self, tensors: dict[str, torch.Tensor], scalars: Any, run: Identity = OURS) -> None:
        """Writes a checkpoint whose sums are right, whatever it holds."""
        files = {
            "tensors.safetensors": b"".join(tensor_pieces(tensors)),
            "state.json": json.dumps(scalars).encode(),
        }
        described: dict[str, dict[str, str | int]] = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
            for name, data in files.items()
        }
        for name, data in {**files, "manifest.json": make_manifest(run, described)}.items():
            (self.newest() / name).write_bytes(data)

    def parts(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        scalars = json.loads((self.newest() / "state.json").read_bytes())
        return dict(self.good[2]), scalars


Damage = Callable[[CheckpointLocation, random.Random], None]


def cut(place: CheckpointLocation, chance: random.Random) -> None:
    file = place.newest() / chance.choice(FILES)
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def flip(place: CheckpointLocation, chance: random.Random) -> None:
    file = place.newest() / chance.choice(FILES)
    data = bytearray(file.read_bytes())
    for _ in range(chance.choice((1, 1, 5))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(bytes(data))


def replace_file(place: CheckpointLocation, chance: random.Random) -> None:
    file = place.newest() / chance.choice(FILES)
    file.unlink()
    kind = chance.choice(("nothing", "folder", "noise", "loop", "endless", "pipe", "deep"))
    if kind == "folder":
        file.mkdir()
    elif kind == "noise":
        file.write_bytes(chance.randbytes(chance.randrange(300)))
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "deep":
        file.write_bytes(b"[" * 60_000)


def replace_folder(place: CheckpointLocation, chance: random.Random) -> None:
    newest = place.newest()
    kind = chance.choice(("empty", "file", "link", "other's link", "other's"))
    if kind == "link":
        newest.rename(place.folder / "kept")
        newest.symlink_to(place.folder / "kept")
        return
    shutil.rmtree(newest)
    if kind == "empty":
        newest.mkdir()
    elif kind == "file":
        newest.write_bytes(b"mine")
    else:
        elsewhere = place.folder.parent / "other"
        save_checkpoint(elsewhere, OTHER, place.good[2], trained(place.kind, 2).scalars(), keep=9)
        if kind == "other's":
            shutil.copytree(elsewhere / newest.name, newest)
        else:
            newest.symlink_to(elsewhere / newest.name)


def change_tensors(place: CheckpointLocation, chance: random.Random) -> None:
    tensors, scalars = place.parts()
    name = chance.choice(sorted(tensors))
    kind = chance.choice(("missing", "more", "shape", "type", "renamed", "none"))
    if kind == "missing":
        del tensors[name]
    elif kind == "more":
        tensors[f"{name}/more"] = tensors[name]
    elif kind == "shape":
        tensors[name] = torch.cat([tensors[name].reshape(-1)] * 2)
    elif kind == "type":
        whole = not tensors[name].is_floating_point()
        tensors[name] = tensors[name].to(torch.float64 if whole else torch.int32)
    elif kind == "renamed":
        tensors[f"{name}2"] = tensors.pop(name)
    else:
        tensors.clear()
    place.seal(tensors, scalars)


def change_scalars(place: CheckpointLocation, chance: random.Random) -> None:
    tensors, scalars = place.parts()
    name = chance.choice(sorted(scalars))
    wrong: list[Any] = [None, "x", -1, float("nan"), float("inf"), [], {}, True, 10**400, 0.5]
    if name == "loss_scale" and chance.random() < 0.7:
        inside = chance.choice(sorted(scalars[name]))
        scalars[name][inside] = chance.choice([{}, None, "x", {"scale": 1.0}])
    elif chance.random() < 0.3 and name not in ("loss_scale",):
        del scalars[name]
    else:
        scalars[name] = chance.choice(wrong)
    place.seal(tensors, chance.choice([scalars, scalars, [scalars], None]))


def change_manifest(place: CheckpointLocation, chance: random.Random) -> None:
    file = place.newest() / "manifest.json"
    content = json.loads(file.read_bytes())
    wrong: list[Any] = [None, "x", -1, 1, 3, [], {}, True, float("nan"), 10**30, OTHER.as_json()]
    name = chance.choice(sorted(content))
    if name == "files" and chance.random() < 0.7:
        content["files"][chance.choice(FILES[:2])] = chance.choice([*wrong, {"bytes": 1}])
    elif chance.random() < 0.3:
        del content[name]
    else:
        content[name] = chance.choice(wrong)
    if chance.random() < 0.5:  # with a sum that is right
        content.pop("sha256", None)
        text = json.dumps(content, sort_keys=True).encode()
        content["sha256"] = hashlib.sha256(text).hexdigest()
    file.write_text(json.dumps(content))


def change_run(place: CheckpointLocation, chance: random.Random) -> None:
    tensors, scalars = place.parts()
    scalars["run"] = chance.choice([OTHER.as_json(), OURS.as_json(), None])
    place.seal(tensors, scalars, chance.choice([OTHER, OURS]))


DAMAGES: Final[list[Damage]] = [
    cut,
    flip,
    replace_file,
    replace_folder,
    change_tensors,
    change_scalars,
    change_manifest,
    change_run,
]


def contents(folder: Path) -> set[bytes | str]:
    """All that lies below a folder, by name or not."""
    found: set[bytes | str] = set()
    for path in folder.rglob("*"):
        if path.is_symlink():
            found.add(os.readlink(path))
        elif path.is_file():
            found.add(path.read_bytes())
    return found


def try_one(folder: Path, seed: int) -> str:
    """What came of one damaged place; asserts what must hold of each."""
    chance = random.Random(seed)
    place = CheckpointLocation(folder / "ours", kind=seed % 2)
    for damage in chance.sample(DAMAGES, k=chance.choice((1, 1, 1, 2))):
        if place.newest().is_dir() and all((place.newest() / name).is_file() for name in FILES):
            try:
                damage(place, chance)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # the first has left nothing for the second to change
    before, elsewhere = contents(place.folder), contents(folder / "other")
    came = take_up(place)
    assert contents(place.folder) == before, "reading changed something"
    go_on(place, before)
    assert contents(folder / "other") == elsewhere, "another run was changed"
    return came


def take_up(place: CheckpointLocation) -> str:
    state, said = new_state(place.kind), list[str]()
    try:
        found = load_newest(place.folder, OURS, said.append)
        assert found is not None
        state.restore(*found)
    except DiptychError as error:
        return type(error).__name__ if len(str(error)) > 40 else f"too short: {error}"
    ours, good = state.tensors(), place.good[state.step]
    assert ours.keys() == good.keys()
    assert all(torch.equal(value, good[name]) for name, value in ours.items())
    return f"step {state.step}"


def go_on(place: CheckpointLocation, before: set[bytes | str]) -> None:
    """The run comes to the damaged step again."""
    whose = origins_in(place)
    try:
        scalars = trained(place.kind, 2).scalars()
        save_checkpoint(place.folder, OURS, place.good[2], scalars, keep=1)
    except ForeignCheckpoint:
        assert contents(place.folder) == before, "a refused write changed something"
        return
    assert "foreign" not in whose
    found = load_newest(place.folder, OURS, print)
    assert found is not None
    assert found[1]["step"] == 2
    if "unknown" in whose:  # it may be anyone's
        assert any(path.name.startswith("unknown-") for path in place.folder.iterdir())


def origins_in(place: CheckpointLocation) -> set[str]:
    from diptych.checkpoints.save_and_load import origins

    return {
        "unknown" if origin.is_unknown else "own" if origin.is_of(OURS) else "foreign"
        for origin in origins(place.folder).values()
    }


def try_many(folder: Path, seeds: range) -> dict[str, int]:
    outcomes = dict[str, int]()
    for seed in seeds:
        one = folder / str(seed)
        one.mkdir()
        try:
            came = try_one(one, seed)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        outcomes[came] = outcomes.get(came, 0) + 1
        shutil.rmtree(one)
    return outcomes


@pytest.mark.slow
def test_a_few_hundred(tmp_path: Path) -> None:
    outcomes = try_many(tmp_path, range(150))
    assert outcomes.keys() == {"step 1", "step 2", "DamagedCheckpoint"}
    assert min(outcomes.values()) > 5


@pytest.mark.slow
def test_thousands(tmp_path: Path) -> None:
    assert sum(try_many(tmp_path, range(150, 3300)).values()) == 3150


@pytest.mark.parametrize("name", FILES)
def test_cut_at_every_byte(name: str, tmp_path: Path) -> None:
    place = CheckpointLocation(tmp_path / "ours", kind=1)
    file = place.newest() / name
    data = file.read_bytes()
    for length in range(0, len(data), max(1, len(data) // 150)):
        file.write_bytes(data[:length])
        assert take_up(place) == "step 1"


@pytest.mark.parametrize(("number", "age"), [(2, "an older"), (4, "a newer")])
def test_another_format_is_named_and_left(number: int, age: str, tmp_path: Path) -> None:
    place = CheckpointLocation(tmp_path / "ours", kind=1)
    for step in (1, 2):
        file = place.folder / f"step-00000000{step}" / "manifest.json"
        content = json.loads(file.read_bytes())
        file.write_text(json.dumps({**content, "format": number}))
    before = contents(place.folder)
    words = rf"not of this run, .*of {age} version of diptych \(format {number}; this one reads 3\)"
    with pytest.raises(ForeignCheckpoint, match=words):
        load_newest(place.folder, OURS, print)
    with pytest.raises(ForeignCheckpoint, match=words):
        save_checkpoint(place.folder, OURS, place.good[2], trained(place.kind, 2).scalars(), keep=1)
    assert contents(place.folder) == before


@pytest.mark.parametrize(
    "wrong",
    [
        None,
        [],
        {"scaler": None, "skipped_steps": 0},
        {"scaler": {}, "skipped_steps": 0},
        {"skipped_steps": 0},
        {
            "scaler": dict.fromkeys(LossScale(enabled=True).scalars()["scaler"], 10**400),
            "skipped_steps": 0,
        },
    ],
)
def test_a_scale_of_the_loss_that_is_none(wrong: object, tmp_path: Path) -> None:
    place = CheckpointLocation(tmp_path / "ours", kind=0)
    tensors, scalars = place.parts()
    place.seal(tensors, {**scalars, "loss_scale": wrong})
    assert take_up(place) == "DamagedCheckpoint"


@pytest.mark.parametrize("seconds", [10**400, -1, "x", None, float("nan"), True])
def test_times_that_are_none(seconds: object, tmp_path: Path) -> None:
    place = CheckpointLocation(tmp_path / "ours", kind=1)
    tensors, scalars = place.parts()
    place.seal(tensors, {**scalars, "seconds": seconds})
    assert take_up(place) == "step 1"


def test_a_full_disk_takes_nothing_of_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pruning, and making room, count a run's own only, also where others came in meanwhile."""
    from diptych.checkpoints import save_and_load as module

    place = CheckpointLocation(tmp_path / "ours", kind=1)
    for step in (3, 4, 5):
        state = trained(1, step)
        save_checkpoint(tmp_path / "other", OTHER, state.tensors(), state.scalars(), keep=9)
    shutil.copytree(tmp_path / "other", place.folder, dirs_exist_ok=True)
    monkeypatch.setattr(module, "refuse_foreign_checkpoints", lambda *_: None)
    state = trained(1, 6)
    save_checkpoint(place.folder, OURS, state.tensors(), state.scalars(), keep=1)
    assert sorted(path.name[-1] for path in place.folder.iterdir()) == ["3", "4", "5", "6"]
