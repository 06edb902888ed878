"""The site's generated pages are whole, and the commands that pages print are real.

`make site` builds it without warnings and looks at its links.
"""

import json
import re
from pathlib import Path

import pytest

pytest.importorskip("jupytext", reason="the site's tools are not installed")

from check_links import broken_links
from generate import EXAMPLES, HERE, commands_page, everything, flags_of, python_page

import diptych
from diptych.cli.main import VERBS
from diptych.config.files import flatten
from diptych.config.run import RunConfig

# These two have flags of torchrun and of benchmarks as well.
OTHERS = ("launching", "benchmarks")
PAGES = [*HERE.glob("*.md"), *(HERE / "concepts").glob("*.md"), HERE.parent / "README.md"]
PAGES = [page for page in PAGES if page.stem not in OTHERS]
FLAG = re.compile(r"(?<![\w-])--([a-z][a-z0-9_.-]*[a-z0-9])(?![\w.]*[A-Z])")


def test_the_page_of_commands_has_every_verb_and_flag() -> None:
    page = commands_page()
    for verb in VERBS:
        assert f"\n## diptych {verb}\n" in page
    assert "| `--begin-from` | text |  | Begin a new run" in page  # of pretrain
    assert "$ diptych rank runs/a runs/b runs/c" in page
    assert "`--views.policy` |" not in page  # on the page of settings


def test_the_page_of_python_has_every_public_name() -> None:
    named = set(re.findall(r":: diptych\.(?:.*\.)?(\w+)$", python_page(), re.MULTILINE))
    assert named == set(diptych.__all__) - {"__version__"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HERE.parent)))
def test_commands_on_pages_have_real_verbs_and_flags(page: Path) -> None:
    known = {one.name.replace("_", "-") for verb in VERBS for one in flags_of(verb)}
    known |= {name.replace("_", "-") for name in flatten(RunConfig())}
    known |= {"help", "help-all", "version", "encoder", "o"}
    wrong = []
    for line in page.read_text().splitlines():
        ours = line.split("|")[2] if line.startswith("|") and page.stem == "migration" else line
        for command in re.findall(r"(?:^ {4}|\$ |`)(diptych [a-z][^`#|]*|--[a-z][^`|]*)", ours):
            before, _, after = command.partition(" -- ")  # launch has torchrun's flags before it
            words = after if "diptych launch" in before else command
            flags = {
                flag: re.sub(r"(^|\.)no-", r"\1", flag).replace("_", "-")
                for flag in FLAG.findall(words)
            }
            wrong += [flag for flag, name in flags.items() if name not in known]
            verb = re.match(r"diptych ([a-z][\w-]*)", command)
            wrong += [verb[1]] if verb and verb[1] not in VERBS else []
    assert wrong == []


@pytest.mark.slow
def test_pictures_and_notebooks_are_made_and_the_same_again(tmp_path: Path) -> None:
    everything(tmp_path)
    made = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    for script in (HERE / "pictures").glob("[!_]*.py"):
        assert "<svg" in (tmp_path / f"{script.stem}.svg").read_text()
        assert f"generated/{script.stem}.svg" in "".join(page.read_text() for page in PAGES)
    for script in EXAMPLES.glob("notebook_*.py"):
        cells = json.loads((tmp_path / f"{script.stem}.ipynb").read_text())["cells"]
        assert {cell["cell_type"] for cell in cells} == {"markdown", "code"}
    everything(tmp_path)
    # Files that are the same are left alone, or every build would read all pages anew.
    again = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert {name for name, at in again.items() if at != made[name]} <= {
        f"{script.stem}.ipynb" for script in EXAMPLES.glob("notebook_*.py")
    }


def test_links_that_lead_nowhere_are_found(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "page.html").write_text('<h1 id="here">x</h1> <a href="../a.html#b">')
    (tmp_path / "a.html").write_text(
        '<a href="other/page.html#here"><a href="#gone"><img src="no.png"><a href="https://x.y/z">'
        '<a href="other/page.html#there"><p id="b">'
    )
    assert [line.split(": ")[1] for line in broken_links(tmp_path)] == [
        "#gone",
        "no.png",
        "other/page.html#there",
    ]
