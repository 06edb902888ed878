"""Tables and pages: what stands in them, names that are hostile, pictures that are not there."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.curation.thumbnails import SIDE, Thumbnails
from diptych.embeddings.vectors import VectorSet

STRANGE = "cat/<script>.png"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Twelve images in two classes, of which 0 and 2 are near, and one has a name of markup."""
    folder = tmp_path / "photographs"
    rng = np.random.default_rng(0)
    for row, name in enumerate(names()):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (40, 30 + 10 * (row == 2), 3), dtype=np.uint8)
        Image.fromarray(pixels).save(file)
    return folder


def names() -> list[str]:
    return [STRANGE, *(f"{'cat' if row < 6 else 'dog'}/{row}.png" for row in range(1, 12))]


def save_vectors(file: Path) -> Path:
    features = np.random.default_rng(1).normal(size=(12, 6)).astype(np.float32)
    features[2] = features[0] + 0.01
    np.save(file, features)
    with open(file.with_suffix(".csv"), "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["name", "label"])
        writer.writerows((name, name.split("/")[0]) for name in names())
    return file


def rows_of(file: Path) -> list[dict[str, str]]:
    with open(file, newline="") as opened:
        return list(csv.DictReader(opened))


def run(*arguments: object) -> None:
    assert main(list(map(str, arguments))) == 0


def test_copies_are_listed_and_shown(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, out = save_vectors(tmp_path / "v.npy"), tmp_path / "copies.csv"
    run("duplicates", vectors, "-o", out, "--images", photographs, "--threshold", 0.01)
    found = rows_of(out)
    # The larger file is kept, though the other comes first.
    assert [(one["name"], one["kept"]) for one in found] == [("cat/2.png", "yes"), (STRANGE, "no")]
    assert found[1]["copy_of"] == "cat/2.png"
    assert found[1]["kind"] == "near"
    page = (tmp_path / "copies.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert page.count("data:image/png") >= 2
    assert "1 groups of copies: 1 of 12 images can be left out" in capsys.readouterr().out


def test_without_images_the_first_is_kept_and_the_page_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors, out = save_vectors(tmp_path / "v.npy"), tmp_path / "copies.csv"
    run("duplicates", vectors, "-o", out, "--threshold", 0.01)
    assert rows_of(out)[0]["name"] == STRANGE
    assert "Give --images to see pictures." in capsys.readouterr().out
    assert "data:image" not in (tmp_path / "copies.html").read_text()


def test_the_flag_that_says_where_images_are_is_the_one_of_the_verb(
    tmp_path: Path, photographs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = save_vectors(tmp_path / "v.npy")
    run("overlap", vectors, vectors, "-o", tmp_path / "both.csv", "--images", photographs)
    said = capsys.readouterr().out
    assert "Give --test-images to see pictures." in said
    assert "Give --images" not in said


def test_every_verb_writes_its_table_and_page(tmp_path: Path, photographs: Path) -> None:
    vectors = save_vectors(tmp_path / "v.npy")
    seen = ("--images", photographs, "--sheet", 3)
    run("outliers", vectors, "-o", tmp_path / "far.csv", "--neighbours", 3, *seen)
    far = rows_of(tmp_path / "far.csv")
    assert sorted(one["name"] for one in far) == sorted(names())
    distances = [float(one["distance"]) for one in far]
    assert distances == sorted(distances, reverse=True)
    run("mislabelled", vectors, "-o", tmp_path / "labels.csv", "--neighbours", 3, *seen)
    assert {one["label"] for one in rows_of(tmp_path / "labels.csv")} == {"cat", "dog"}
    run("overlap", vectors, vectors, "-o", tmp_path / "both.csv", *seen)
    both = rows_of(tmp_path / "both.csv")
    assert {(one["copy"], one["name"] == one["nearest"]) for one in both} == {("exact", True)}
    run("search", vectors, "--image", STRANGE, "--k", 2, "-o", tmp_path / "near.csv", *seen)
    assert rows_of(tmp_path / "near.csv")[0]["name"] == "cat/2.png"
    for name in ("far", "labels", "both", "near"):
        assert "<img" in (tmp_path / f"{name}.html").read_text() or name == "labels"


def test_a_threshold_of_zero_lists_the_same_vectors_alone(tmp_path: Path) -> None:
    vectors = save_vectors(tmp_path / "v.npy")
    run("duplicates", vectors, "-o", tmp_path / "copies.csv", "--threshold", 0)
    assert rows_of(tmp_path / "copies.csv") == []
    run("overlap", vectors, vectors, "-o", tmp_path / "both.csv", "--threshold", 0)
    assert {one["copy"] for one in rows_of(tmp_path / "both.csv")} == {"exact"}
    for name in ("copies", "both"):
        assert "threshold 0.0000" in (tmp_path / f"{name}.html").read_text()


def test_no_page_is_written_where_none_is_wanted(tmp_path: Path) -> None:
    run("outliers", save_vectors(tmp_path / "v.npy"), "-o", tmp_path / "far.csv", "--sheet", 0)
    assert not (tmp_path / "far.html").exists()


def test_an_output_that_is_no_table_is_refused_before_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["outliers", str(tmp_path / "missing"), "-o", "far.html"]) == 2
    assert "ends in .csv" in capsys.readouterr().err


VERBS = [
    ["duplicates", "VECTORS"],
    ["outliers", "VECTORS", "--neighbours", "3"],
    ["mislabelled", "VECTORS", "--neighbours", "3"],
    ["overlap", "VECTORS", "VECTORS"],
    ["search", "VECTORS", "--image", "0"],
]


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_only_tables_and_pages_of_the_same_verb_are_replaced(
    verb: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = save_vectors(tmp_path / "v.npy")
    numbers = [f"feature_{i}" for i in range(6)]
    (tmp_path / "own.csv").write_text(",".join(["name", *numbers]) + "\na.png,1,2,3,4,5,6\n")
    np.save(tmp_path / "bare.npy", np.ones((2, 3)))
    (tmp_path / "report.html").write_text("<title>photos - diptych report</title>")
    (tmp_path / "somebodys.csv").write_text("name,notes\n")
    (tmp_path / "folder.csv").mkdir()
    before = sorted(tmp_path.iterdir()), (tmp_path / "v.csv").read_bytes()
    ask = [str(vectors) if one == "VECTORS" else one for one in verb]
    for name, words in (
        ("v.csv", "the table of names of v.npy"),
        ("bare.csv", "the table of names of bare.npy"),
        ("own.csv", "no table of this command"),
        ("somebodys.csv", "no table of this command"),
        ("folder.csv", "no table of this command"),
        ("report.csv", "report.html is there and is no page of this command"),
    ):
        assert main([*ask, "-o", str(tmp_path / name)]) == 2
        assert words in capsys.readouterr().err
    assert (sorted(tmp_path.iterdir()), (tmp_path / "v.csv").read_bytes()) == before
    for _ in range(2):  # its own are
        run(*ask, "-o", tmp_path / "found.csv")
    run(*ask, "-o", tmp_path / "report.csv", "--sheet", 0)  # which writes no page


def test_pictures_of_built_in_images_are_found_by_their_name() -> None:
    vectors = VectorSet(
        Path("v.npy"), np.ones((2, 3), np.float32), ["0", "400"], path="photographs"
    )
    pictures = Thumbnails.of(vectors)
    assert pictures.missing == ""
    assert pictures.picture(1) is not None
    assert vectors.root is None


def test_a_name_outside_the_folder_is_never_opened(tmp_path: Path, photographs: Path) -> None:
    Image.new("RGB", (20, 20)).save(tmp_path / "secret.png")
    features = np.ones((2, 3), np.float32)
    hostile = VectorSet(Path("v.npy"), features, ["../secret.png", "cat/1.png"])
    pictures = Thumbnails.of(hostile, str(photographs))
    assert pictures.picture(0) is None
    assert pictures.picture(1) is not None
    assert pictures.file_bytes(np.array([0, 1]))[0] == 0


def test_a_picture_is_small_and_one_that_is_damaged_is_left_out(
    tmp_path: Path, photographs: Path
) -> None:
    (photographs / "cat/1.png").write_bytes(b"no image")
    Image.new("RGB", (4000, 1000)).save(photographs / "cat/3.png")
    data = VectorSet(Path("v.npy"), np.ones((12, 3), np.float32), names())
    pictures = Thumbnails.of(data, str(photographs))
    assert pictures.picture(1) is None
    uri = pictures.picture(3)
    assert uri is not None
    assert len(uri) < 20_000
    assert SIDE <= 256
