"""The files of the page keep to its content policy; the renderer's packages are pinned by hash."""

import json
import re
from pathlib import Path

import pytest

import diptych.gallery

ROOT = Path(__file__).parents[2]
PAGE = Path(diptych.gallery.__file__).parent / "page"
SCRIPTS = sorted(file for file in PAGE.glob("*.js") if file.name != "renderer.js")
PARSED_AS_HTML = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "DOMParser")
PARSED_AS_CODE = (
    "eval(",
    "new Function",
    "setTimeout('",
    'setTimeout("',
    "new Worker",
    "javascript:",
)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda file: file.name)
def test_a_script_parses_no_text_and_imports_what_is_there(script: Path) -> None:
    text = script.read_text()
    assert [one for one in (*PARSED_AS_HTML, *PARSED_AS_CODE) if one in text] == []
    for name in re.findall(r"""(?:from|import)\s*\(?"\./([^"]+)\"""", text):
        assert name == "renderer.js" or (PAGE / name).is_file(), name
    assert "http://" not in text
    assert "https://" not in text


def test_the_page_has_no_code_and_no_style_of_its_own() -> None:
    text = (PAGE / "index.html").read_text()
    assert re.findall(r"<style|\sstyle=|\son\w+=", text) == []
    assert re.findall(r"<script(?![^>]*\ssrc=)", text) == []
    sources = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert [one for one in sources if not one.startswith(("/static/", "/api/", "data:,"))] == []
    for name in re.findall(r'"/static/([^"]+)"', text):
        assert (PAGE / name).is_file(), name


def test_what_scripts_look_up_is_on_the_page() -> None:
    there = set(re.findall(r'\sid="([^"]+)"', (PAGE / "index.html").read_text()))
    wanted = {
        name for script in SCRIPTS for name in re.findall(r'find\("([\w-]+)"\)', script.read_text())
    }
    assert wanted - there == set()


def test_packages_of_the_renderer_are_pinned_by_hash_and_name_no_host() -> None:
    lock = (ROOT / "renderer" / "package-lock.json").read_text()
    packages = {name: one for name, one in json.loads(lock)["packages"].items() if name}
    assert len(packages) > 10
    assert [name for name, one in packages.items() if not one.get("integrity")] == []
    assert "://" not in re.sub(r'"(?:url|funding)": ?"[^"]*"', "", lock)
    wanted = json.loads((ROOT / "renderer" / "package.json").read_text())
    for version in {**wanted["dependencies"], **wanted["devDependencies"]}.values():
        assert re.fullmatch(r"\d+\.\d+\.\d+", version)
