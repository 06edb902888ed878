"""The examples for Ray and Spark give the vectors of the command, each in a process of its own."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from pyarrow import parquet

from diptych.embeddings.vectors import read_vectors
from embedding_runs import finish, write_run

EXAMPLES = Path(__file__).parents[2] / "examples"


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
    command = [sys.executable, script, run, tmp_path / "images.parquet", out]
    done = subprocess.run(
        list(map(str, command)),
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},  # Ray writes there
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = pa.concat_tables(
        parquet.ParquetFile(file).read(["name", "feature"]) for file in out.rglob("*.parquet")
    )
    rows = sorted(found.to_pylist(), key=lambda row: int(row["name"]))
    assert [row["name"] for row in rows] == table["name"].to_pylist()
    finish(run, tmp_path / "images.parquet", tmp_path / "v.npy")
    wanted = read_vectors(tmp_path / "v.npy").features
    vectors = np.array([row["feature"] for row in rows], np.float32)
    np.testing.assert_allclose(vectors.reshape(wanted.shape), wanted, rtol=1e-4, atol=1e-6)
