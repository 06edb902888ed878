"""What a run imports, until its first step and until vectors are made: nothing of other work."""

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
OF_THE_END = {"pyarrow", "tensorboard.summary"}
"""Those that write vectors and curves."""

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
images, run, *flags = sys.argv[1:]
main(["pretrain", images, "--out", run, *flags])
"""


RUN_AND_EMBED = f"""
import sys
from diptych.cli.main import main
images, run, *flags = sys.argv[1:]
assert main(["pretrain", images, "--out", run, "--epochs", "1", "--no-report", *flags]) == 0
assert main(["embed", run, images, "--out", run + ".npy"]) == 0
print("imported:", *sorted({NOT_NEEDED - OF_THE_END!r} & set(sys.modules)))
"""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Thirty-two JPEG files of two classes."""
    generator = np.random.default_rng(0)
    for number in range(32):
        path = tmp_path / "images" / f"class{number % 2}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


def imported_by(program: str, images: Path, *flags: str) -> str:
    """What a program says that it has imported of what is not needed."""
    few = ("--scale", "tiny", "--batch-size", "16", "--threads", "1")
    command = [sys.executable, "-c", program, str(images), str(images.with_name("run"))]
    found = subprocess.run([*command, *few, *flags], capture_output=True, text=True, check=True)
    return found.stdout.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("encoder", "kind"),
    [("small_resnet", "sgd"), ("small_resnet", "adamw"), ("resnet18", "lars")],
)
def test_a_run_imports_nothing_that_its_first_step_does_not_need(
    images: Path, encoder: str, kind: str
) -> None:
    flags = ("--encoder", encoder, "--optimizer.kind", kind)
    assert imported_by(FIRST_STEP, images, *flags) == "imported:"


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["small_resnet", "resnet18"])
def test_neither_do_the_end_of_a_run_and_vectors_by_its_encoder(images: Path, encoder: str) -> None:
    assert imported_by(RUN_AND_EMBED, images, "--encoder", encoder) == "imported:"
