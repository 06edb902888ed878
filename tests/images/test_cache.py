"""Decoded images are kept where there is room, and no pixel depends on where it was kept."""

import io
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

from conftest import open_folder
from diptych.config.data import ImagesConfig
from diptych.images import listing, pixels
from diptych.images.codecs.decode import decode_bytes
from diptych.images.collection import ImageSet
from diptych.images.open import open_images
from diptych.images.pixels import DecodedPixels, KeptPixels, shared_pixels


@pytest.fixture
def config(tmp_path: Path) -> ImagesConfig:
    return ImagesConfig(cache="file", cache_folder=str(tmp_path / "kept"), max_unreadable_share=0.2)


@pytest.fixture
def folder(class_folder: Path, rng: np.random.Generator) -> Path:
    """The class folders with an image that cannot be read, one of another size, and two JPEGs."""
    (class_folder / "class0" / "bad.png").write_bytes(b"no picture")
    Image.new("RGB", (9, 5), "red").save(class_folder / "class1" / "odd.png")
    for number, size in enumerate([(96, 64), (101, 133)]):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(noise).save(class_folder / "class1" / f"large{number}.jpg")
    return class_folder


def everything(images: ImageSet) -> NDArray[np.uint8 | np.uint16]:
    gathered = images.pixels.gather(np.arange(len(images)))
    return np.concatenate([gathered.image(i).reshape(-1) for i in range(len(images))])


