"""Environments of the peers: one folder each, made from PyPI when it is not there yet.

torch is pinned to the version that diptych runs on, so that both sides compute by the same code.
`torchvision`, `kornia` and `pytorch-metric-learning`, whose parts are compared in one process, are
in the project's own environment (`pip install -e '.[dev]'`).
"""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

ENVIRONMENTS: Final[Mapping[str, tuple[str, ...]]] = {
    "lightly-train": ("lightly-train==0.18.0", "lightly==1.6.0"),  # lightly is a part of it
    "stable-pretraining": ("stable-pretraining==0.1.8",),
}
OF_OURS: Final = ("safetensors", "jaxtyping")
"""What the runners need besides torch, as every side gets the network from diptych's own code."""
SHOWN: Final = (
    *("torch", "torchvision", "numpy", "pillow"),
    *("lightly", "lightly-train", "stable-pretraining"),
    *("pytorch-lightning", "lightning", "albumentations"),
    *("kornia", "pytorch-metric-learning", "scikit-learn"),
)
ROOT: Final = Path(__file__).parents[2]
_VERSIONS = """
import json, sys
from importlib.metadata import PackageNotFoundError, version
found = {"python": sys.version.split()[0]}
for name in sys.argv[1:]:
    try:
        found[name] = version(name)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return folder / name / "bin" / "python"


def make(folder: Path) -> None:
    """Makes the environments that are not there; each takes some gigabytes with its torch."""
    same = f"torch=={version('torch').partition('+')[0]}"
    for name, wanted in ENVIRONMENTS.items():
        if _has(folder, name, (*wanted, same)):
            continue
        print(f"Making the environment {folder / name}: {', '.join(wanted)}", flush=True)
        venv.create(folder / name, with_pip=True)
        install = [str(python_of(folder, name)), "-m", "pip", "install", "-q", *wanted, same]
        subprocess.run([*install, *OF_OURS], check=True)


def _has(folder: Path, name: str, wanted: tuple[str, ...]) -> bool:
    """Whether an environment is there and has the versions wanted."""
    if not python_of(folder, name).exists():
        return False
    found = versions(python_of(folder, name), OF_OURS)
    return set(OF_OURS) <= set(found) and all(
        found.get(name, "").partition("+")[0] == release
        for name, _, release in (one.partition("==") for one in wanted)
    )


def versions(python: Path | str = sys.executable, more: Sequence[str] = ()) -> dict[str, str]:
    """Versions of what matters and of more packages, in one environment."""
    command = [str(python), "-c", _VERSIONS, *SHOWN, *more]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, str] = json.loads(answer)
    return found


def runner_environment() -> dict[str, str]:
    """Variables of a peer's process: our networks and runners in its path, and nothing sent."""
    path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "benchmarks")))
    # How ours keeps threads that wait from taking the cores of those that work: for all, then.
    waiting = {"GOMP_SPINCOUNT": "20000"}
    offline = {"LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    # Each library sets its threads itself; what the caller's shell says would bind only some. And
    # a checkout may keep its compiled modules, as those of installed libraries are kept.
    left_out = ("OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")
    own = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**own, "PYTHONPATH": path, **waiting, **offline}
