"""Columns of a table, and sets that have nothing to find."""

from pathlib import Path

import numpy as np
import pytest

from diptych.curation.copies import find_copies
from diptych.curation.mislabelled import find_mislabelled
from diptych.curation.outliers import find_outliers
from diptych.embeddings.neighbours import nearest
from diptych.embeddings.vectors import VectorSet
from diptych.errors import ConfigError, EmbeddingsError
from diptych.gallery.columns import groups_of_copies, read_table
from diptych.gallery.panels import Findings
from diptych.gallery.shown_runs import digest_of, open_runs
from served_gallery import two_groups

NAMES = ["a.png", "b.png", "c.png"]


def table(tmp_path: Path, text: str) -> Path:
    (tmp_path / "table.csv").write_text(text)
    return tmp_path / "table.csv"


def test_numbers_and_classes_are_told_apart(tmp_path: Path) -> None:
    file = table(tmp_path, "name,size,kind,site\nc.png,2.5,moth,1\na.png,0.5,,2\nother,9,ant,3\n")
    size, kind, site = read_table(file, NAMES)
    assert (size.kind, kind.kind, site.kind) == ("number", "class", "class")
    np.testing.assert_array_equal(size.values(), np.array([0.5, np.nan, 2.5], np.float32))
    assert size.described() == {
        "name": "size",
        "kind": "number",
        "ready": True,
        "low": 0.5,
        "high": 2.5,
    }
    assert (kind.values().tolist(), list(kind.classes())) == ([-1, -1, 0], ["moth"])
    assert [site.text(row) for row in range(3)] == ["2", None, "1"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("file,size\na.png,1\n", "column 'name'"),
        ("name,size\nz.png,1\n", "no image of the gallery"),
        ('name,size\n"a.png,1\n', "cannot be read"),
        ("name," + ",".join(f"c{i}" for i in range(200)) + "\na.png\n", "100 at most"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_table(table(tmp_path, text), NAMES)


def test_known_neighbours_give_the_same_findings() -> None:
    features = two_groups()
    labels = [str(row % 2) for row in range(len(features))]
    vectors = VectorSet(Path("v"), features, [str(row) for row in range(len(features))], labels)
    known = nearest(features, features, 25, exclude_own_row=True)
    found = find_outliers(vectors), find_outliers(vectors, found=known)
    np.testing.assert_array_equal(found[0].scores, found[1].scores)
    groups = find_copies(vectors, 0.02), find_copies(vectors, 0.02, found=known)
    np.testing.assert_array_equal(groups[0].kept, groups[1].kept)
    doubts = find_mislabelled(vectors), find_mislabelled(vectors, found=known)
    np.testing.assert_array_equal(doubts[0].rows, doubts[1].rows)
    np.testing.assert_array_equal(doubts[0].own, doubts[1].own)


def test_groups_of_copies_are_numbered_and_images_without_one_have_no_number() -> None:
    features = np.eye(6, dtype=np.float32)[[0, 1, 0, 2, 1, 3]]
    vectors = VectorSet(Path("v"), features, list("abcdef"))
    values = groups_of_copies(find_copies(vectors, 0.01), len(vectors))
    assert np.isnan(values[[3, 5]]).all()
    assert values[0] == values[2] != values[1] == values[4]


def test_one_image_has_panels_that_say_why_they_are_empty() -> None:
    vectors = VectorSet(Path("v"), np.ones((1, 3), np.float32), ["a.png"])
    near = nearest(vectors.features, vectors.features, 20, exclude_own_row=True)
    panels = Findings.of(vectors, near).panels()
    assert "one image" in panels["outliers"].words
    assert "one image" in panels["contradicted"].words
    assert panels["clusters"].item(0).rows == [0]


def test_images_need_names_of_their_own() -> None:
    twice = VectorSet(Path("v"), np.ones((2, 3), np.float32), ["a.png", "a.png"])
    with pytest.raises(EmbeddingsError, match="two images called"):
        open_runs(twice)
    one = VectorSet(Path("v"), np.ones((1, 3), np.float32), ["a.png"])
    other = VectorSet(Path("w"), np.ones((1, 3), np.float32), ["b.png"])
    with pytest.raises(EmbeddingsError, match="no image of v"):
        open_runs(one, other)


def test_a_digest_changes_with_vectors_names_and_labels() -> None:
    features = np.ones((2, 3), np.float32)
    made = [
        VectorSet(Path("v"), features, ["a", "b"]),
        VectorSet(Path("v"), features * 2, ["a", "b"]),
        VectorSet(Path("v"), features, ["ab", ""]),
        VectorSet(Path("v"), features, ["a", "b"], ["x", None]),
        VectorSet(Path("v"), features, ["a", "b"], [None, "x"]),
    ]
    assert len({digest_of(one) for one in made}) == len(made)
    assert digest_of(made[0]) == digest_of(VectorSet(Path("w"), features.copy(), ["a", "b"]))
