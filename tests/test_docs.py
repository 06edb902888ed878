"""Links of the pages lead somewhere; what they name exists; their Python examples hold."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "diptych"
PAGES = [*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "generated" not in page.parts]
WITH_EXAMPLES = [page for page in PAGES if "```pycon" in page.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    local = [link.partition("#")[0] for link in links if "://" not in link]
    # What docs/generate.py makes is there once the site is built; the build looks at those links.
    local = [link for link in local if "generated/" not in link]
    assert [link for link in local if not (page.parent / link).exists()] == []


def test_tests_that_are_named_are_there() -> None:
    named = re.findall(r"`([\w/]*test_\w+\.py)(?:::(\w+))?`", page_of("experiments"))
    assert len(named) > 50
    for path, test in named:
        file = ROOT / "tests" / path
        assert file.is_file(), path
        assert not test or f"def {test}(" in file.read_text(), f"{path}::{test}"


def test_the_map_of_the_readme_has_every_room_and_no_other() -> None:
    text = (ROOT / "README.md").read_text()
    block = text[text.index("    src/diptych/\n") : text.index("    tests/  ")]
    listed = re.findall(r"^      (\w+(?:/|\.py))", block, re.MULTILINE)
    there = {one.name + "/" for one in PACKAGE.iterdir() if (one / "__init__.py").exists()}
    there |= {one.name for one in PACKAGE.glob("*.py") if not one.name.startswith("__")}
    assert sorted(listed) == sorted(there)
    for name in re.findall(r"\b(\w+\.py)\b", block):
        assert list(PACKAGE.rglob(name)), name


def test_files_and_functions_on_the_way_of_a_batch_are_there() -> None:
    for line in page_of("architecture").splitlines():
        for path in re.findall(r"`([a-z_]+(?:/[a-z_]+)*\.py)`", line):
            inside = path.removeprefix("tests/")
            found = ROOT / path if path.startswith("tests/") else PACKAGE / inside
            assert found.is_file(), path


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_examples_hold(page: Path) -> None:
    examples = "\n".join(re.findall(r"```pycon\n(.*?)```", page.read_text(), re.DOTALL))
    test = doctest.DocTestParser().get_doctest(examples, {}, page.name, str(page), 0)
    said: list[str] = []
    found = doctest.DocTestRunner().run(test, out=said.append)
    assert found.attempted > 1
    assert found.failed == 0, "".join(said)


def page_of(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text()
