"""Lists of folders: several roots as one set."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import Collection
from diptych.images.open import open_images


def fill(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8), (len(name) * 9, 7, 3)).save(root / name)


def opened(root: Path, text: str, executor: ThreadPoolExecutor) -> Collection:
    (root / "roots.txt").write_text(text)
    return open_images(ImagesConfig(path=str(root / "roots.txt")), executor)


def test_classes_of_several_folders_are_joined_by_name(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    fill(tmp_path, "a/cats/1.png", "a/loose.png", "b/cats/1.png", "b/dogs/2.png", "c.png")
    (tmp_path / "b/notes.md").write_text("x")
    found = opened(tmp_path, f"a\n{tmp_path / 'b'}\nc.png\n", executor)
    b = tmp_path / "b"
    names = ["a/cats/1.png", "a/loose.png", f"{b}/cats/1.png", f"{b}/dogs/2.png", "c.png"]
    assert list(found.train.names) == names
    assert found.train.classes == ("cats", "dogs")
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [0, -1, 0, 1, -1]
    assert np.array_equal(found.train.heights, [8] * 5)
    assert [one.name for one in found.left_out] == [f"{b}/notes.md"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a\na/cats\n", "a/cats and a, whose images it would take twice"),
        ("a\n./a\n", "twice"),
        ("a\nlink\n", "twice"),
        ("a\nparts\n", r"split into parts \(test, train\)"),
        ("a\nempty\n", "no images in .*empty"),
    ],
)
def test_unclear_lists_are_refused(
    text: str, words: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    fill(tmp_path, "a/cats/1.png", "parts/train/1.png", "parts/test/1.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("a")
    with pytest.raises(ImagesError, match=words):
        opened(tmp_path, text, executor)
