"""Labels that a table gives, or none, in the place of those that the images come with."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.config.data import ImagesConfig
from diptych.errors import ConfigError
from diptych.images.open import open_images
from diptych.resolve import overrides_of

NAMES = ("2019/a.png", "2019/b.png", "2020/c.png", "2020/d.png", "e.png")


@pytest.fixture
def albums(tmp_path: Path) -> Path:
    folder = tmp_path / "albums"
    for number, name in enumerate(NAMES):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((8, 8, 3), 10 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
    return folder


def table(folder: Path, rows: dict[str, str], header: str = "name,kind") -> str:
    path = folder.parent / "kinds.csv"
    lines = [header, *(f'"{name}","{kind}"' for name, kind in rows.items())]
    path.write_text("\n".join(lines), encoding="utf-8")
    return str(path)


def labels(folder: Path, asked: str | None, executor: ThreadPoolExecutor) -> dict[str, str | None]:
    found = open_images(ImagesConfig(path=str(folder), labels=asked), executor).train
    if found.labels is None:
        return dict.fromkeys(found.names)
    numbers = found.labels.tolist()
    return {
        name: found.classes[number] if number >= 0 else None
        for name, number in zip(found.names, numbers, strict=True)
    }


def test_folders_are_classes_unless_it_is_said_otherwise(
    albums: Path, executor: ThreadPoolExecutor
) -> None:
    assert labels(albums, None, executor) == dict(
        zip(NAMES, ("2019", "2019", "2020", "2020", None), strict=True)
    )
    assert labels(albums, "none", executor) == dict.fromkeys(NAMES)


def test_a_table_gives_labels_to_the_images_that_it_names(
    albums: Path, executor: ThreadPoolExecutor
) -> None:
    rows = {"2019/a.png": "cat", "2020/c.png": "dog", "e.png": "cat", "2020/d.png": "", "x": "owl"}
    asked = f"{table(albums, rows)}:kind"
    wanted = dict(zip(NAMES, ("cat", None, "dog", None, "cat"), strict=True))
    assert labels(albums, asked, executor) == wanted


def test_parts_have_the_same_classes(albums: Path, executor: ThreadPoolExecutor) -> None:
    for part in ("train", "test"):
        (albums / part).mkdir()
    for part, names in (("train", NAMES[:3]), ("test", NAMES[3:])):
        for name in names:
            (albums / name).rename(albums / part / Path(name).name)
    rows = {"a.png": "cat", "b.png": "dog", "c.png": "cat", "d.png": "cat", "e.png": "dog"}
    config = ImagesConfig(path=str(albums), labels=f"{table(albums, rows)}:kind")
    found = open_images(config, executor)
    assert found.test is not None
    assert found.train.classes == ("cat", "dog")
    assert found.train.labels is not None
    assert found.train.labels.tolist() == [0, 1, 0]
    assert found.test.labels is not None
    assert [found.test.classes[number] for number in found.test.labels] == ["cat", "dog"]


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ({"a.png": "cat"}, "name,kind", "no label for any of the images, as '2019/a.png'"),
        ({"e.png": "cat"}, "file,kind", "needs the columns 'name' and 'kind'; it has file, kind"),
    ],
)
def test_a_table_of_other_images_is_refused(
    rows: Any, header: str, message: str, albums: Path, executor: ThreadPoolExecutor
) -> None:
    with pytest.raises(ConfigError, match=message):
        labels(albums, f"{table(albums, rows, header)}:kind", executor)


def test_what_is_no_table_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"labels .*`none` or FILE\.csv:COLUMN"):
        ImagesConfig(labels="kinds.csv")


def test_other_images_have_labels_of_their_own() -> None:
    config = ImagesConfig(path="a", limit=3, labels="none")
    assert config.at("a") == ImagesConfig(path="a", labels="none")
    assert config.at("b") == ImagesConfig(path="b")


def test_a_table_means_the_same_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"images": {"labels": "k.csv:kind", "group_by": "g.csv:who"}}
    (settings, _), *_ = overrides_of(given, None)
    assert settings["images"] == {
        "labels": f"{tmp_path / 'k.csv'}:kind",
        "group_by": f"{tmp_path / 'g.csv'}:who",
    }
