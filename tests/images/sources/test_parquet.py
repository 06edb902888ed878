"""Parquet files give the images and labels that were put in, and damaged ones are named."""

import ast
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import diptych
from conftest import encoded
from diptych.config.data import ImagesConfig
from diptych.errors import ImagesError
from diptych.images.collection import ImageSet
from diptych.images.open import open_images
from diptych.images.sources import parquet
from diptych.images.sources import parquet as spool
from diptych.images.sources.parquet import find_in_parquet, list_parquet
from diptych.images.splits import open_located

SOURCE = Path(diptych.__file__).parent
READS = ("iter_batches", "read_row_group", "read_row_groups", "read_table", "read_parquet")
Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]
NOTE = {"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}


@pytest.fixture
def config(tmp_path: Path) -> ImagesConfig:
    return ImagesConfig(cache_folder=str(tmp_path / "cache"), max_unreadable_share=0.5)


def write(file: Path, columns: dict[str, Any], note: Any = None, **options: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(columns)
    if note is not None:
        table = table.replace_schema_metadata({"huggingface": json.dumps(note)})
    pq.write_table(table, file, **options)
    return file


def structs(images: NDArray[np.uint8], paths: bool = False) -> list[dict[str, Any]]:
    return [
        {"bytes": encoded(image, "PNG"), "path": f"{n}.png" if paths else None}
        for n, image in enumerate(images)
    ]


def pixels_of(found: ImageSet) -> NDArray[Any]:
    batch = found.pixels.gather(np.arange(len(found)))
    return np.stack([batch.image(n) for n in range(len(found))])


def reads_of_parquet(tree: ast.Module) -> Iterator[ast.Call]:
    """Calls that read rows: by their names, or `read` of what a `with` opened as Parquet."""
    opens = {"ParquetFile"}
    for one in ast.walk(tree):
        if isinstance(one, ast.FunctionDef) and "'ParquetFile'" in ast.dump(one):
            opens.add(one.name)
    opened = {
        one.optional_vars.id
        for one in ast.walk(tree)
        if isinstance(one, ast.withitem) and isinstance(one.optional_vars, ast.Name)
        if isinstance(one.context_expr, ast.Call) and last_name(one.context_expr.func) in opens
    }
    for one in ast.walk(tree):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Attribute):
            of_opened = last_name(one.func.value) in opened
            if one.func.attr in READS or (one.func.attr == "read" and of_opened):
                yield one


def last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def test_arrow_reads_by_one_thread() -> None:
    """A worker of its pool that outlives a read aborts the process when Python ends meanwhile."""
    threaded, found = list[str](), 0
    for file in SOURCE.rglob("*.py"):
        for call in reads_of_parquet(ast.parse(file.read_text())):
            found += 1
            given = {one.arg: ast.unparse(one.value) for one in call.keywords}
            if given.get("use_threads") != "False":
                threaded.append(f"{file.relative_to(SOURCE)}:{call.lineno}: {ast.unparse(call)}")
    assert not threaded, threaded
    assert found >= 5  # vectors, shards, vectors that are kept, columns beside images, and those


def test_hugging_face_files_are_read(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    images, labels = stripes(9)
    for split, some in (("train", slice(0, 4)), ("train", slice(4, 7)), ("test", slice(7, 9))):
        write(
            tmp_path / "data" / f"{split}-{some.start}.parquet",
            {"label": labels[some], "image": structs(images[some])},
            NOTE,
            row_group_size=2,
        )
    train, test = open_located(find_in_parquet(str(tmp_path / "data"), config), config, executor)
    assert np.array_equal(pixels_of(train), images[:7])
    assert train.classes == ("ant", "bee", "cat")
    assert train.labels is not None
    assert train.labels.tolist() == labels[:7].tolist()
    assert list(train.names[:5]) == [f"train-0:{n}" for n in range(4)] + ["train-4:0"]
    assert test is not None
    assert np.array_equal(pixels_of(test), images[7:])


def test_plain_columns_and_text_labels(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    images, _ = stripes(4)
    data = [encoded(image, "PNG") for image in images]
    file = write(tmp_path / "a.parquet", {"jpg": data, "mask": data, "cls": ["b", "a", "b", "a"]})
    train, test = open_located(
        find_in_parquet(str(tmp_path / "?.parquet"), config), config, executor
    )
    assert test is None
    assert np.array_equal(pixels_of(train), images)
    assert train.classes == ("a", "b")
    assert train.labels is not None
    assert train.labels.tolist() == [1, 0, 1, 0]
    assert open_located(find_in_parquet(str(file), config), config, executor)[0].names == [
        "a:0",
        "a:1",
        "a:2",
        "a:3",
    ]


def test_rows_are_named_by_their_paths(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    images, _ = stripes(3)
    rows = structs(images, paths=True)
    rows[1]["path"] = "../../etc/passwd"  # a name, and nothing that is opened
    file = write(tmp_path / "a.parquet", {"image": rows})
    train, _ = open_located(find_in_parquet(str(file), config), config, executor)
    assert train.names == ["0.png", "../../etc/passwd", "2.png"]
    assert train.labels is None


@pytest.mark.parametrize("cache", ["file", "memory"])
def test_another_column_holds_other_images(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor, cache: Any
) -> None:
    left, right = stripes(6)[0], 255 - stripes(6)[0]
    file = write(tmp_path / "pairs.parquet", {"left": structs(left), "right": structs(right)})
    for column, images in (("left", left), ("right", right), ("left", left)):
        asked = replace(config, path=str(file), column=column, cache=cache)
        assert np.array_equal(pixels_of(open_images(asked, executor).train), images)
    checksums = [
        open_images(replace(config, path=str(file), column=one), executor).train.checksums
        for one in ("left", "right")
    ]
    assert checksums[0] is not None
    assert checksums[1] is not None
    assert not np.array_equal(checksums[0], checksums[1])


def test_tables_called_alike_have_images_of_other_names(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig
) -> None:
    files = [
        write(tmp_path / part / "train-0.parquet", {"image": structs(stripes(3)[0])})
        for part in ("en", "fr")
    ]
    names = list(list_parquet(list(map(str, files)), config).names)
    assert names[0] == "en/train-0:0"
    assert len(set(names)) == 6


def test_rows_without_bytes_are_listed(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, executor: ThreadPoolExecutor
) -> None:
    images, _ = stripes(4)
    rows: list[Any] = structs(images)
    rows[1], rows[2] = None, {"bytes": None, "path": "/etc/hostname"}
    file = write(tmp_path / "a.parquet", {"image": rows})
    train, _ = open_located(find_in_parquet(str(file), config), config, executor)
    assert [one.name for one in train.skipped] == ["a:1", "a:2"]
    assert "names a file only, or holds nothing" in train.skipped[0].reason
    assert np.array_equal(pixels_of(train), images[[0, 3]])


def test_the_copy_is_made_once(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool.SpoolPlace.__init__, "__defaults__", (100,))
    images, _ = stripes(6)
    rows = structs(images)
    file = write(tmp_path / "a.parquet", {"image": rows}, row_group_size=2)
    listing = list_parquet([str(file)], config)
    assert not (tmp_path / "cache").exists()
    assert [listing.read(n) for n in range(6)] == [row["bytes"] for row in rows]
    monkeypatch.setattr(parquet, "_images", lambda *_: pytest.fail("read anew"))
    assert list_parquet([str(file)], config).read(5) == rows[5]["bytes"]
    assert [one.suffix for one in sorted((tmp_path / "cache").iterdir())] == [".lock", ".spool"]
    monkeypatch.undo()
    write(file, {"image": rows[::-1]})
    other = list_parquet([str(file)], config)
    assert other.read(0) == rows[5]["bytes"]
    assert other.stamp is not None
    assert listing.stamp is not None
    assert other.stamp(0) != listing.stamp(0)


def test_images_that_are_asked_for_one_by_one_are_read_once(
    tmp_path: Path, stripes: Stripes, config: ImagesConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the pictures of a gallery are."""
    images, _ = stripes(6)
    files = [
        str(write(tmp_path / f"{n}.parquet", {"image": structs(images[2 * n : 2 * n + 2])}))
        for n in range(3)
    ]
    opened = list[str]()
    original = parquet._images

    def counted(some: list[str], columns: Any) -> Any:
        opened.extend(some)
        return original(some, columns)

    monkeypatch.setattr(parquet, "_images", counted)
    listing = list_parquet(files, config)
    assert listing.read_part is not None
    for _ in range(3):
        for row in (5, 0, 1, 4):
            data = listing.read_part(range(row, row + 1))(row)
            assert data == encoded(images[row], "PNG")
    assert sorted(opened) == [files[0], files[2]]  # and not the one between
    assert [listing.read_part(range(1, 4))(row) for row in range(1, 4)] == [
        encoded(image, "PNG") for image in images[1:4]
    ]


def test_columns_that_do_not_fit(tmp_path: Path, stripes: Stripes, config: ImagesConfig) -> None:
    data = [encoded(image, "PNG") for image in stripes(2)[0]]

    def listed(columns: dict[str, Any], column: str | None = None) -> None:
        file = write(tmp_path / "a.parquet", columns)
        list_parquet([str(file)], ImagesConfig(column=column, cache_folder=config.cache_folder))

    listed({"x": data, "y": data}, "y")
    with pytest.raises(ImagesError, match="several columns that could hold the images: x, y"):
        listed({"x": data, "y": data})
    with pytest.raises(ImagesError, match=r"named 'z' \(images\.column\).* columns are x, y"):
        listed({"x": data, "y": [1, 2]}, "z")
    with pytest.raises(ImagesError, match=r"no column of encoded images.*columns are image"):
        listed({"image": [{"path": "a"}, {"path": "b"}]})
    with pytest.raises(ImagesError, match="no column of encoded images"):
        listed({"image": [[1, 2], [3, 4]]})


def test_damaged_files_are_named(tmp_path: Path, stripes: Stripes, config: ImagesConfig) -> None:
    rows = structs(stripes(6)[0])
    file = write(tmp_path / "a.parquet", {"image": rows, "label": [0, 1, 2, 3, 0, 1]}, NOTE)
    with pytest.raises(ImagesError, match=r"the label 3 is none of 0 \.\. 2"):
        list_parquet([str(file)], config)
    write(file, {"image": rows}, compression="none")
    good = file.read_bytes()
    for damaged in (good[:-30], good[: len(good) // 2], b"", b"PAR1" + good[4:200] + b"PAR1"):
        file.write_bytes(damaged)
        with pytest.raises(ImagesError, match=r"a\.parquet is damaged or cannot be read"):
            list_parquet([str(file)], config)
    file.write_bytes(good[:4] + bytes(len(good) - 2000) + good[-1996:])  # the footer is intact
    with pytest.raises(ImagesError, match=r"a\.parquet is damaged or cannot be read"):
        list_parquet([str(file)], config).read(0)
    other = write(tmp_path / "b.parquet", {"picture": rows})
    write(file, {"image": rows})
    with pytest.raises(ImagesError, match=r"b\.parquet has no column.*'image'"):
        list_parquet([str(file), str(other)], config)


def test_without_files(tmp_path: Path, config: ImagesConfig, executor: ThreadPoolExecutor) -> None:
    with pytest.raises(ImagesError, match=r"no \.parquet files there"):
        open_located(find_in_parquet(str(tmp_path), config), config, executor)
