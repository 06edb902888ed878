"""The verb `gallery` from a run to a page that answers."""

import http.client
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from diptych.cli.main import main
from diptych.gallery.contents import gallery_folder
from embedding_runs import write_run
from served_gallery import COUNT, write_images


@pytest.mark.slow
def test_a_run_is_embedded_and_shown(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    run, other = write_run(tmp_path / "run"), write_run(tmp_path / "other", seed=1)
    command = [sys.executable, "-m", "diptych", "gallery", str(run), "--against", str(other)]
    options = ["--images", str(tmp_path / "images"), "--port", "0", "--no-browser"]
    process = subprocess.Popen(
        [*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        found = None
        for line in process.stdout:
            if found := re.search(r"Gallery of 70 images: (http://127.0.0.1:\d+/)", line):
                break
        assert found is not None
        with urllib.request.urlopen(f"{found[1]}api/set", timeout=120) as answer:
            told = json.load(answer)
        assert (told["count"], told["runs"]) == (COUNT, ["A", "B"])
        assert told["titles"] == {"A": "run", "B": "other"}
        assert told["search"] == {"upload": True, "why": ""}
        assert (run / "vectors.gallery" / "labels.sqlite").exists()
        # An open page always waits for changes, and is answered when the program ends.
        waiting = http.client.HTTPConnection(found[1].split("/")[2], timeout=120)
        waiting.request("GET", "/api/labels/changes?since=0")
        time.sleep(1.0)
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    with closing(waiting):
        assert json.load(waiting.getresponse()) == {"version": 0, "words": []}
    assert process.returncode in (0, 130)
    assert "Traceback" not in errors


def test_the_gallery_of_the_folder_that_one_is_in_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "features" / "inside"
    inside.mkdir(parents=True)
    beside = tmp_path.resolve() / "features.gallery"
    monkeypatch.chdir(tmp_path / "features")
    assert gallery_folder(Path(".")) == beside
    assert gallery_folder(Path("inside/..")) == beside
    monkeypatch.chdir(inside)
    assert gallery_folder(Path("..")) == beside


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere"], "is not there"),
        (["nowhere", "--host", "0.0.0.0"], "--token"),
        (["nowhere", "--token", "short"], "16 letters"),
        (["nowhere", "--port", "70000"], "0 to 65535"),
    ],
)
def test_what_cannot_be_shown_is_said(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gallery", *arguments, "--no-browser"]) == 2
    assert sentence in capsys.readouterr().err
