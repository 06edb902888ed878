"""Names that are no UTF-8, from the folder of images to all that is written."""

import csv
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from conftest import striped
from diptych import read_embeddings
from diptych.cli.main import main
from diptych.config.files import load_run_config, overlay, to_toml
from diptych.config.run import RunConfig
from diptych.escaping import HANDLER, escaped, readable, unescaped
from diptych.images.groups import find_groups

KOELN = os.fsdecode(b"K\xf6ln")  # in Latin-1
BREMEN = os.fsdecode(b"Br\xe9men")
TINY = ["--encoder.width", "4", "--encoder.stage-blocks", "1", "1", "--batch-size", "16"]
TINY += ["--views.side-pixels", "16", "--probe.images", "32", "--threads", "1"]


def images_in(root: Path) -> Path:
    """Two classes, and a file that is no image."""
    rng = np.random.default_rng(3)
    try:
        for label, name in enumerate((BREMEN, KOELN)):
            (root / name).mkdir(parents=True)
            for number in range(20):
                file = root / name / os.fsdecode(b"\xfcber %d.png" % number)
                Image.fromarray(striped(label, rng)).save(file)
        (root / KOELN / os.fsdecode(b"\xff<b>.png")).write_bytes(b"junk")
    except OSError:
        pytest.skip("this file system takes no such names")
    return root


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of such a name with images and a run on them."""
    root = tmp_path_factory.mktemp("odd") / os.fsdecode(b"\xe4[/b]")
    images = images_in(root / "images")
    assert main(["pretrain", str(images), "--out", str(root / "run"), "--epochs", "1", *TINY]) == 0
    return root


def test_a_run_and_its_files(place: Path) -> None:
    run = place / "run"
    text = (run / "config.toml").read_bytes().decode()
    assert tomllib.loads(text)["images"]["path"]["escaped"].endswith(r"\xe4[/b]/images")
    assert load_run_config(run / "config.toml").images.path == str(place / "images")
    with open(run / "skipped.csv", newline="", encoding="utf-8") as file:
        [row] = csv.DictReader(file)
    assert row["name"] == r"K\xf6ln/\xff<b>.png"
    page = (run / "report.html").read_bytes().decode()
    for words in (r"K\xf6ln", r"Br\xe9men", r"\xff&lt;b&gt;.png", r"\xe4[/b]/images"):
        assert words in page
    json.loads((run / "evaluation.json").read_bytes().decode())


def test_it_goes_on_and_is_measured(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, images = str(place / "run"), str(place / "images")
    assert main(["pretrain", images, "--out", run, "--resume", "--no-report", "--quiet"]) == 0
    ranks = place / os.fsdecode(b"r\xe4nge.json")
    assert main(["rank", run, "--json", str(ranks), "--threads", "1"]) == 0
    json.loads(ranks.read_bytes().decode())
    transfer = ["--protocol", "knn", "transfer", "--transfer", images, "--against", run]
    assert main(["evaluate", run, *transfer, "--threads", "1"]) == 0
    assert list(json.loads((place / "run/evaluation.json").read_bytes())["transfer"]) == [images]
    assert main(["report", run, "--threads", "1"]) == 0
    assert r"\xe4" in capsys.readouterr().out


def test_a_page_of_views(place: Path) -> None:
    page = place / os.fsdecode(b"s\xe4he.html")
    assert main(["views", str(place / "images"), "--out", str(page), "--rows", "2"]) == 0
    assert r"Br\xe9men/\xfcber" in page.read_bytes().decode()


@pytest.mark.parametrize("kind", ["folder", "parquet"])
def test_embeddings(kind: str, place: Path, tmp_path: Path) -> None:
    images = place / "images"
    if kind == "parquet":
        rows = [file.read_bytes() for file in sorted((images / KOELN).glob("*[0-9].png"))]
        images = tmp_path / os.fsdecode(b"t\xe4.parquet")
        with open(images, "wb") as file:
            pq.write_table(pa.table({"image": rows}), file)
    out = tmp_path / os.fsdecode(b"v\xe4")
    command = ["embed", str(place / "run"), str(images), "-o", str(out), "--threads", "1"]
    assert main([*command, "--shards", "2"]) == 0
    assert main([*command, "--shards", "2"]) == 0  # which finds them
    found = read_embeddings(out)
    if kind == "folder":
        assert (images / found.names[0]).is_file()
        assert next(found.chunks()).labels[0] == BREMEN  # type: ignore[index]
        written = (out / "features-00000-of-00002.parquet").read_bytes()
        table = pq.read_table(pa.BufferReader(written))
        assert table["name"].to_pylist()[0].startswith(r"Br\xe9men/\xfcber")
        assert table["label"].to_pylist()[0] == r"Br\xe9men"
        skipped = (out / "skipped-00001-of-00002.csv").read_bytes().decode()
        assert r"K\xf6ln/\xff<b>.png" in skipped


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_terminal(encoding: str, tmp_path: Path) -> None:
    """Of any encoding: what it cannot show is written out."""
    missing = tmp_path / os.fsdecode(b"n\xf6")
    ended = subprocess.run(
        [sys.executable, "-m", "diptych", "views", missing, "--out", tmp_path / "a.png"],
        env={**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"},
        capture_output=True,
    )
    said = ended.stderr.decode("ascii")
    assert ended.returncode == 2
    assert "does not exist" in said
    assert "Traceback" not in said


def test_a_table_of_groups_may_name_them_in_bytes_or_escaped(tmp_path: Path) -> None:
    table = tmp_path / "groups.csv"
    table.write_bytes(b"name,patient\nK\xf6ln.png,1\nBr\\xe9men.png,2\nc.png,1\n")
    groups = find_groups([f"{KOELN}.png", f"{BREMEN}.png", "c.png"], f"{table}:patient")
    assert groups.numbers[0] == groups.numbers[2] != groups.numbers[1]


@pytest.mark.parametrize(
    "name",
    [
        "plain.png",
        "Köln.png",
        f"{KOELN}.png",
        r"K\xf6ln.png",
        r"\x5cxff",
        "\\" + KOELN,
        "\\x" + KOELN,
        os.fsdecode(b"\xff\xfe"),
        r"C:\x5c\xff",
        "\\\udcffxff",
        "\\x5\udce9c",
    ],
)
def test_what_is_escaped_comes_back(name: str) -> None:
    assert unescaped(escaped(name)) == name
    escaped(name).encode()
    assert name.encode(errors=HANDLER).decode() == readable(name)
    config = overlay(RunConfig(), {"images": {"path": name}}, "test")
    again = overlay(RunConfig(), tomllib.loads(to_toml(config)), "test")
    assert again == config


def test_escapes_are_told_apart() -> None:
    rng = np.random.default_rng(1)
    alphabet = ["\\", "x", "5", "c", "f", "e", "9", "\udcff", "\udc80", "é"]
    names = {"".join(rng.choice(alphabet, 6)) for _ in range(20000)}
    assert len({escaped(name) for name in names}) == len(names)
    assert all(unescaped(escaped(name)) == name for name in names)
