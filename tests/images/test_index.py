"""A set is looked at once: what is known of its files is kept, and believed only while it holds."""

import multiprocessing
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import open_folder
from diptych.config.data import ImagesConfig
from diptych.errors import UnreadableImage
from diptych.images import index
from diptych.images.codecs.decode import decode_bytes, read_bytes
from diptych.images.collection import CompactNames, ImageSet


@pytest.fixture
def config(tmp_path: Path) -> ImagesConfig:
    return ImagesConfig(cache_folder=str(tmp_path / "kept"), max_unreadable_share=0.2)


@pytest.fixture
def folder(class_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The class folders, one file of no use among them, changed long enough ago to be believed."""
    (class_folder / "class0" / "bad.png").write_bytes(b"no picture")
    monkeypatch.setattr(index, "_DOUBT_NANOSECONDS", 0)
    time.sleep(0.02)
    return class_folder


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever a file is decoded to see whether it can be used."""
    seen: list[int] = []
    original = decode_bytes

    def counted(*arguments: object) -> object:
        seen.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(index, "decode_bytes", counted)
    return seen


def the_file(config: ImagesConfig) -> Path:
    (found,) = Path(config.cache_folder or "").glob("*.index")
    return found


def known(images: ImageSet) -> list[object]:
    assert images.checksums is not None
    assert images.labels is not None
    return [
        *images.names,
        *images.skipped,
        *images.heights.tolist(),
        *images.widths.tolist(),
        *images.labels.tolist(),
        *images.checksums.tolist(),
    ]


@pytest.mark.parametrize(
    "form", [{}, {"color": "gray"}, {"bits": 16}, {"limit": 20}, {"color": "raw"}]
)
def test_a_set_is_opened_again_without_decoding(
    form: dict[str, object],
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    looks: list[int],
) -> None:
    config = replace(config, **form)  # type: ignore[arg-type]
    first = open_folder(folder, config, executor)
    assert len(looks) == len(first) + len(first.skipped)
    looks.clear()
    assert known(open_folder(folder, config, executor)) == known(first)
    assert known(open_folder(folder, replace(config, cache="none"), executor)) == known(first)
    assert not looks


def test_checksums_are_of_the_bytes(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    found = open_folder(folder, config, executor)
    assert found.checksums is not None
    for name, sums in zip(found.names, found.checksums, strict=True):
        wanted = blake2b((folder / name).read_bytes(), digest_size=16).digest()
        assert sums.astype("<u8").tobytes() == wanted


def _replace(folder: Path) -> None:
    """Another image of the same size in bytes, and with the old time of change."""
    path = folder / "class1" / "000.png"
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # of the end marker's checksum
    path.write_bytes(bytes(data))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], int]] = {
    "one more": (lambda folder: Image.new("RGB", (9, 9)).save(folder / "class0" / "new.png"), 1),
    "one less": (lambda folder: next((folder / "class0").glob("0*.png")).unlink(), 0),
    "touched": (lambda folder: os.utime(next((folder / "class0").glob("0*.png"))), 1),
    "mended": (lambda folder: Image.new("RGB", (9, 9)).save(folder / "class0" / "bad.png"), 1),
    "other bytes of the same size and time": (_replace, 1),
    "renamed": (
        lambda folder: next((folder / "class0").glob("0*.png")).rename(folder / "x.png"),
        1,
    ),
    "a folder renamed": (lambda folder: (folder / "class1").rename(folder / "class9"), 16),
}


@pytest.mark.parametrize(("change", "count"), CHANGES.values(), ids=CHANGES)
def test_only_what_changed_is_looked_at(
    change: Callable[[Path], object],
    count: int,
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    looks: list[int],
) -> None:
    open_folder(folder, config, executor)
    looks.clear()
    change(folder)
    found = open_folder(folder, config, executor)
    assert len(looks) == count
    fresh = replace(config, cache_folder=f"{config.cache_folder} 2")
    assert found.fingerprint() == open_folder(folder, fresh, executor).fingerprint()
    looks.clear()
    open_folder(folder, config, executor)
    assert not looks


