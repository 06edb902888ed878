"""Listings from anywhere open alike; a text file lists paths."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conftest import open_folder
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.collection import CompactNames
from diptych.images.listing import Listing, open_listing
from diptych.images.open import open_images
from diptych.images.sources.image_files import labels_from_folders
from diptych.images.sources.lists import find_list


def png(color: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (color, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def numbered(count: int) -> Listing:
    """Image i is of colour i and class i % 3; every tenth cannot be read."""

    def read(index: int) -> bytes:
        if index % 10 == 9:
            raise UnreadableImage("not today")
        return png(index)

    return Listing(
        origin="memory",
        names=[f"image {index}" for index in range(count)],
        read=read,
        labels=np.arange(count) % 3,
        classes=("a", "b", "c"),
    )


def test_what_is_kept_stays_together(executor: ThreadPoolExecutor) -> None:
    cases: list[dict[str, Any]] = [{}, {"cache": "none"}, {"limit": 33}]
    for options in cases:
        config = ImagesConfig(**options)
        found = open_listing(numbered(100), config, executor)
        assert len(found) + len(found.skipped) == (config.limit or 100)
        assert isinstance(found.names, CompactNames)
        assert found.labels is not None
        batch = found.pixels.gather(np.arange(len(found)))
        for row, name in enumerate(found.names):
            number = int(name.split()[1])
            assert batch.image(row)[0, 0, 0] == number
            assert found.classes[found.labels[row]] == "abc"[number % 3]
        assert all(one.reason == "not today" for one in found.skipped)


def test_progress_is_told(executor: ThreadPoolExecutor) -> None:
    told: list[tuple[int, int]] = []
    open_listing(
        numbered(600), ImagesConfig(), executor, lambda done, total: told.append((done, total))
    )
    assert told == [(256, 600), (512, 600), (600, 600)]


def test_labels_hold_where_two_classes_occur(executor: ThreadPoolExecutor) -> None:
    listing = numbered(9)
    assert listing.labels is not None
    partly = replace(listing, labels=np.where(np.arange(9) == 4, -1, listing.labels))
    found = open_listing(partly, ImagesConfig(), executor)
    assert found.labels is not None
    assert found.labels.tolist() == partly.labels.tolist()  # type: ignore[union-attr]
    alike = replace(listing, labels=np.zeros(9, dtype=np.int64))
    assert open_listing(alike, ImagesConfig(), executor).classes == ()
    two = replace(listing, labels=np.arange(9) % 2 * 2)
    found = open_listing(two, ImagesConfig(), executor)
    assert found.classes == ("a", "c")
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1] * 4 + [0]


def test_labels_from_folders() -> None:
    labels, classes = labels_from_folders(["b/1.png", "a/x/1.png", "loose.png", "b/2.png"])
    assert classes == ("a", "b")
    assert labels is not None
    assert labels.tolist() == [1, 0, -1, 1]
    assert labels_from_folders(["a/1.png", "2.png"]) == (None, ())


def test_an_empty_listing_is_refused(executor: ThreadPoolExecutor) -> None:
    with pytest.raises(ImagesError, match="no images in memory"):
        open_listing(numbered(0), ImagesConfig(), executor)


def test_a_file_that_only_a_listing_without_stamps_could_keep(
    executor: ThreadPoolExecutor,
) -> None:
    found = open_listing(numbered(9), ImagesConfig(cache="file"), executor)
    assert "no file" in found.remarks[0]


def test_a_text_file_lists_paths(class_folder: Path, executor: ThreadPoolExecutor) -> None:
    whole = open_folder(class_folder, ImagesConfig(), executor)
    absolute = class_folder / "class2" / "000.png"
    lines = [
        b"\xef\xbb\xbf# three images, one of them twice",
        b"",
        b"images/class1/003.png\r",
        b"  images/class0/001.png  ",
        b"   # another comment",
        b"images/class1/003.png",
        str(absolute).encode(),
    ]
    text = class_folder.parent / "list.txt"
    text.write_bytes(b"\n".join(lines))
    found = open_images(ImagesConfig(path=str(text)), executor).train
    wanted = ["class1/003.png", "class0/001.png", "class1/003.png", "class2/000.png"]
    assert [name.partition("images/")[2] for name in found.names] == wanted
    assert found.labels is None
    batch = found.pixels.gather(np.arange(4))
    for place, name in enumerate(wanted):
        row = list(whole.names).index(name)
        expected = whole.pixels.gather(np.array([row])).image(0)
        assert np.array_equal(batch.image(place), expected)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"# nothing\n\n", "lists no images"),
        (b"a.png\n" + b"x" * 10_000, "line 2 is no path"),
        (b"a.png\nb\0.png", "line 2 is no path"),
    ],
)
def test_other_text_files_are_refused(data: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(ImagesError, match=words):
        find_list(str(tmp_path / "a.txt"), ImagesConfig())


def test_missing_files_of_a_list_are_listed(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    for number in range(19):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    names = [f"{number}.png" for number in range(20)]
    (tmp_path / "a.txt").write_text("\n".join(names))
    found = open_images(ImagesConfig(path=str(tmp_path / "a.txt")), executor).train
    assert len(found) == 19
    assert [(one.name, one.reason) for one in found.skipped] == [
        ("19.png", "No such file or directory")
    ]
