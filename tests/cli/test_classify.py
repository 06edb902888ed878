"""The verb `subset` from vectors to a list; `classify` is tested beside its room."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest

from diptych.cli.main import main
from diptych.config.data import ImagesConfig
from diptych.images.sources.lists import find_list
from embedding_runs import make, write_run


@pytest.fixture
def vectors(tmp_path: Path, rng: np.random.Generator) -> Path:
    """Forty vectors with the table of their names, of which the first two have labels."""
    np.save(tmp_path / "v.npy", rng.normal(size=(40, 6)).astype(np.float32))
    lines = [f"{n}.png,{'ab'[n] if n < 2 else ''}" for n in range(40)]
    (tmp_path / "v.csv").write_text("\n".join(["name,label", *lines]) + "\n")
    return tmp_path / "v.npy"


@pytest.mark.parametrize("way", ["k-centre", "facility-location", "typical"])
def test_a_subset_is_written_in_order(
    way: str, vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "subset.csv"
    flags = ["--budget", "5", "--by", way, "--labelled", "labels", "-o", str(out)]
    assert main(["subset", str(vectors), *flags]) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rank"] for row in rows] == list("12345")
    assert not {"0.png", "1.png"} & {row["name"] for row in rows}
    assert "5 of 40 images, beside 2 that are labelled" in capsys.readouterr().out
    assert main(["subset", str(vectors), *flags[:-1], str(tmp_path / "s.txt")]) == 0
    first, *names = (tmp_path / "s.txt").read_text().splitlines()
    assert first == "# diptych subset"
    assert names == [row["name"] for row in rows]


def test_a_list_names_the_files_of_a_set_in_parts(
    tmp_path: Path, class_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    shutil.copytree(class_folder, tmp_path / "set" / "train")
    shutil.copytree(class_folder, tmp_path / "set" / "test")
    out = tmp_path / "next.txt"
    make(run, tmp_path / "set", tmp_path / "vectors", 1)
    assert main(["subset", str(tmp_path / "vectors"), "--budget", "5", "-o", str(out)]) == 0
    chosen = out.read_text().splitlines()[1:]
    assert len(chosen) == 5
    listed = find_list(str(out), ImagesConfig()).train
    assert list(listed.names) == chosen  # without the line that says whose list it is
    assert all(Path(one).is_file() and "/set/train/" in one for one in chosen)
    # It is what the next choice counts in; a file of the other part has the name of another image.
    out.write_text(out.read_text() + chosen[0].replace("/set/train/", "/set/test/") + "\n")
    capsys.readouterr()
    ask = ["subset", str(tmp_path / "vectors"), "--labelled", str(out), "--budget", "3"]
    assert main([*ask, "-o", str(tmp_path / "more.txt")]) == 0
    said = capsys.readouterr().out
    assert "beside 5 that are labelled" in said
    assert "1 names of --labelled are none of the images" in said
    assert not {*chosen} & {*(tmp_path / "more.txt").read_text().splitlines()}
    array = tmp_path / "array.npy"
    np.save(array, np.zeros((20, 9, 9, 3), dtype=np.uint8))
    make(run, array, tmp_path / "of-array", 1)
    assert main(["subset", str(tmp_path / "of-array"), "--budget", "5", "-o", str(out)]) == 2
    assert "is a list of files. The images are no files of their own." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--budget", "0"], "between 1 and 40"),
        (["--budget", "5", "--by", "uncertain"], "--model FOLDER"),
        (["--budget", "5", "--model", "m"], "goes with --by uncertain"),
        (["--budget", "5", "--by", "uncertain", "--model", "m"], "no folder of a classifier"),
        (["--budget", "5", "-o", "x.jpg"], "ends in .csv or .txt"),
        (["--budget", "5", "--labelled", "no.csv"], "is not there"),
    ],
)
def test_wrong_use_is_refused_with_a_sentence(
    flags: list[str], words: str, vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["subset", str(vectors), *flags]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a\nb.png", "a\rb.png", " a.png", "a.png\t", "#a.png"])
def test_names_that_are_no_line_are_not_listed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "v.npy", np.eye(2, dtype=np.float32))
    with open(tmp_path / "v.csv", "w", newline="") as file:
        csv.writer(file).writerows([["name"], ["b.png"], [name]])
    ask = ["subset", str(tmp_path / "v.npy"), "--budget", "2", "-o"]
    assert main([*ask, str(tmp_path / "s.txt")]) == 2
    assert f"a list cannot hold {name!r}" in capsys.readouterr().err
    assert not (tmp_path / "s.txt").exists()
    assert main([*ask, str(tmp_path / "s.csv")]) == 0


def test_a_subset_replaces_nothing_but_an_earlier_one(
    vectors: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done, names = tmp_path / "done.csv", tmp_path / "names.txt"
    ask = ["subset", str(vectors), "--budget", "5"]
    assert main([*ask, "-o", str(done)]) == 0
    assert main([*ask, "-o", str(done)]) == 0
    names.write_text("0.png\n")
    (tmp_path / "list.txt").write_text("0.png\n")
    for _ in range(2):
        assert main([*ask, "-o", str(tmp_path / "next.txt")]) == 0
    (tmp_path / "mine.csv").write_text("name,notes\n0.png,sharp\n")
    before = {one.name: one.read_bytes() for one in tmp_path.iterdir()}
    for given, out, words in (
        ([], "v.csv", "the table of names of v.npy"),
        ([], "mine.csv", "no table of this command"),
        (["--labelled", str(done)], "done.csv", "what this command reads"),
        (["--labelled", str(names)], "names.txt", "no list of this command"),
        ([], "list.txt", "no list of this command, which begins with '# diptych subset'"),
    ):
        assert main([*ask, *given, "-o", str(tmp_path / out)]) == 2
        assert words in capsys.readouterr().err
    assert {one.name: one.read_bytes() for one in tmp_path.iterdir()} == before
