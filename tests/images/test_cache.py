"""Decoded images are kept where they fit, and a file of them is believed only when it is whole."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diptych.configs import ImagesConfig
from diptych.images import cache, cache_file, listing
from diptych.images.collection import ImageSet
from diptych.images.decode import decode_bytes
from diptych.images.folder import open_folder
from diptych.images.pixels import DecodedPixels, HeldPixels
from diptych.images.sources import open_images


@pytest.fixture
def config(tmp_path: Path) -> ImagesConfig:
    return ImagesConfig(cache="file", cache_folder=str(tmp_path / "kept"), max_unreadable_share=0.2)


@pytest.fixture
def folder(class_folder: Path) -> Path:
    """The class folders with one image that cannot be read, and one of another size."""
    (class_folder / "class0" / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 5), "red").save(class_folder / "class1" / "odd.png")
    return class_folder


def everything(images: ImageSet) -> NDArray[np.uint8 | np.uint16]:
    gathered = images.pixels.gather(np.arange(len(images)))
    return np.concatenate([gathered.image(i).reshape(-1) for i in range(len(images))])


def the_file(config: ImagesConfig) -> Path:
    assert config.cache_folder is not None
    (found,) = Path(config.cache_folder).iterdir()
    return found


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one at each decode while a set is opened."""
    seen: list[int] = []
    original = decode_bytes

    def counted(*arguments: object) -> object:
        seen.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "decode_bytes", counted)
    return seen


@pytest.mark.parametrize("options", [{}, {"color": "gray"}, {"bits": 16}, {"limit": 20}])
def test_a_file_is_opened_without_decoding(
    options: dict[str, object],
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    decodes: list[int],
) -> None:
    config = replace(config, **options)  # type: ignore[arg-type]
    first = open_folder(folder, config, executor)
    count = len(decodes)
    again = open_folder(folder, config, executor)
    assert count == (20 if config.limit else 50)
    assert len(decodes) == count
    wanted = open_folder(folder, replace(config, cache="none"), executor)
    for found in (first, again):
        assert isinstance(found.pixels, HeldPixels)
        assert found.fingerprint() == wanted.fingerprint()
        assert found.skipped == wanted.skipped
        assert found.labels is not None
        assert wanted.labels is not None
        assert found.labels.tolist() == wanted.labels.tolist()
        assert np.array_equal(everything(found), everything(wanted))


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut off by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "a pixel": lambda path: flip(path, 5000),
    "the header": lambda path: flip(path, 3),
    "the table": lambda path: flip(path, -40),
    "hostile": lambda path: path.write_bytes(b'{"version": 1, "key": []}'.ljust(4096, b"\0")),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_made_anew(
    damage: Callable[[Path], object],
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    decodes: list[int],
) -> None:
    wanted = everything(open_folder(folder, config, executor))
    damage(the_file(config))
    count = len(decodes)
    assert np.array_equal(everything(open_folder(folder, config, executor)), wanted)
    assert len(decodes) == 2 * count
    open_folder(folder, config, executor)
    assert len(decodes) == 2 * count


def test_a_changed_image_is_noticed(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    before = everything(open_folder(folder, config, executor))
    odd = folder / "class1" / "odd.png"
    Image.new("RGB", (9, 5), "blue").save(odd)
    os.utime(odd, ns=(0, 12345))
    after = everything(open_folder(folder, config, executor))
    assert not np.array_equal(before, after)
    assert len(list(the_file(config).parent.iterdir())) == 1


def _open(folder: Path, config: ImagesConfig) -> bytes:
    with ThreadPoolExecutor(2) as executor:
        return everything(open_folder(folder, config, executor)).tobytes()


def test_two_processes_at_once_do_not_break_each_other(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    wanted = everything(open_folder(folder, replace(config, cache="none"), executor)).tobytes()
    with multiprocessing.get_context("forkserver").Pool(2) as pool:
        found = pool.starmap(_open, [(folder, config)] * 4)
    assert found == [wanted] * 4
    assert the_file(config).suffix == ".pixels"


def test_auto_takes_memory_then_a_file_for_small_images(
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    auto = replace(config, cache="auto")
    assert isinstance(open_folder(folder, auto, executor).pixels, HeldPixels)
    assert config.cache_folder is not None
    assert not Path(config.cache_folder).exists()
    small = replace(auto, cache_megabytes=0)
    wanted = everything(open_folder(folder, replace(config, cache="none"), executor))
    found = open_folder(folder, small, executor)
    assert isinstance(found.pixels, HeldPixels)
    assert np.array_equal(everything(found), wanted)
    the_file(config).unlink()
    monkeypatch.setattr(cache, "SMALL_BYTES", 1000)
    found = open_folder(folder, small, executor)
    assert isinstance(found.pixels, DecodedPixels)
    assert not list(Path(config.cache_folder).iterdir())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"cache": "memory", "cache_megabytes": 0}, "more memory than images.cache_megabytes = 0"),
        ({"cache_file_megabytes": 0}, "more than 0 megabytes on disk"),
    ],
)
def test_what_does_not_fit_is_decoded_and_said(
    options: dict[str, object],
    words: str,
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
) -> None:
    asked = replace(config, path=str(folder), **options)  # type: ignore[arg-type]
    found = open_images(asked, executor)
    assert isinstance(found.train.pixels, DecodedPixels)
    assert words in found.description
    kept = Path(config.cache_folder or "")
    assert not kept.exists() or not list(kept.iterdir())


@pytest.mark.parametrize("method", ["add", "finish"])
def test_a_full_disk_is_survived(
    method: str,
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_file.CacheWriter, method, full)
    found = open_folder(folder, config, executor)
    assert isinstance(found.pixels, DecodedPixels)
    assert "No space left on device" in found.remarks[0]
    assert len(everything(found))
    assert not list(Path(config.cache_folder or "").iterdir())


def test_a_folder_that_cannot_be_made_is_survived(
    folder: Path, tmp_path: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "occupied").write_text("a file")
    found = open_folder(folder, replace(config, cache_folder=str(tmp_path / "occupied")), executor)
    assert isinstance(found.pixels, DecodedPixels)
    assert "could not be written" in found.remarks[0]


def test_what_a_killed_process_left_is_removed(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    open_folder(folder, config, executor)
    whole = the_file(config)
    old, new = (whole.with_name(f"{whole.name}.{one}.part") for one in ("old", "new"))
    for left in (old, new):
        left.write_bytes(b"half")
    os.utime(old, (0, 0))
    whole.unlink()
    open_folder(folder, config, executor)
    assert (whole.exists(), old.exists(), new.exists()) == (True, False, True)


def test_home_is_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache.cache_folder(ImagesConfig()) == Path("/somewhere/diptych")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert cache.cache_folder(ImagesConfig()) == Path("/home/someone/.cache/diptych")
