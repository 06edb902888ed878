"""Whatever is looked at is used, or left out by name and reason, whatever kind of source it is."""

import csv
import errno
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.escaping import readable
from diptych.images.collection import Collection
from diptych.images.inventory import Inventory, Skipped, Tally
from diptych.images.open import locate_images, open_images
from diptych.images.sources.annotations import read_coco
from diptych.images.sources.arrow import number_labels
from diptych.images.sources.image_files import list_folder
from diptych.images.sources.tar_shards import read_samples
from diptych.images.splits import by_split, hold_out
from diptych.images.tree import walk
from diptych.runs.folder import RunFolder
from diptych.training.open_run import write_skipped

PNG = encoded(np.full((4, 5, 3), 90, np.uint8), "PNG")


def fill(root: Path, files: Mapping[str, int | bytes]) -> Path:
    """Writes files; of a folder, so many images into it."""
    for name, content in files.items():
        if isinstance(content, bytes):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        else:
            fill(root, {f"{name}/{number}.png": PNG for number in range(content)})
    return root


def opened(path: Path | str, executor: ThreadPoolExecutor, **options: Any) -> Collection:
    config = {"max_unreadable_share": 0.5, "cache": "memory", **options}
    return open_images(ImagesConfig(path=str(path), **config), executor)


