"""What a run imports until its first step: what only later or other work needs is not among it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

NOT_NEEDED = {
    "jinja2",
    "matplotlib",
    "pandas",
    "pyarrow",
    "scipy.stats",
    "sklearn",
    "starlette",
    "sympy",
    "tensorboard.summary",
    "timm",
    "torch._dynamo",
    "torch._inductor",
    "torchvision",
    "transformers",
}
"""Each takes from a tenth of a second to several seconds."""

FIRST_STEP = f"""
import os, sys
from diptych.cli.main import main
import diptych.training.loop as loop
step = loop.train_step
def last_step(*given, **named):
    step(*given, **named)
    print("imported:", *sorted({NOT_NEEDED!r} & set(sys.modules)), flush=True)
    os._exit(0)
loop.train_step = last_step
main(["pretrain", *sys.argv[1:]])
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars"])
def test_a_run_imports_nothing_that_its_first_step_does_not_need(tmp_path: Path, kind: str) -> None:
    generator = np.random.default_rng(0)
    for number in range(32):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    flags = ["--scale", "tiny", "--batch-size", "16", "--threads", "1", "--optimizer.kind", kind]
    command = [sys.executable, "-c", FIRST_STEP, str(tmp_path / "images"), *flags]
    found = subprocess.run(
        [*command, "--out", str(tmp_path / "run")], capture_output=True, text=True, check=True
    )
    assert found.stdout.splitlines()[-1] == "imported:"
