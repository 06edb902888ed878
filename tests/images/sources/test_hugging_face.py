"""Hugging Face data sets, saved or handed over, give what was put in and nothing from elsewhere."""

import json
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError, UnreadableImage
from diptych.images.collection import ImageSet
from diptych.images.sources.arrow import find_saved, is_saved, list_saved
from diptych.images.sources.handed_over import (
    find_handed_over,
    is_hugging_face,
    list_dataset,
    path_of,
)
from diptych.images.splits import open_located

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import datasets

datasets.disable_progress_bars()

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
CONFIG = ImagesConfig()
FEATURES = datasets.Features(
    {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cat"])}
)


def made(images: NDArray[np.uint8], labels: Any, paths: bool = False) -> Any:
    rows = [
        {"bytes": encoded(image, "PNG"), "path": f"{n}.png" if paths else None}
        for n, image in enumerate(images)
    ]
    return datasets.Dataset.from_dict({"image": rows, "label": list(labels)}, features=FEATURES)


def pixels_of(found: ImageSet) -> NDArray[Any]:
    batch = found.pixels.gather(np.arange(len(found)))
    return np.stack([batch.image(n) for n in range(len(found))])


def test_a_saved_data_set_is_read(
    tmp_path: Path, stripes: Stripes, executor: ThreadPoolExecutor
) -> None:
    images, labels = stripes(8)
    made(images, labels, paths=True).save_to_disk(tmp_path / "saved", num_shards=3)
    assert is_saved(tmp_path / "saved")
    train, test = open_located(find_saved(tmp_path / "saved", CONFIG), CONFIG, executor)
    assert test is None
    assert np.array_equal(pixels_of(train), images)
    assert train.names == [f"{n}.png" for n in range(8)]
    assert train.classes == ("ant", "bee", "cat")
    assert train.labels is not None
    assert train.labels.tolist() == labels.tolist()


def test_saved_splits_are_noticed(
    tmp_path: Path, stripes: Stripes, executor: ThreadPoolExecutor
) -> None:
    images, labels = stripes(9)
    parts = datasets.DatasetDict(
        train=made(images[:4], labels[:4]),
        test=made(images[4:6], [-1, -1]),  # withheld
        validation=made(images[6:], labels[6:]),
    )
    parts.save_to_disk(tmp_path / "saved")
    train, test = open_located(
        find_saved(tmp_path / "saved", ImagesConfig(limit=3)), ImagesConfig(limit=3), executor
    )
    assert len(train) == 3
    assert test is not None
    assert np.array_equal(pixels_of(test), images[6:])
    assert not is_saved(tmp_path)


def test_files_outside_of_a_saved_folder_are_refused(tmp_path: Path, stripes: Stripes) -> None:
    data = encoded(stripes(1)[0][0], "PNG")
    (tmp_path / "outside.png").write_bytes(data)
    rows = [
        {"bytes": None, "path": path}
        for path in ("inside.png", "../outside.png", str(tmp_path / "outside.png"), None)
    ]
    write_rows(tmp_path / "saved", rows)
    (tmp_path / "saved" / "inside.png").write_bytes(data)
    listing = list_saved(tmp_path / "saved", CONFIG)
    assert listing.read(0) == data
    for index in (1, 2):
        with pytest.raises(UnreadableImage, match="outside of the saved folder"):
            listing.read(index)
    with pytest.raises(UnreadableImage, match="neither bytes nor a path"):
        listing.read(3)
    (tmp_path / "saved" / "loop").symlink_to("loop")
    for path in ("a\0b.png", "loop/a.png"):
        write_rows(tmp_path / "saved", [{"bytes": None, "path": path}])
        with pytest.raises(UnreadableImage):
            list_saved(tmp_path / "saved", CONFIG).read(0)


def write_rows(folder: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    table = pa.table({"image": pa.array(rows, kind)})
    folder.mkdir(exist_ok=True)
    with (
        pa.OSFile(str(folder / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as w,
    ):
        w.write_table(table)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "a.arrow"}]}))
    (folder / "dataset_info.json").write_text("{}")


