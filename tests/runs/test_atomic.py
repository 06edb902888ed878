"""What is written appears whole or not at all, whoever writes beside; failures leave nothing."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from diptych.runs.atomic import atomic_path, atomic_remove, atomic_write, remove_leftovers


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_its_folder_made(tmp_path: Path) -> None:
    file = tmp_path / "a" / "b.json"
    atomic_write(file, b"first")
    atomic_write(file, b"second")
    assert file.read_bytes() == b"second"
    assert names(file.parent) == ["b.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for text in ("first", "second"):
        with atomic_path(tmp_path / "a") as temporary:
            temporary.mkdir()
            (temporary / text).write_text(text)
            assert not (tmp_path / "a" / text).exists()
    assert names(tmp_path / "a") == ["second"]
    assert names(tmp_path) == ["a"]
    atomic_remove(tmp_path / "a")
    assert names(tmp_path) == []


@pytest.mark.parametrize("make", [Path.touch, Path.mkdir])
def test_an_error_leaves_what_was_there_and_nothing_else(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    make(tmp_path / "a")

    def interrupted() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            make(temporary)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert names(tmp_path) == ["a"]


def folder_of(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.mkdir()
        (temporary / "text").write_text(text)


@pytest.mark.parametrize("error", [OSError("no such luck"), KeyboardInterrupt()], ids=str)
def test_an_old_folder_stays_until_the_new_one_has_its_name(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder_of(tmp_path / "a", "old")

    def failing(*two: Path) -> None:
        raise error

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(type(error)):
        folder_of(tmp_path / "a", "new")
    assert (tmp_path / "a" / "text").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_the_only_copy_of_a_folder_is_no_leftover(tmp_path: Path) -> None:
    """A writer that is killed between its two renames leaves the old folder under another name."""
    folder_of(tmp_path / "a", "old")
    (tmp_path / "a").rename(tmp_path / ".a.01234567.replaced")
    remove_leftovers(tmp_path)
    remove_leftovers(tmp_path, "a")
    assert (tmp_path / ".a.01234567.replaced" / "text").read_text() == "old"
    folder_of(tmp_path / "a", "new")
    assert names(tmp_path) == ["a"]


def test_it_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list[str]()
    fsync, replace = os.fsync, os.replace

    def noted_fsync(one: int) -> None:
        events.append("sync")
        fsync(one)

    def noted_replace(*two: Path) -> None:
        events.append("name")
        replace(*two)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(os, "replace", noted_replace)
    atomic_write(tmp_path / "a", b"")
    assert events == ["sync", "name", "sync"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_an_error_of_the_disk_names_the_file(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        atomic_write(tmp_path / "a", b"")
    assert caught.value.filename == str(tmp_path / "a")
    assert names(tmp_path) == []


def test_an_error_without_a_number_keeps_its_words(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"^3 bytes came$"), atomic_path(tmp_path / "a"):
        raise OSError("3 bytes came")


def test_writers_of_one_file_do_not_mix_their_bytes(tmp_path: Path) -> None:
    texts = [bytes([65 + n]) * 200_000 for n in range(4)]

    def write(text: bytes) -> None:
        for _ in range(25):
            atomic_write(tmp_path / "a", text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    seen = set[bytes]()
    while any(thread.is_alive() for thread in threads):
        if (tmp_path / "a").exists():
            seen.add((tmp_path / "a").read_bytes())
    assert seen <= set(texts)
    assert names(tmp_path) == ["a"]


def test_what_killed_writers_left_goes_with_the_next_write_of_that_name(tmp_path: Path) -> None:
    (tmp_path / ".a.01234567.aside").write_text("half")
    (tmp_path / ".b.01234567.aside").mkdir()
    (tmp_path / ".hidden").touch()
    (tmp_path / ".a.json.01234567.aside").write_text("of another name")
    atomic_write(tmp_path / "a", b"")
    assert names(tmp_path) == [".a.json.01234567.aside", ".b.01234567.aside", ".hidden", "a"]
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [".hidden", "a"]