def tar_of(names: Iterable[str | tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for one in names:
            name, data = (one, PNG) if isinstance(one, str) else one
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("Training", "Testing"),
        ("TRAIN", "Test"),
        ("train_images", "val2017"),
        ("trainset", "dev"),
        ("images_train", "validation"),
    ],
)
def test_parts_are_known_in_every_spelling(
    train: str, test: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    names = (f"{train}/a", f"{train}/b", f"{test}/a", f"{test}/b")
    found = opened(fill(tmp_path, dict.fromkeys(names, 2)), executor)
    assert found.train.classes == ("a", "b")
    assert (found.train_part, found.test_part) == (train, test)
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (4, 4)


def test_the_first_labelled_part_is_held_out(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    fill(tmp_path, {"train/a": 3, "train/b": 3, "val/a": 2, "val/b": 1, "test": 7})
    found = opened(tmp_path, executor)
    assert found.test is not None
    assert (found.test_part, len(found.test), found.test.classes) == ("val", 3, ("a", "b"))
    assert [(one.part, one.count) for one in found.left_out] == [("test", 7)]
    assert "held out for testing (val)" in found.description
    assert "Left out in test: 7, a part that is not used; val is held out." in found.description


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"train/a": 1, "Train/a": 1}, "several parts named for train: Train, train"),
        ({"train/a": 1, "val/a": 1, "valid/a": 1}, "several parts named for val: val, valid"),
        ({"test/a": 1, "val/a": 1}, "has the parts test, val; wanted one named train"),
        ({"train": 1, "bus": 1, "boat": 2}, "a part of the data or a class, beside 3 other"),
        ({"test": 1, "cats": 1}, "to hold a part out, put the others into a folder named train"),
        ({"val": 1, "1.png": PNG}, "beside 1 other images or shards, as 1.png"),
        ({"x/seg_train/a": 1, "x/seg_test/a": 1}, "x holds seg_train and seg_test, which may be"),
        ({"train_1": 1, "test_1": 1, "more": 1}, "holds train_1 and test_1, which may be parts"),
        ({"trainA": 1, "testA": 1, "trainB": 1}, "If they are parts, call their folders train"),
        ({"ASLTraining": 1, "asl.dev": 1}, "holds ASLTraining and asl.dev, which"),
    ],
)
def test_what_is_not_clear_is_refused(
    files: dict[str, int | bytes], words: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    with pytest.raises(ImagesError, match=words):
        opened(fill(tmp_path, files), executor)


def test_a_single_part_is_learned_from(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    found = opened(fill(tmp_path, {"test/a": 2, "test/b": 2, "notes.csv": b"x"}), executor)
    assert found.train.classes == ("a", "b")
    assert (found.train_part, found.test) == ("test", None)
    assert "The only part is test, and it is learned from." in found.description


def test_parts_further_down_are_found(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    files = {"archive/set/train/a": 2, "archive/set/train/b": 2, "archive/set/test/a": 1}
    found = opened(fill(tmp_path, {**files, "archive/read.me": b"x"}), executor)
    assert found.train.classes == ("a", "b")
    assert found.test is not None
    assert "The parts lie in archive/set." in found.description


def test_a_part_inside_itself_is_found(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    files = {"training_set/training_set/a": 2, "training_set/training_set/b": 1, "test/Test/a": 1}
    found = opened(fill(tmp_path, {**files, "test/Test/b": 1, "test/read.me": b"x"}), executor)
    assert found.test is not None
    assert found.train.classes == found.test.classes == ("a", "b")
    assert list(found.test.names) == ["a/0.png", "b/0.png"]
    assert (found.train_part, found.test_part) == ("training_set", "test")


def test_a_part_with_a_single_folder_says_that_it_has_no_classes(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    found = opened(fill(tmp_path, {"train/images/a": 2, "train/images/b": 1, "val": 1}), executor)
    assert found.train.labels is None
    sentence = "All images of train lie in the one folder images, so there are no classes"
    assert sentence in found.description
    assert "images of val" not in found.description


def test_words_of_parts_in_names_of_classes_alone_are_no_parts(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    found = opened(fill(tmp_path, {"train_station": 2, "contest": 2, "evaluations": 1}), executor)
    assert found.train.classes == ("contest", "evaluations", "train_station")


def test_folders_that_are_no_parts_are_told_of(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    fill(tmp_path / "a", {"cats/train": 2, "cats/test": 1, "dogs/train": 2})
    assert (
        "3 folders named as parts lie deeper, as cats/test"
        in opened(tmp_path / "a", executor).description
    )
    fill(tmp_path / "b", {"archive/cats": 2, "archive/dogs": 1})
    found = opened(tmp_path / "b", executor)
    assert found.train.labels is None
    assert "All images lie in the one folder archive, so there are no classes" in found.description


def test_unreadable_files_of_each_part_are_listed(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    fill(tmp_path, {"train/a": 3, "val/a": 3, "train/a/x.png": b"x", "val/a/y.png": b"junk"})
    found = opened(tmp_path, executor)
    reason = "not an image of a known format"
    rows = [Skipped("a/x.png", reason, "train"), Skipped("a/y.png", reason, "val")]
    assert list(found.inventory.rows()) == rows
    assert f"One image of val cannot be read: a/y.png ({reason})." in found.description
    folder = RunFolder(tmp_path)
    write_skipped(folder, found)
    with open(folder.skipped, newline="") as file:
        assert [(row["part"], row["name"], row["reason"]) for row in csv.DictReader(file)] == [
            (one.part, one.name, one.reason) for one in rows
        ]


def test_shards_beside_class_folders_are_refused(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    fill(tmp_path, {"cats": 3, "dogs": 2, "backup.tar": tar_of(["1.png", "2.png"])})
    with pytest.raises(ImagesError, match=r"backup\.tar, 2 images in them, and .* 5 files\..*put"):
        opened(tmp_path, executor)
    (tmp_path / "backup.tar").write_bytes(b"no tar")
    with pytest.raises(ImagesError, match="an unknown number of images in them"):
        opened(tmp_path, executor)


def test_tables_beside_class_folders_are_refused(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    pq.write_table(pa.table({"image": [PNG] * 3}), tmp_path / "old.parquet")
    fill(tmp_path, {"cats": 3, "dogs": 2})
    with pytest.raises(ImagesError, match=r"1 Parquet files, as old\.parquet, and 5 images"):
        opened(tmp_path, executor)
    (tmp_path / "cats" / "more").mkdir()
    (tmp_path / "old.parquet").rename(tmp_path / "cats" / "more" / "old.parquet")
    found = opened(tmp_path, executor)
    assert ("cats/more/old.parquet", 1) in [(one.name, one.count) for one in found.left_out]


def test_what_is_no_image_is_counted(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    files = {f"png/{name}": b"x" for name in ("1.jxl", "2.jxl", "3.NEF", ".hidden", "README")}
    fill(tmp_path, {"png": 3, "empty/none/a.zip": b"x", "b.csv": b"x", "c.csv": b"x", **files})
    found = opened(tmp_path, executor)
    counted = {(one.name, one.count): one.reason for one in found.left_out}
    assert set(counted) == {
        *(("png/1.jxl", 2), ("png/3.NEF", 1), ("png/.hidden", 1), ("png/README", 1)),
        *(("empty/none/a.zip", 1), ("b.csv", 2), ("empty", 1)),
    }
    assert "convert it to PNG" in counted["png/1.jxl", 2]
    assert "unpack it" in counted["empty/none/a.zip", 1]
    assert "Left out: 2, as png/1.jxl, .jxl is not read here" in found.description


def test_links_are_followed_once(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    fill(tmp_path, {"elsewhere/cats": 3, "root/dogs": 2})
    root = tmp_path / "root"
    (root / "cats").symlink_to("../elsewhere/cats")
    (root / "more_cats").symlink_to("../elsewhere/cats")
    (root / "gone").symlink_to("nowhere")
    (root / "up").symlink_to("..")
    (root / "dogs" / "round").symlink_to(root)
    (root / "dogs" / "broken.png").symlink_to("nowhere.png")
    found = opened(root, executor)
    assert list(found.train.names) == [
        *(f"cats/{number}.png" for number in range(3)),
        *(f"dogs/{number}.png" for number in range(2)),
    ]
    assert {one.name: one.reason for one in found.inventory.rows()} == {
        "dogs/broken.png": "broken symbolic link",
        "dogs/round": "a link that leads back to a folder around it",
        "gone": "broken symbolic link",
        "more_cats": "the same folder as cats, by a link",
        "up": "a link that leads back to a folder around it",
    }


def test_parts_that_share_a_folder_are_told_of(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    fill(tmp_path, {"train/cats": 3, "train/dogs": 3, "test/dogs": 2})
    (tmp_path / "test" / "cats").symlink_to("../train/cats")
    found = opened(tmp_path, executor)
    assert found.test is not None
    assert len(found.test) == 5
    assert "test/cats and train/cats are one folder" in found.description.replace(
        "train/cats and test/cats", "test/cats and train/cats"
    )


def test_a_folder_without_rights_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, {"cats": 2, "dogs": 2})
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("dogs"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = walk(tmp_path)
    assert found.names_in() == ["cats/0.png", "cats/1.png"]
    assert found.odd == [Skipped("dogs", "cannot be read: Permission denied")]
    with pytest.raises(ImagesError, match="cannot be read: Permission denied"):
        walk(tmp_path / "dogs")


def test_classes_of_one_part_only_are_named(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    fill(tmp_path, {"train/a": 2, "train/b": 1, "train/c": 3, "val/a": 2, "val/z": 4})
    found = opened(tmp_path, executor)
    assert "1 class of val, with 4 images, not among those to learn from: z." in found.description
    assert "2 classes to learn from, with 4 images, not among those of val: b, c." in (
        found.description
    )
    assert "1 class with a single image: b." in found.description


def test_a_file_outside_of_class_folders_has_no_label(tmp_path: Path) -> None:
    fill(tmp_path, {"a": 2, "b": 1, "z.png": PNG})
    listing = list_folder(tmp_path, walk(tmp_path))
    assert listing.labels is not None
    assert listing.labels.tolist() == [0, 0, 1, -1]


def test_a_limit_is_accounted_for(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    found = opened(fill(tmp_path, {"a": 9}), executor, limit=4)
    assert list(found.inventory.rows()) == [Skipped("", "beyond images.limit = 4", "", 5)]


def test_a_limit_on_arrays_is_accounted_for(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    images = np.zeros((9, 4, 4), np.uint8)
    np.savez(tmp_path / "a.NPZ", x_train=images, x_test=images[:6])
    os.rename(tmp_path / "a.NPZ.npz", tmp_path / "a.NPZ")
    np.save(tmp_path / "b.npy", images)
    for name, part, count in (("a.NPZ", "train", 5), ("b.npy", "", 5)):
        found = opened(tmp_path / name, executor, limit=4)
        row = Skipped("", "beyond images.limit = 4", part, count)
        assert list(found.inventory.rows()) == [row]
    found = opened("photographs", executor, limit=100)
    assert "Left out in train: 5,020, beyond images.limit = 100." in found.description


@pytest.mark.parametrize("name", ["BZ0001.png", "BZh91AY&SY.png", "BZh9\x17rE8P\x90.png"])
def test_a_member_may_be_called_like_a_compressed_file(name: str, tmp_path: Path) -> None:
    fill(tmp_path, {"a.tar": tar_of([name, "2.png"])})
    assert len(read_samples(tmp_path / "a.tar", Tally())) == 2


def test_numbers_between_dots_tell_samples_apart(tmp_path: Path) -> None:
    labels = (("frame.0001.cls", b"3"), ("frame.cls", b"7"), ("b.cls", b"3"))
    names: list[str | tuple[str, bytes]] = ["frame.0001.png", "frame.0002.png", "b.left.png"]
    fill(tmp_path, {"a.tar": tar_of([*labels, *names])})
    listing = locate_images(ImagesConfig(path=str(tmp_path / "a.tar"))).train
    assert [name.partition("/")[2] for name in listing.names] == [
        *("frame.0001.png", "frame.0002.png", "b.left.png"),
    ]
    assert listing.labels is not None
    assert [listing.classes[label] for label in listing.labels] == ["3", "7", "3"]


def test_members_of_a_shard_are_accounted_for(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    other = encoded(np.zeros((4, 5, 3), np.uint8), "PNG")
    names: list[str | tuple[str, bytes]] = ["a.png", "/b.png", "._a.png", ("t.txt", b"x")]
    names += [("a.png", other), ("z.cls", b"1"), "train/c.png"]
    latin = os.fsdecode(b"\xe4.png")
    found = opened(fill(tmp_path, {"0.tar": tar_of([*names, latin])}), executor)
    assert list(found.train.names) == [
        f"0.tar/{name}" for name in ("a.png", "b.png", "train/c.png", latin)
    ]
    assert not found.train.pixels.gather(np.array([0])).image(0).any()
    assert {one.name: one.count for one in found.left_out} == {
        "._a.png": 1,
        "t.txt": 1,
        "a.png": 1,
        "z.cls": 1,
    }
    assert "Folders named as parts lie inside the shards, as train" in found.description


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("./train/1.png", "./test/1.png"), "lie inside the shards, as test: they are not"),
        (("cat/1.png", "dog/1.png"), "inside the shards, as cat, are not taken as classes;"),
        (("cat/1.png", "dog/1.png", ("dog/1.cls", b"1"), ("cat/1.cls", b"0")), ""),
        (("cat/1.png", "cat/2.png"), ""),
    ],
)
def test_a_single_shard_says_what_its_folders_are_not(
    names: tuple[str], words: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    found = opened(fill(tmp_path, {"a.tar": tar_of(names)}) / "a.tar", executor)
    assert words in found.description
    assert ("inside the shards" in found.description) == bool(words)


def test_shards_are_parted_by_their_names(tmp_path: Path, executor: ThreadPoolExecutor) -> None:
    names = ("set-train-0.tar", "set-train-1.tar", "set-Val-0.tar", "more.tar")
    fill(tmp_path, {name: tar_of([f"{n}.png" for n in range(3)]) for name in names})
    found = opened(tmp_path, executor)
    assert found.test is not None
    assert (len(found.train), len(found.test), found.test_part) == (6, 3, "Val")
    assert [(one.name, one.reason) for one in found.left_out] == [
        ("more.tar", "a shard of no part")
    ]


def test_files_of_tables_are_parted_by_their_names() -> None:
    names = ["data/train-0.parquet", "data/Test-0.parquet", "cifar-val.parquet", "dev/0.parquet"]
    assert by_split([*names, "x.parquet"]) == {
        "train": names[:1],
        "Test": names[1:2],
        "val": names[2:3],
        "dev": names[3:],
        "": ["x.parquet"],
    }
    assert by_split(["x.tar", "tests.tar"]) == {"": ["x.tar", "tests.tar"]}
    assert by_split(["x.tar", "test.tar"]) == {"train": ["x.tar"], "test": ["test.tar"]}


def test_minus_one_is_no_label(tmp_path: Path) -> None:
    images = np.zeros((4, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([5, -1, 3, 5]))
    found = locate_images(ImagesConfig(path=str(tmp_path / "a.npz"))).train
    assert found.labels is not None
    assert (found.labels.tolist(), found.classes) == ([1, -1, 0, 1], ("3", "5"))
    np.savez(tmp_path / "a.npz", images=images, labels=-np.ones(4, int))
    assert locate_images(ImagesConfig(path=str(tmp_path / "a.npz"))).train.labels is None
    for values, wanted in (([4, -1, 2], [1, -1, 0]), (["b", " ", "a"], [1, -1, 0])):
        labels, _ = number_labels(values, None, "a table")
        assert labels is not None
        assert labels.tolist() == wanted


def test_arrays_of_all_parts_are_accounted_for(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    images, labels = np.zeros((6, 4, 4), np.uint8), np.array([0, 1, 0, 1, 0, 1])
    arrays: dict[str, Any] = {
        "X_Train": images,
        "y_train": labels,
        "x_test": images[:2],
        "val_images": images[:4],
    }
    np.savez(tmp_path / "a.npz", **arrays, val_labels=labels[:4], boxes=labels, dev=labels)
    found = opened(tmp_path / "a.npz", executor)
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (6, 4)
    assert (found.train_part, found.test_part) == ("Train", "val")
    assert found.train.labels is not None
    assert [(one.name, one.part) for one in found.left_out] == [
        *(("x_test", "test"), ("boxes", ""), ("dev", ""))
    ]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (("images", "x"), "images and x, which mean the same"),
        (("images", "train_images"), "images and train_images; it is not clear which"),
        (("x_train", "training_x"), "several parts named for train"),
        (("x_test", "x_val"), "wanted one named train"),
    ],
)
def test_arrays_that_are_not_clear_are_refused(
    names: tuple[str, str], words: str, tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    images = np.zeros((6, 4, 4), np.uint8)
    arrays: dict[str, Any] = dict.fromkeys(names, images)
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ImagesError, match=words):
        opened(tmp_path / "a.npz", executor)


def test_lines_of_a_list_that_are_no_files_are_listed(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    lines = b"a/0.png\nhttps://host/x.png\na/gone.png\na/1.png\n\xff\n"
    found = opened(
        fill(tmp_path, {"a": 3, "list.txt": lines}) / "list.txt", executor, max_unreadable_share=0.9
    )
    assert [(one.name, one.reason) for one in found.inventory.rows()] == [
        ("https://host/x.png", "a URL; a list takes paths, and a URL is given by itself"),
        ("a/gone.png", "No such file or directory"),
        (os.fsdecode(b"\xff"), "No such file or directory"),
    ]
    found.description.encode()


def test_rows_without_an_image_are_listed_with_their_part(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    (tmp_path / "data").mkdir()
    for name, count in (("data/train-0", 3), ("data/Test-0", 4), ("other", 2)):
        table = pa.table({"image": [PNG] * count + [None], "label": [*range(count), -1]})
        pq.write_table(table, tmp_path / f"{name}.parquet")
    found = opened(tmp_path, executor, cache_folder=str(tmp_path / "cache"))
    assert found.test is not None
    assert (len(found.train), len(found.test)) == (3, 4)
    assert [(one.name, one.part) for one in found.inventory.rows()] == [
        *(("train-0:3", "train"), ("Test-0:4", "Test"), ("other.parquet", ""))
    ]


def test_a_known_form_says_what_lies_beside_it(
    tmp_path: Path, executor: ThreadPoolExecutor
) -> None:
    records = np.zeros((4, 3073), np.uint8).tobytes()
    files = {f"data_batch_{number}.bin": records for number in range(1, 6)}
    names = "\n".join("abcdefghij").encode()
    found = opened(fill(tmp_path, {**files, "batches.meta.txt": names, "more": 3}), executor)
    assert [(one.name, one.count) for one in found.left_out] == [("more/0.png", 3)]


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    image = b'{"id": 1, "file_name": "\\ud800.png", "height": 4, "width": 5}'
    box = b'{"image_id": 1, "category_id": 1, "bbox": [0, 0, 2, 2]}'
    document = b'{"images": [%b], "annotations": [%b], "categories": [{"id": 1, "name": "a"}]}'
    fill(tmp_path, {"train.json": document % (image, box), "images/\\ud800.png": PNG})
    with pytest.raises(ImagesError, match="file_name is no text"):
        read_coco(tmp_path, "train")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("ü.png", "ü.png"),
        (os.fsdecode(b"\xe4.png"), r"\xe4.png"),
        ("\ud800.png", r"\ud800.png"),
        ("a\nb", r"a\nb"),
        ("\x1b[31m", r"\x1b[31m"),
    ],
)
def test_names_in_print(name: str, shown: str) -> None:
    assert readable(name) == shown


def test_the_table_in_sentences() -> None:
    left_out = [Skipped(f"{n}.x{n}", f".x{n} is no image", "", n + 1) for n in range(14)]
    found = Inventory((("train", 5),), left_out=tuple(left_out), stacks=2, further_pages=7)
    *first, more, pages = found.sentences()
    assert first[0] == "Left out: 14, as 13.x13, .x13 is no image."
    assert len(first) == 12
    assert more == "3 more of 2 other kinds left out."
    assert pages.startswith("2 files hold 7 further pages, which are not used")
    assert [one.count for one in found.rows()] == [*range(1, 15), 7]


def test_a_part_without_labels_is_held_out_where_none_has_any(tmp_path: Path) -> None:
    fill(tmp_path, {"train/a": 3, "train/b": 3, "val": 2, "test": 3})
    held = hold_out(locate_images(ImagesConfig(path=str(tmp_path))))
    assert held.part == "test"
    assert [(one.part, one.count) for one in held.unused] == [("val", 2)]


def test_a_link_that_may_not_be_followed_costs_only_itself(
    class_folder: Path, executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (class_folder / "class0" / "extra").symlink_to("/nowhere/private")
    known = os.stat

    def refusing(path: Any, *rest: Any, **more: Any) -> os.stat_result:
        if str(path).endswith("extra"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return known(path, *rest, **more)

    monkeypatch.setattr(os, "stat", refusing)
    found = open_images(ImagesConfig(path=str(class_folder)), executor)
    assert len(found.train) == 48
    assert "broken symbolic link" in found.description
