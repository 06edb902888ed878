"""The rooms and their names: no circle of imports, no drawer, no name or word that misleads."""

import ast
import importlib
import re
from collections import defaultdict
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Final

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
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


def test_every_module_imports() -> None:
    """Also one that names what stands further down or nowhere, which ruff is told not to mind."""
    for name in MODULES:
        if not name.endswith("__main__"):  # which runs
            importlib.import_module(name)


def test_every_folder_is_a_package() -> None:
    """What an ignored file leaves out is found where the package is built, and not before."""
    for folder in {path.parent for path in MODULES.values()}:
        while folder != SOURCE:
            assert (folder / "__init__.py").is_file(), folder
            folder = folder.parent


# Of one name and one meaning: the verb and what it does, settings and what is set.
SAME_NAME: Final = {
    "embed": {"cli.embed", "embeddings.embed"},
    "study": {"cli.study", "studies.study"},
    "gallery": {"cli.gallery", "gallery"},
    "method": {"config.method", "methods.method"},
    "plan": {"cli.plan", "planning.plan"},
    "views": {"cli.views", "views"},
}


def test_files_of_one_name_mean_one_thing() -> None:
    places = defaultdict[str, set[str]](set)
    for module in MODULES:
        name = module.rpartition(".")[2]
        places[name].add(module.removeprefix("diptych."))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if found != SAME_NAME.get(name)} == {}
    assert twice.keys() == SAME_NAME.keys(), "no longer there twice"


# Patterns for text in small letters in which LookUp stands as look_up; a letter neither before nor
# after. What was decided in its time is left in the words of its time.
RETIRED: Final = {
    r"(?<!barlow[ _])twins?": "momentum encoder",
    r"look[-_]ups?|lookups?(?!_error)": "contrastive output, objective; a search",
    r"remember(s|ed|ing)?": "enqueue for the queue, update for the bank, keep",
    r"in[-_]step|in step(?! ?[0-9{])": "synchronized",
    r"large_batch": "grad_cache",
    r"(found|finds?) (by|in) (other )?compan(y|ies)|compan(y|ies)": "leak accuracy, group",
    r"found \d+ ?%": "pretext acc 53%",
    # but for the folder of the benchmarks beside other libraries
    r"(?<!benchmarks/)(?<!bench-)peers?": "other process; library compared with",
    r"outlets?": "console, stream",
    r"sittings?": "session, start",
}


def lines_of(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    # The table of names that are refused holds them; the numbers of lines stay.
    old = re.search(r"^OLD_NAMES: .*?^}", text, flags=re.DOTALL | re.MULTILINE)
    if old is not None:
        text = text.replace(old[0], "\n" * old[0].count("\n"))
    return text.splitlines()


def small(line: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", line).lower()


@pytest.mark.parametrize(("pattern", "instead"), RETIRED.items())
def test_retired_words_are_gone(pattern: str, instead: str) -> None:
    """From code, messages, the help that is made of docstrings, and the documents."""
    word = re.compile(rf"(?<![a-z])({pattern})(?![a-z])")
    files = [*SOURCE.rglob("*.py"), *SOURCE.rglob("*.jinja*"), *SOURCE.rglob("*.html")]
    files += [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in files
        if "decisions" not in path.parts
        for number, line in enumerate([path.stem, *lines_of(path)])
        if word.search(small(line))
    ]
    assert not found, f"say {instead!r}:\n" + "\n".join(found)