def the_file(config: ImagesConfig) -> Path:
    assert config.cache_folder is not None
    (found,) = Path(config.cache_folder).glob("*.pixels")
    return found


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever the pixels of an image are decoded to be used."""
    seen: list[int] = []
    original = decode_bytes

    def counted(*arguments: object) -> object:
        seen.append(1)
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(listing, "decode_bytes", counted)
    return seen


FORMS: list[dict[str, object]] = [
    {},
    {"color": "gray"},
    {"bits": 16},
    {"limit": 20},
    {"decoded_side": 30},
]


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_equal_wherever_they_are_kept(
    form: dict[str, object], folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    config = replace(config, **form)  # type: ignore[arg-type]
    wanted = open_folder(folder, replace(config, cache="none"), executor)
    assert isinstance(wanted.pixels, DecodedPixels)
    for kept in ("memory", "file", "auto", "file"):
        found = open_folder(folder, replace(config, cache=kept), executor)
        assert isinstance(found.pixels, KeptPixels)
        assert found.fingerprint() == wanted.fingerprint()
        assert found.skipped == wanted.skipped
        for _ in range(2):  # at the first use, and from where it is kept
            assert np.array_equal(everything(found), everything(wanted))
        backwards = np.arange(len(found))[::-1]
        last, first = found.pixels.gather(backwards), wanted.pixels.gather(backwards)
        assert all(np.array_equal(last.image(i), first.image(i)) for i in range(len(found)))


def test_a_pixel_does_not_depend_on_its_siblings(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    """What fits into memory was once decoded in full, and what did not was not."""
    config = replace(config, cache="auto", decoded_side=30)
    alone = folder.parent / "alone"
    alone.mkdir()
    data = (folder / "class1" / "large1.jpg").read_bytes()
    (alone / "large1.jpg").write_bytes(data)
    few = open_folder(alone, config, executor)
    many = open_folder(folder, replace(config, cache_megabytes=0), executor)
    place = list(many.names).index("class1/large1.jpg")
    pixels = few.pixels.gather(np.array([0])).image(0)
    assert np.array_equal(pixels, many.pixels.gather(np.array([place])).image(0))
    oracle = Image.open(io.BytesIO(data))
    oracle.draft("RGB", (44, 34))  # libjpeg's own reduction by three, that is two, of 133 x 101
    assert pixels.shape[:2] == (oracle.height, oracle.width) == (51, 67)


def test_an_image_is_decoded_once_and_by_one_of_many(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor, decodes: list[int]
) -> None:
    for kept in ("file", "memory"):
        decodes.clear()
        found = open_folder(folder, replace(config, cache=kept), executor)
        assert not decodes
        everything(found)
        everything(found)
        assert len(decodes) == len(found)
    decodes.clear()
    everything(open_folder(folder, config, executor))
    assert not decodes  # as the file holds all


def test_a_set_that_is_opened_again_meanwhile_is_not_decoded_again(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor, decodes: list[int]
) -> None:
    memory = replace(config, cache="memory")
    with shared_pixels():
        first = open_folder(folder, memory, executor)
        everything(first)
        decodes.clear()
        again = open_folder(folder, memory, executor)
        assert np.array_equal(everything(again), everything(first))
        assert not decodes

        def decoded(side: int | None) -> int:
            decodes.clear()
            everything(open_folder(folder, replace(memory, decoded_side=side), executor))
            return len(decodes)

        # Four are held; of more, those that were not opened for the longest are let go.
        assert [decoded(side) for side in (30, 29, 28)] == 3 * [len(first)]
        assert decoded(None) == 0
        assert decoded(27) == len(first)
        assert decoded(None) == 0
        assert decoded(30) == len(first)
        # Other bytes under the same name are other pixels.
        name = "class1/odd.png"
        Image.fromarray(np.full((9, 9, 3), 7, dtype=np.uint8)).save(folder / name)
        changed = open_folder(folder, memory, executor)
        place = np.array([list(changed.names).index(name)])
        assert (changed.pixels.gather(place).image(0) == 7).all()
    decodes.clear()
    everything(open_folder(folder, memory, executor))
    assert decodes


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(bytes(data))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut off": lambda path: os.truncate(path, path.stat().st_size // 2),
    "cut off by a byte": lambda path: os.truncate(path, path.stat().st_size - 1),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "empty": lambda path: path.write_bytes(b""),
    "a pixel": lambda path: flip(path, -5000),
    "the content's hash": lambda path: flip(path, 3),
    "a checksum": lambda path: flip(path, 4096 + 9),
    "pixels that never came": lambda path: path.write_bytes(
        path.read_bytes()[:-4000] + bytes(4000)
    ),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_what_is_damaged_is_decoded_again(
    damage: Callable[[Path], object],
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    decodes: list[int],
) -> None:
    wanted = everything(open_folder(folder, config, executor))
    damage(the_file(config))
    decodes.clear()
    assert np.array_equal(everything(open_folder(folder, config, executor)), wanted)
    assert decodes
    decodes.clear()
    assert np.array_equal(everything(open_folder(folder, config, executor)), wanted)
    assert not decodes


def test_a_file_for_other_content_is_replaced(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    before = everything(open_folder(folder, config, executor))
    odd = folder / "class1" / "odd.png"
    Image.new("RGB", (9, 5), "blue").save(odd)
    os.utime(odd, ns=(0, 12345))
    after = everything(open_folder(folder, config, executor))
    assert not np.array_equal(before, after)
    assert the_file(config)


def _open(folder: Path, config: ImagesConfig) -> bytes:
    with ThreadPoolExecutor(2) as executor:
        return everything(open_folder(folder, config, executor)).tobytes()


@pytest.mark.slow
def test_processes_at_once_do_not_break_each_other(
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
    assert config.cache_folder is not None
    auto = replace(config, cache="auto")
    assert isinstance(open_folder(folder, auto, executor).pixels, KeptPixels)
    assert not list(Path(config.cache_folder).glob("*.pixels"))
    small = replace(auto, cache_megabytes=0)
    assert isinstance(open_folder(folder, small, executor).pixels, KeptPixels)
    the_file(config).unlink()
    monkeypatch.setattr(pixels, "SMALL_BYTES", 1000)
    assert isinstance(open_folder(folder, small, executor).pixels, DecodedPixels)
    assert not list(Path(config.cache_folder).glob("*.pixels"))


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
    assert not list(Path(config.cache_folder or "").glob("*.pixels"))


def test_a_full_disk_is_survived(
    folder: Path,
    config: ImagesConfig,
    executor: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    found = open_folder(folder, config, executor)
    assert isinstance(found.pixels, DecodedPixels)
    assert "No space left on device" in found.remarks[0]
    assert len(everything(found))
    left = [path.suffix for path in Path(config.cache_folder or "").iterdir()]
    assert not {".pixels", ".aside"} & set(left)


def test_a_folder_that_cannot_be_made_is_survived(
    folder: Path, tmp_path: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "occupied").write_text("a file")
    found = open_folder(folder, replace(config, cache_folder=str(tmp_path / "occupied")), executor)
    assert isinstance(found.pixels, DecodedPixels)
    assert "could not be kept" in found.remarks[0]
    assert "could not be written" in found.remarks[1]


def test_a_run_that_resumes_on_a_fuller_disk_sees_the_same_pixels(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    config = replace(config, decoded_side=30)
    roomy = everything(open_folder(folder, config, executor))
    the_file(config).unlink()
    full = open_folder(folder, replace(config, cache_file_megabytes=0), executor)
    assert isinstance(full.pixels, DecodedPixels)
    assert np.array_equal(everything(full), roomy)


def test_what_a_killed_process_left_is_used_up(
    folder: Path, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    open_folder(folder, config, executor)
    there = the_file(config)
    left = there.rename(there.with_name(f".{there.name}.01234567.aside"))
    open_folder(folder, config, executor)
    assert the_file(config)
    assert not left.exists()


def test_home_is_where_caches_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert pixels.cache_folder(ImagesConfig()) == Path("/somewhere/diptych")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/someone")
    assert pixels.cache_folder(ImagesConfig()) == Path("/home/someone/.cache/diptych")