def test_damaged_saved_folders_are_named(tmp_path: Path, stripes: Stripes) -> None:
    images, _ = stripes(6)
    root = tmp_path / "saved"
    write_rows(root, [{"bytes": encoded(image, "PNG"), "path": None} for image in images])
    assert len(list_saved(root, CONFIG).names) == 6
    good = (root / "a.arrow").read_bytes()
    for damaged in (b"", good[:100], good[: len(good) // 2]):
        (root / "a.arrow").write_bytes(damaged)
        with pytest.raises(ImagesError, match=r"a\.arrow is damaged or cannot be read"):
            list_saved(root, CONFIG)
    lengths = np.cumsum([0] + [len(encoded(image, "PNG")) for image in images]).astype("<i4")
    wild = lengths.copy()
    wild[3] = 2**30  # an offset far behind the end of the file
    assert lengths.tobytes() in good
    (root / "a.arrow").write_bytes(good.replace(lengths.tobytes(), wild.tobytes()))
    with pytest.raises(ImagesError, match="saved is damaged"):
        list_saved(root, CONFIG)
    for names in ([{"filename": "../a.arrow"}], [{"filename": "/etc/hosts"}], [], "x", 3, [3]):
        (root / "state.json").write_text(json.dumps({"_data_files": names}))
        with pytest.raises(ImagesError, match=r"state\.json should list names"):
            list_saved(root, CONFIG)
    (root / "state.json").write_text("{")
    with pytest.raises(ImagesError, match=r"state\.json cannot be read"):
        list_saved(root, CONFIG)


def test_an_object_is_read_in_its_own_order(stripes: Stripes, executor: ThreadPoolExecutor) -> None:
    images, labels = stripes(8)
    order = [5, 2, 7, 0]
    dataset = made(images, labels, paths=True).select(order)
    dataset.set_transform(lambda rows: pytest.fail("transforms are the caller's"))
    train, test = open_located(find_handed_over(path_of(dataset), CONFIG), CONFIG, executor)
    assert test is None
    assert np.array_equal(pixels_of(train), images[order])
    assert train.names == [f"{n}.png" for n in order]
    assert train.labels is not None
    assert [train.classes[n] for n in train.labels] == ["cat", "cat", "bee", "ant"]


def test_an_object_with_splits(stripes: Stripes, executor: ThreadPoolExecutor) -> None:
    images, labels = stripes(6)
    both = datasets.DatasetDict(
        train=made(images[:4], labels[:4]), test=made(images[4:], labels[4:])
    )
    name = path_of(both)
    train, test = open_located(find_handed_over(name, CONFIG), CONFIG, executor)
    assert (len(train), test and len(test)) == (4, 2)
    assert name == path_of(datasets.DatasetDict(both))
    with pytest.raises(ImagesError, match="has the parts left, right; wanted one named train"):
        open_located(
            find_handed_over(
                path_of(odd := datasets.DatasetDict(left=both["train"], right=both["test"])), CONFIG
            ),
            CONFIG,
            executor,
        )
    del odd


def test_an_object_that_is_gone_is_asked_for(
    stripes: Stripes, executor: ThreadPoolExecutor
) -> None:
    name = path_of(made(*stripes(3)))
    with pytest.raises(ImagesError, match="Load the same one and hand it over again"):
        open_located(find_handed_over(name, CONFIG), CONFIG, executor)


def test_objects_without_images_or_order_are_refused(stripes: Stripes) -> None:
    with pytest.raises(ImagesError, match="no column of encoded images"):
        list_dataset(datasets.Dataset.from_dict({"label": [1, 2]}), CONFIG)
    with pytest.raises(ImagesError, match="without streaming=True"):
        path_of(made(*stripes(2)).to_iterable_dataset())
    assert not is_hugging_face("a path")
    assert path_of(Path("a") / "b") == "a/b"


def test_rows_that_only_name_files(tmp_path: Path, stripes: Stripes) -> None:
    data = encoded(stripes(1)[0][0], "PNG")
    (tmp_path / "a.png").write_bytes(data)
    features = datasets.Features({"image": datasets.Image()})
    names = [str(tmp_path / "a.png"), str(tmp_path / "gone.png")]
    listing = list_dataset(datasets.Dataset.from_dict({"image": names}, features=features), CONFIG)
    assert listing.read(0) == data
    with pytest.raises(UnreadableImage, match="No such file"):
        listing.read(1)
