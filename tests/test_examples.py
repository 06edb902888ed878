"""Every example runs in a process of its own; Ray and Spark give the vectors of the command."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

import diptych
from diptych.embeddings.vectors import read_vectors
from embedding_runs import finish, write_run

EXAMPLES = Path(__file__).parents[1] / "examples"
README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ray", "spark"])
def test_an_engine_gives_the_vectors_of_the_command(
    engine: str,
    stripes: Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]],
    tmp_path: Path,
) -> None:
    from conftest import encoded

    library = {"ray": "ray", "spark": "pyspark"}[engine]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    if engine == "spark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    data = [encoded(image, "PNG") for image in stripes(60, 3)[0]]
    table = pa.table({"name": [str(n) for n in range(60)], "image": data})
    parquet.write_table(table, tmp_path / "images.parquet", row_group_size=25)
    run, out = write_run(tmp_path / "run"), tmp_path / "vectors"
    script = EXAMPLES / f"embed_{engine}.py"
    run_script(script, run, tmp_path / "images.parquet", out, folder=tmp_path)
    found = pa.concat_tables(
        parquet.ParquetFile(file).read(["name", "feature"]) for file in out.rglob("*.parquet")
    )
    rows = sorted(found.to_pylist(), key=lambda row: int(row["name"]))
    assert [row["name"] for row in rows] == table["name"].to_pylist()
    finish(run, tmp_path / "images.parquet", tmp_path / "v.npy")
    wanted = read_vectors(tmp_path / "v.npy").features
    vectors = np.array([row["feature"] for row in rows], np.float32)
    np.testing.assert_allclose(vectors.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["loss", "method"])
def test_an_own_part_trains_and_is_measured(part: str, images: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    said = run_script(EXAMPLES / f"own_{part}.py", images, run, "--epochs", "1", folder=tmp_path)
    shares = ast.literal_eval(said.splitlines()[-1])
    assert sorted(shares) == ["pixels", "trained", "untrained"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in lines)
    assert ("correlation" in lines[-1]) == (part == "method")
    assert 'kind = "own"' in (run / "config.toml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("script", ["own_loss.py", "own_method.py", "notebook_first_run.py"])
def test_images_without_labels_train_too(script: str, images: Path, tmp_path: Path) -> None:
    with np.load(images) as given:
        np.save(tmp_path / "plain.npy", given["images"])
    where = {"DIPTYCH_IMAGES": str(tmp_path / "plain.npy"), "DIPTYCH_EPOCHS": "1"}
    arguments = (tmp_path / "plain.npy", tmp_path / "run", "--epochs", "1")
    given_to = () if script.startswith("notebook") else arguments
    said = run_script(EXAMPLES / script, *given_to, folder=tmp_path, **where)
    assert "ot measured: evaluation needs labels" in said


@pytest.mark.slow
def test_the_nearest_images_are_those_of_the_search(images: Path, tmp_path: Path) -> None:
    run, out = write_run(tmp_path / "run"), tmp_path / "v.npy"
    with np.load(images) as given:
        pixels = given["images"]
    pixels[59] = pixels[3]
    np.savez(images, images=pixels)
    script = EXAMPLES / "embed_and_search.py"
    said = run_script(script, run, images, out, "--row", "3", "--k", "4", folder=tmp_path)
    again = run_script(script, run, images, out, "--row", "59", folder=tmp_path).splitlines()
    assert [line.split()[1] for line in again[-5:]].count("59") == 0
    assert again[-5].split() == ["1.0000", "3"]  # its copy
    vectors = read_vectors(out)
    unit = vectors.features / np.linalg.norm(vectors.features, axis=1, keepdims=True)
    wanted = sorted((unit.astype(np.float64) @ unit[3]).tolist(), reverse=True)[1:5]
    found = [float(line.split()[0]) for line in said.splitlines()[-4:]]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.slow
def test_the_notebook_runs_as_a_script(images: Path, tmp_path: Path) -> None:
    script = EXAMPLES / "notebook_first_run.py"
    given = {"DIPTYCH_IMAGES": str(images), "DIPTYCH_EPOCHS": "1"}
    said = run_script(script, folder=tmp_path, **given)
    assert "knn {" in said
    assert (tmp_path / "runs" / "notebook" / "report.html").is_file()


@pytest.fixture
def images(
    stripes: Callable[[int, int], tuple[NDArray[np.uint8], NDArray[np.int64]]], tmp_path: Path
) -> Path:
    """Sixty images of three classes, with their labels."""
    pixels, labels = stripes(60, 3)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def run_script(script: Path, *arguments: Path | str, folder: Path, **environment: str) -> str:
    """What an example prints."""
    done = subprocess.run(
        [sys.executable, str(script), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "HOME": str(folder), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fewer images in less time, but for the features, which are of all."""
    code = README.read_text().partition("## Ten lines of Python")[2].split("```")[1]
    code = code.removeprefix("python\n").replace("epochs=5", "epochs=1")
    few: dict[str, Any] = {"images.limit": 160, "quiet": True, "threads": 1}
    monkeypatch.setattr(diptych, "pretrain", partial(diptych.pretrain, **few))
    monkeypatch.chdir(tmp_path)
    found = dict[str, Any]()
    exec(code, found)
    said = re.search(r"# \((\d+), (\d+)\)", code)
    assert said is not None
    assert found["features"].shape == tuple(map(int, said.groups()))
    assert found["loss"].isfinite()
