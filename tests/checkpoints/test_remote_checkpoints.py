"""Checkpoints behind a URL: on the file system in memory, and on one that fails when told to."""

import json
from collections.abc import Iterator
from typing import Any, ClassVar

import fsspec
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

from diptych.checkpoints.save_and_load import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from diptych.checkpoints.stores import open_store
from diptych.config.run import CheckpointConfig
from diptych.errors import (
    ConfigError,
    DamagedCheckpoint,
    ForeignCheckpoint,
    UnreachableFolder,
)
from diptych.images.sources import remote as connection
from diptych.runs.folder import Identity

URL = "moody://bucket/run/checkpoints"
FOLDER = "/bucket/run/checkpoints"

RUN = Identity("0" * 32, "runs/test")


class Moody(MemoryFileSystem):  # type: ignore[misc]  # fsspec has no types
    """Memory that fails, or keeps half of what it is sent, as a test says."""

    protocol = "moody"
    store: ClassVar[dict[str, Any]] = {}  # apart from that of memory://
    pseudo_dirs: ClassVar[list[str]] = [""]
    fails: frozenset[str] = frozenset()
    halves: frozenset[str] = frozenset()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(MemoryFileSystem._strip_protocol(path.removeprefix("moody://")))

    def _fail(self, what: str, path: str) -> None:
        if what in Moody.fails or f"{what} {path.rpartition('/')[2]}" in Moody.fails:
            raise ConnectionError(f"no answer to {what}")

    def ls(self, path: str, detail: bool = True, **kwargs: Any) -> Any:
        self._fail("ls", path)
        return super().ls(path, detail=detail, **kwargs)

    def _open(self, path: str, mode: str = "rb", **kwargs: Any) -> Any:
        self._fail(mode, path)
        file = super()._open(path, mode=mode, **kwargs)
        if mode == "wb" and path.rpartition("/")[2] in Moody.halves:
            write = file.write
            file.write = lambda data: write(bytes(data)[: len(data) // 2])
        return file


@pytest.fixture(autouse=True)
def moody(monkeypatch: pytest.MonkeyPatch) -> Iterator[Moody]:
    fsspec.register_implementation("moody", Moody, clobber=True)
    monkeypatch.setattr(connection, "_PAUSES", (0.0,))
    Moody.store.clear()
    Moody.pseudo_dirs[:] = [""]
    Moody.fails = Moody.halves = frozenset()
    yield fsspec.filesystem("moody")
    Moody.fails = Moody.halves = frozenset()


def save(step: int, keep: int = 2, url: str = URL) -> str:
    tensors = {"a": torch.full((50,), float(step)), "b": torch.arange(3)}
    return save_checkpoint(url, RUN, tensors, {"step": step, "seconds": 1.5}, keep=keep)


def newest() -> tuple[int, list[str]]:
    said: list[str] = []
    found = load_newest(URL, RUN, said.append)
    assert found is not None
    tensors, scalars = found
    assert torch.equal(tensors["a"], torch.full((50,), float(scalars["step"])))
    return scalars["step"], said


@pytest.mark.parametrize("url", [URL, "moody://bucket", "memory://one/two/"])
def test_what_is_loaded_is_what_was_saved(url: str) -> None:
    place = save(1234567890, url=url)
    assert place == f"{url.rstrip('/')}/step-1234567890"
    assert list_checkpoints(url) == [place]
    tensors, scalars = load_checkpoint(place)
    assert scalars == {"step": 1234567890, "seconds": 1.5}
    assert torch.equal(tensors["b"], torch.arange(3))
    open_store(url).remove("step-1234567890")
    assert list_checkpoints(url) == []


def test_the_last_few_are_kept() -> None:
    for step in (1, 2, 30, 4000, 1_000_000_000):  # the last name is longer than the others
        save(step, keep=2)
    assert list_checkpoints(URL) == [f"{URL}/step-1000000000", f"{URL}/step-000004000"]
    assert not [name for name in Moody.store if "step-000000030" in name]


def test_nothing_there_is_no_error() -> None:
    assert load_newest(URL, RUN, print) is None


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "lengthen"])
def test_a_damaged_newest_one_gives_way(damage: str, name: str, moody: Moody) -> None:
    save(1)
    save(2)
    path = f"{FOLDER}/step-000000002/{name}"
    data = bytearray(moody.cat_file(path))
    if damage == "remove":
        moody.rm_file(path)
    elif damage == "flip":
        data[len(data) * 2 // 3] ^= 1
        moody.pipe_file(path, bytes(data))
    else:
        longer = bytes(data) + b"more" * 50_000
        moody.pipe_file(path, bytes(data[: len(data) // 2]) if damage == "truncate" else longer)
    step, said = newest()
    assert step == 1
    # Without a manifest it is none; otherwise people are told.
    assert bool(said) == (damage != "remove" or name != "manifest.json")
    save(2)
    assert newest() == (2, [])


def test_no_more_is_fetched_than_the_manifest_says(moody: Moody) -> None:
    save(1)
    moody.pipe_file(f"{FOLDER}/step-000000001/tensors.safetensors", bytes(3_000_000))
    size = json.loads(moody.cat_file(f"{FOLDER}/step-000000001/manifest.json"))["files"][
        "tensors.safetensors"
    ]["bytes"]
    with open_store(URL).local_copy("step-000000001", "tensors.safetensors", size) as copy:
        assert copy.stat().st_size == size + 1
    assert not copy.exists()


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "manifest.json"])
def test_a_broken_write_leaves_no_checkpoint(file: str, moody: Moody) -> None:
    save(1)
    Moody.fails = frozenset({f"wb {file}"})
    with pytest.raises(UnreachableFolder, match="no answer to wb"):
        save(2)
    assert newest() == (1, [])
    Moody.fails, Moody.halves = frozenset(), frozenset({file})
    with pytest.raises(UnreachableFolder, match="bytes there"):
        save(2)
    Moody.halves = frozenset()
    # Half a manifest may be listed; it is found out.
    assert newest()[0] == 1
    save(3, keep=9)
    assert list_checkpoints(URL)[0] == f"{URL}/step-000000003"
    if file != "manifest.json":
        assert not [name for name in Moody.store if "step-000000002" in name]  # swept


@pytest.mark.parametrize("what", ["ls", "rb tensors.safetensors", "rb manifest.json"])
def test_a_server_that_fails_is_not_taken_for_damage(what: str) -> None:
    save(1)
    save(2)
    Moody.fails = frozenset({what})
    with pytest.raises(UnreachableFolder, match=r"moody://.*no answer.*Check the address"):
        load_newest(URL, RUN, print)
    Moody.fails = frozenset()
    assert newest() == (2, [])


def test_none_good_is_an_error(moody: Moody) -> None:
    save(1)
    moody.rm_file(f"{FOLDER}/step-000000001/state.json")
    with pytest.raises(DamagedCheckpoint, match="none of the 1 checkpoints in moody://"):
        load_newest(URL, RUN, lambda _: None)


@pytest.mark.parametrize("folder", ["https://host/x", "file:///x", "simplecache::s3://x", ""])
def test_places_that_cannot_be_written_are_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match=r"checkpoint\.folder must be a path, or a URL"):
        CheckpointConfig(folder=folder)
    with pytest.raises(ConfigError, match=r"checkpoint\.folder: nothing://x cannot be opened"):
        open_store("nothing://x")


def test_another_runs_are_refused_and_kept(moody: Moody) -> None:
    other = Identity("1" * 32, "runs/other")
    save(1)
    scalars = {"step": 2, "seconds": 1.5}
    with pytest.raises(ForeignCheckpoint, match=r"run, 11111111 .*step-000000001 of run 00000000"):
        save_checkpoint(URL, other, {"a": torch.ones(2)}, scalars, keep=1)
    with pytest.raises(ForeignCheckpoint, match="not of this run"):
        load_newest(URL, other, print)
    assert list_checkpoints(URL) == [f"{URL}/step-000000001"]
    assert newest() == (1, [])


def test_what_does_not_say_whose_it_is_is_set_aside(moody: Moody) -> None:
    save(1)
    save(2)
    for name in ("manifest.json", "state.json"):
        moody.pipe_file(f"{FOLDER}/step-000000002/{name}", b"?")
    assert newest()[0] == 1
    save(2)
    assert newest() == (2, [])
    assert moody.cat_file(f"{FOLDER}/unknown-1-step-000000002/state.json") == b"?"
    for name in ("manifest.json", "state.json"):
        moody.pipe_file(f"{FOLDER}/step-000000002/{name}", b"?")
    save(2)
    assert moody.exists(f"{FOLDER}/unknown-2-step-000000002/tensors.safetensors")


def test_an_old_format_behind_a_url_is_named(moody: Moody) -> None:
    save(1)
    file = f"{FOLDER}/step-000000001/manifest.json"
    moody.pipe_file(file, json.dumps({"format": 1, "files": {}}).encode())
    with pytest.raises(ForeignCheckpoint, match="an older version of diptych"):
        save(2)
    with pytest.raises(ForeignCheckpoint, match="an older version of diptych"):
        load_newest(URL, RUN, print)
