"""The rooms: imports make no circle, and no folder is a drawer."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = {
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in SOURCE.rglob("*.py")
}


def imported(path: Path) -> Iterator[str]:
    """Modules of diptych that are imported when this one is, by name."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [str(node.module)]
        else:
            continue
        yield from (name for name in names if name in MODULES)


def test_no_circle_of_imports() -> None:
    graph = {name: set(imported(path)) - {name} for name, path in MODULES.items()}
    # A package is loaded before its modules: what it imports by itself counts, nothing else.
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_folder_has_more_than_fifteen_files() -> None:
    folders = {path.parent for path in MODULES.values()}
    crowded = {
        str(folder.relative_to(SOURCE)): count
        for folder in folders
        if (count := sum(path.parent == folder for path in MODULES.values())) > 16
    }
    assert not crowded, crowded