def test_a_file_that_changed_within_a_tick_is_looked_at_again(
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    looks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second change within the tick would leave size and time as they were."""
    open_folder(folder, config, executor)
    monkeypatch.setattr(index, "_DOUBT_NANOSECONDS", 10**15)
    looks.clear()
    found = open_folder(folder, config, executor)
    assert len(looks) == len(found) + len(found.skipped)


def _become_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: path.write_bytes(b""),
    "a height": lambda path: path.write_bytes(path.read_bytes()[:-2000] + bytes(2000)),
    "a bit": lambda path: path.write_bytes(
        path.read_bytes()[:-999] + bytes([path.read_bytes()[-999] ^ 1]) + path.read_bytes()[-998:]
    ),
    "hostile": lambda path: path.write_bytes(b"\xff" * 8 + b"{}"),
    "a folder": _become_a_folder,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_index_is_thrown_away(
    damage: Callable[[Path], object],
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    looks: list[int],
) -> None:
    wanted = known(open_folder(folder, config, executor))
    damage(the_file(config))
    looks.clear()
    assert known(open_folder(folder, config, executor)) == wanted
    assert looks


def _count(folder: Path, config: ImagesConfig) -> int:
    seen: list[int] = []
    index._DOUBT_NANOSECONDS = 0  # type: ignore[misc]
    with ThreadPoolExecutor(2) as executor:
        open_folder(folder, config, executor, lambda done, total: seen.append(total))
    return len(seen)


@pytest.mark.slow
def test_one_process_of_many_looks(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    with multiprocessing.get_context("forkserver").Pool(3) as pool:
        looked = pool.starmap(_count, [(folder, config)] * 3)
    assert sorted(looked) == [0, 0, 1]


def test_parts_of_one_set_do_not_evict_each_other(config: ImagesConfig) -> None:
    paths = {index.index_path("set", part, config) for part in ("train", "test", "")}
    assert len(paths) == 3


def test_a_folder_that_cannot_be_written_is_said(
    folder: Path, tmp_path: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "occupied").write_text("a file")
    found = open_folder(folder, replace(config, cache_folder=str(tmp_path / "occupied")), executor)
    assert "could not be kept" in found.remarks[0]
    assert len(found)


def test_names_packed_and_compared(rng: np.random.Generator) -> None:
    names = [f"{number}\udcff" * int(rng.integers(1, 4)) for number in range(50)]
    whole, chosen = CompactNames.of(names), rng.permutation(50)
    some = whole.select(chosen)
    anew = CompactNames.of([names[place] for place in chosen.tolist()])
    assert some.same_as(anew)
    assert not some.same_as(whole)
    assert not anew.same_as(CompactNames.of([*anew[:49], "other"]))
    text, ends = some.packed()
    assert text == "".join(anew).encode(errors="surrogateescape")
    assert ends.tolist() == np.cumsum([len(os.fsencode(name)) for name in anew]).tolist()


def test_further_pages_are_counted(
    tmp_path: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    root = tmp_path / "stacks"
    root.mkdir()
    pages = [Image.new("L", (8, 8), shade) for shade in (0, 80, 160)]
    pages[0].save(root / "a.tif", save_all=True, append_images=pages[1:])
    pages[0].save(root / "b.gif", save_all=True, append_images=pages[1:2])
    pages[0].save(root / "c.png")
    found = open_folder(root, config, executor)
    assert found.pages is not None
    assert found.pages.tolist() == [3, 2, 1]
    assert found.select(np.array([2, 0])).pages.tolist() == [1, 3]  # type: ignore[union-attr]


def test_what_the_machine_lacked_is_not_held_against_a_file(
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    looks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A disk that fails once, or too little memory, leaves size and time as they are."""
    wanted = known(open_folder(folder, config, executor))
    (folder / "class0" / "000.png").touch()
    (folder / "class1" / "001.png").touch()
    time.sleep(0.02)

    def failing(path: str | Path) -> bytes:
        if str(path).endswith("000.png"):
            raise UnreadableImage("Input/output error")
        return read_bytes(path)

    def full(data: bytes, config: ImagesConfig) -> object:
        if data == (folder / "class1" / "001.png").read_bytes():
            raise UnreadableImage("does not fit in memory") from MemoryError()
        return decode_bytes(data, config)

    with monkeypatch.context() as patch:
        patch.setattr("diptych.images.sources.image_files.read_bytes", failing)
        patch.setattr(index, "decode_bytes", full)
        assert len(open_folder(folder, config, executor).skipped) == 3
    assert known(open_folder(folder, config, executor)) == wanted


def test_another_decoder_looks_anew(
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    looks: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = open_folder(folder, config, executor)
    looks.clear()
    monkeypatch.setattr(index, "decoders", lambda: "pillow 99")
    open_folder(folder, config, executor)
    assert len(looks) == len(found) + len(found.skipped)


def test_decoders_have_versions_where_nothing_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout in the path has no metadata, and what was laid beside it may have none either."""

    def only_pillow(package: str) -> str:
        if package == "pillow":
            return "12.0"
        raise PackageNotFoundError(package)

    monkeypatch.setattr(index, "version", only_pillow)
    index.decoders.cache_clear()
    try:
        found = index.decoders()
    finally:
        index.decoders.cache_clear()

    assert " diptych none imagecodecs none pillow 12.0 simplejpeg none " in found
