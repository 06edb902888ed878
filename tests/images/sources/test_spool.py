"""A spool gives back the bytes it was given, is used again, and is not believed when damaged."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from diptych.errors import ImagesError, UnreadableImage
from diptych.images.sources import parquet as spool
from diptych.images.sources.parquet import SpoolPlace, open_spool

IMAGES = [b"first", b"", b"third" * 100, b"x"]


class Counting:
    """Gives the images and counts how often it was asked."""

    def __init__(self, images: list[bytes] | None = None) -> None:
        self.asked, self.images = 0, IMAGES if images is None else images

    def __call__(self) -> Iterator[bytes | None]:
        self.asked += 1
        return iter(image or None for image in self.images)


@pytest.fixture
def place(tmp_path: Path) -> SpoolPlace:
    return SpoolPlace(tmp_path / "cache" / "a.spool", most_bytes=10_000, held_bytes=8)


def everything(encoded: spool.Encoded) -> list[bytes]:
    found = list[bytes]()
    for index in range(len(encoded)):
        try:
            found.append(encoded.read(index))
        except UnreadableImage:
            found.append(b"")
    return found


def test_what_was_spooled_comes_back_and_is_used_again(place: SpoolPlace) -> None:
    source = Counting()
    for _ in range(2):
        assert everything(open_spool(place, ["a", 1], source)) == IMAGES
    assert source.asked == 1
    assert sorted(os.listdir(place.file.parent)) == ["a.lock", "a.spool"]


def test_few_bytes_are_held(place: SpoolPlace) -> None:
    roomy = replace(place, held_bytes=10_000)
    assert everything(open_spool(roomy, 1, Counting())) == IMAGES
    assert not place.file.parent.exists()


def test_another_source_replaces_it_and_earlier_readers_go_on(place: SpoolPlace) -> None:
    earlier = open_spool(place, 1, Counting())
    other = Counting([b"quite another one", b"two"])
    assert everything(open_spool(place, 2, other)) == other.images
    assert everything(earlier) == IMAGES


@pytest.mark.parametrize("at", [-1, -9, -40, -120])
def test_a_spool_with_a_damaged_end_is_made_anew(place: SpoolPlace, at: int) -> None:
    open_spool(place, "s", Counting())
    data = bytearray(place.file.read_bytes())
    data[at] ^= 0xFF
    place.file.write_bytes(data)
    source = Counting()
    assert everything(open_spool(place, "s", source)) == IMAGES
    assert source.asked == 1


@pytest.mark.parametrize("kept", [0, 5, 16, 600])
def test_a_spool_cut_short_is_made_anew(place: SpoolPlace, kept: int) -> None:
    open_spool(place, "s", Counting())
    os.truncate(place.file, kept)
    source = Counting()
    assert everything(open_spool(place, "s", source)) == IMAGES
    assert source.asked == 1


def test_a_damaged_image_removes_the_spool(place: SpoolPlace) -> None:
    open_spool(place, "s", Counting())
    data = bytearray(place.file.read_bytes())
    data[20] ^= 1
    place.file.write_bytes(data)
    found = open_spool(place, "s", Counting([]))
    assert found.read(0) == b"first"
    with pytest.raises(ImagesError, match="was damaged and has been removed"):
        found.read(2)
    assert not place.file.exists()


def test_it_stays_within_its_bounds(place: SpoolPlace, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImagesError, match=r"images\.cache_file_megabytes = 0"):
        open_spool(replace(place, most_bytes=100), "s", Counting())
    assert os.listdir(place.file.parent) == ["a.lock"]
    full = type("Usage", (), {"free": 5 * 2**20})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(ImagesError, match=r"nearly full \(5 MB free\)"):
        open_spool(place, "s", Counting())


def test_a_place_that_cannot_be_written_is_named(place: SpoolPlace) -> None:
    place.file.parent.write_bytes(b"a file where the folder should be")
    with pytest.raises(ImagesError, match=r"images\.cache_folder"):
        open_spool(place, "s", Counting())


def test_two_at_once_agree(place: SpoolPlace) -> None:
    with ThreadPoolExecutor(4) as pool:
        opened = list(pool.map(lambda _: open_spool(place, "s", Counting()), range(8)))
    assert all(everything(one) == IMAGES for one in opened)
