"""What the README says works with what a plain install brings."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def readme_commands() -> list[list[str]]:
    """Each command of the README with its arguments."""
    found = re.findall(r"^    diptych (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return [line.partition("#")[0].split() for line in found]


def closure(wanted: list[str]) -> set[str]:
    """Names of packages that come with these."""
    found, waiting = set[str](), [Requirement(one) for one in wanted]
    while waiting:
        one = waiting.pop()
        name = one.name.lower().replace("_", "-")
        if name in found or (one.marker and not one.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        try:
            waiting += [Requirement(text) for text in requires(one.name) or []]
        except PackageNotFoundError:
            continue
    return found


def blocked_modules() -> list[str]:
    """Top-level modules of packages that only extras and developers have."""
    plain = closure(PROJECT["dependencies"])
    extras = closure([one for some in PROJECT["optional-dependencies"].values() for one in some])
    return sorted(
        module
        for module, packages in packages_distributions().items()
        if all(name.lower().replace("_", "-") in extras - plain for name in packages)
    )


BLOCK = """
from importlib.machinery import PathFinder
class Plain(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        missing = name.partition(".")[0] in {names!r}
        return None if missing else super().find_spec(name, path, target)
import sys
sys.meta_path[sys.meta_path.index(PathFinder)] = Plain
"""

EVERY_MODULE = """
import importlib, pkgutil, diptych
for one in pkgutil.walk_packages(diptych.__path__, "diptych."):
    if not one.name.endswith("__main__"):
        importlib.import_module(one.name)
"""

COMMANDS = """
from diptych.cli.main import main
tiny = ["--encoder.width", "4", "--encoder.stage-blocks", "1", "1", "--batch-size", "16"]
tiny += ["--views.side-pixels", "16", "--probe.images", "32", "--threads", "1"]
for command in (
    ["views", "photos", "--out", "views.html", "--rows", "2"],
    ["pretrain", "photos", "--epochs", "1", "--out", "run", *tiny],
    ["pretrain", "photos", "--out", "run", "--resume", "--no-report"],
    ["evaluate", "run", "--train", "photos", "--test", "photos", "--threads", "1"],
    ["rank", "run", "--threads", "1"],
    ["report", "run", "--threads", "1"],
    ["study"],
    ["plan", "photos", "--processes", "8", "--on", "a100"],
    ["embed", "run", "photos", "-o", "features", "--threads", "1"],
    ["embed", "run", "photos", "-o", "features.parquet", "--threads", "1"],
    ["search", "features", "--image", "photos", "--source", "run"],
    ["duplicates", "features", "-o", "copies.csv"],
    ["subset", "features", "--budget", "5", "-o", "to-label.csv"],
    ["classify", "fit", "run", "photos", "-o", "model", "--threads", "1"],
    ["classify", "predict", "model", "photos", "-o", "answers.csv", "--threads", "1"],
    ["export", "run", "--format", "safetensors", "-o", "export"],
):
    assert main(command) == 0, command
    print("verb", command[0])

# The gallery serves until Ctrl-C, which comes when it would open the browser.
import os, signal, webbrowser
webbrowser.open = lambda address: os.kill(os.getpid(), signal.SIGINT)
assert main(["gallery", "features", "--port", "0"]) in (0, 130)
print("verb gallery")
"""


def in_a_plain_install(code: str, folder: Path) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", BLOCK.format(names=blocked_modules()) + code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_what_a_plain_install_lacks_is_known() -> None:
    blocked = blocked_modules()
    assert {"pycocotools", "aiohttp", "datasets", "pytest"} <= set(blocked)
    assert not {"pyarrow", "torch", "diptych", "numpy"} & set(blocked)


@pytest.mark.slow
def test_every_module_loads(tmp_path: Path) -> None:
    in_a_plain_install(EVERY_MODULE, tmp_path)


@pytest.mark.slow
def test_every_command_of_the_readme_runs(class_folder: Path, tmp_path: Path) -> None:
    class_folder.rename(tmp_path / "photos")
    said = in_a_plain_install(COMMANDS, tmp_path)
    run = {line.split()[1] for line in said.splitlines() if line.startswith("verb ")}
    # `launch` starts pretrain or embed by torch's own launcher; tests/test_launcher.py has it.
    assert {command[0] for command in readme_commands()} - run <= {"launch"}


def test_every_extra_that_is_named_exists() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("src/**/*.py")]
    named = {
        name for file in texts for name in re.findall(r"diptych\[(\w+)\]", file.read_text("utf-8"))
    }
    assert named <= set(PROJECT["optional-dependencies"])
    assert {"detection", "remote", "datasets"} <= named
