"""Vectors from files: every form gives the same, and what is damaged is refused in words."""

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from diptych.embeddings.vectors import VectorSet, read_vectors, require_comparable
from diptych.errors import EmbeddingsError

FEATURES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
NAMES = [f"class{i % 2}/{i}.png" for i in range(5)]
LABELS = ["cat", "dog", None, "dog", "cat"]
CHECKSUMS = [bytes([i] * 16) for i in range(5)]


def write_table(file: Path, *, features: bool) -> None:
    columns = [f"feature_{i}" for i in range(3)] if features else []
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["name", "label", "checksum", *columns])
        for i, name in enumerate(NAMES):
            vector = map(repr, map(float, FEATURES[i])) if features else []
            writer.writerow([name, LABELS[i] or "", CHECKSUMS[i].hex(), *vector])


def as_npy(folder: Path) -> Path:
    np.save(folder / "v.npy", FEATURES)
    write_table(folder / "v.csv", features=False)
    return folder / "v.npy"


def as_csv(folder: Path) -> Path:
    write_table(folder / "v.csv", features=True)
    return folder / "v.csv"


def as_saved_by_a_spreadsheet(folder: Path) -> Path:
    """With the mark that says that a table is UTF-8."""
    file = as_csv(folder)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    return file


def as_parquet(folder: Path) -> Path:
    lists = pa.array([row.tolist() for row in FEATURES], pa.list_(pa.float64()))
    table = {"name": NAMES, "label": LABELS, "checksum": CHECKSUMS, "feature": lists}
    parquet.write_table(pa.table(table), folder / "v.parquet")
    return folder / "v.parquet"


@pytest.mark.parametrize("write", [as_npy, as_csv, as_saved_by_a_spreadsheet, as_parquet])
def test_every_form_gives_the_same(write: object, tmp_path: Path) -> None:
    found = read_vectors(write(tmp_path))  # type: ignore[operator]
    np.testing.assert_array_equal(found.features, FEATURES)
    assert list(found.names) == NAMES
    assert list(found.labels or ()) == LABELS
    assert list(found.checksums or ()) == CHECKSUMS
    numbers, classes = found.classes()
    assert numbers.tolist() == [0, 1, -1, 1, 0]
    assert classes == ("cat", "dog")


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(number: float, tmp_path: Path) -> None:
    file = as_npy(tmp_path)
    bad = FEATURES.copy()
    bad[3, 1] = number
    np.save(file, bad)
    with pytest.raises(EmbeddingsError, match=r"1 vectors are not of finite numbers.*class1/3"):
        read_vectors(file)


def test_what_is_no_set_of_vectors_is_refused_in_words(tmp_path: Path) -> None:
    def refused(file: Path, wanted: str) -> None:
        with pytest.raises(EmbeddingsError, match=wanted):
            read_vectors(file)

    refused(tmp_path / "none.npy", "is not there")
    refused(tmp_path, "wanted a folder that `diptych embed` wrote")
    (tmp_path / "text.txt").write_text("")
    refused(tmp_path / "text.txt", r"ends in \.parquet, \.npy, \.csv")
    np.save(tmp_path / "alone.npy", FEATURES)
    refused(tmp_path / "alone.npy", r"there is no alone\.csv beside it")
    file = as_npy(tmp_path)
    np.save(file, FEATURES[:4])
    refused(file, "4 vectors and 5 names")
    np.save(file, FEATURES[0])
    refused(file, r"wanted vectors \(images, dim\)")
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    refused(file, "cannot be read")
    file.write_bytes(file.read_bytes()[:40])
    refused(file, "cannot be read")
    table = as_parquet(tmp_path)
    table.write_bytes(table.read_bytes()[:-30])
    refused(table, "cannot be read")
    ragged = pa.table({"name": ["a", "b"], "feature": [[1.0], [1.0, 2.0]]})
    parquet.write_table(ragged, table)
    refused(table, "not all of one length")


@pytest.mark.parametrize("cut", [b"class0/0.png,cat\n", b"a,b,c,d,e,f,g,h,i\n"])
def test_lines_of_another_length_are_refused_in_words(cut: bytes, tmp_path: Path) -> None:
    file = as_csv(tmp_path)
    file.write_bytes(file.read_bytes() + cut)
    with pytest.raises(EmbeddingsError, match=r"line 7 of v\.csv has not as many fields"):
        read_vectors(file)


def test_vectors_of_other_encoders_are_not_compared() -> None:
    def made(dim: int, encoder: str | None) -> VectorSet:
        settings = None if encoder is None else {"encoder": encoder, "layer": "h"}
        return VectorSet(Path("v"), np.ones((2, dim), np.float32), ["a", "b"], settings=settings)

    require_comparable(made(3, "x"), made(3, "x"))
    require_comparable(made(3, None), made(3, "x"))
    with pytest.raises(EmbeddingsError, match="of 3 numbers, v of 4"):
        require_comparable(made(3, "x"), made(4, "x"))
    with pytest.raises(EmbeddingsError, match="made differently: encoder: x there, y now"):
        require_comparable(made(3, "x"), made(3, "y"))


def test_vectors_of_views_of_other_sides_are_not_compared() -> None:
    def made(side: int, megapixels: float) -> VectorSet:
        views = {"side_pixels": side, "max_megapixels": megapixels}
        settings = {"encoder": "x", "layer": "h", "views": views}
        return VectorSet(Path("v"), np.ones((2, 3), np.float32), ["a", "b"], settings=settings)

    require_comparable(made(128, 80.0), made(128, 20.0))
    with pytest.raises(EmbeddingsError, match=r"views\.side_pixels: 128 there, 224 now"):
        require_comparable(made(128, 80.0), made(224, 80.0))
