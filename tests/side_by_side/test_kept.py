"""What was measured before serves only where all that it depends on is equal."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from peers import __main__ as harness
from peers import kept
from peers.contenders import OURS, Run
from peers.kept import Kept, code
from peers.results import Row, load, serves
from peers.settings import Settings, jpegs

from side_by_side.toy_settings import toy_settings

ROW = Row("accuracy", "a case", "%", 60.0, {"lightly": 50.0}, 1.2, 1.0)


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "versions", lambda python: {"torch": "2", "python": str(python)})
    monkeypatch.setattr(kept, "code", lambda: "one code")
    monkeypatch.setattr("peers.settings.code", lambda: "one code")


def kept_in(folder: Path, run: Run, name: str = OURS, flags: tuple[str, ...] = ()) -> Kept:
    return Kept(folder, "a title, 1 minutes", name, run, flags, folder / "environments")


def test_a_kept_run_serves_the_same_run_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(images="cifar10/train", out="here")
    kept_in(tmp_path, run).write([1, 2.5])

    assert kept_in(tmp_path, replace(run, out="elsewhere")).read() == [1, 2.5]
    assert kept_in(tmp_path, run, flags=("--recipe", "moco_v2")).read() is None
    assert kept_in(tmp_path, replace(run, images="other/train")).read() is None
    assert kept_in(tmp_path, replace(run, epochs=9)).read() is None
    assert kept_in(tmp_path, run, "lightly").read() is None
    monkeypatch.setattr(kept, "versions", lambda python: {"torch": "3", "python": str(python)})
    assert kept_in(tmp_path, run).read() is None


def test_another_code_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(images="cifar10/train", out="here")
    kept_in(tmp_path, run).write("found")
    monkeypatch.setattr(kept, "code", lambda: "another code")

    assert kept_in(tmp_path, run).read() is None


def test_another_machine_measures_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(images="cifar10/train", out="here")
    kept_in(tmp_path, run).write("found")
    monkeypatch.setattr(kept, "machine", lambda: {"machine": {"cores": 99}})

    assert kept_in(tmp_path, run).read() is None


def test_flags_of_ones_own_are_none_of_another_librarys(tmp_path: Path) -> None:
    run = Run(images="cifar10/train", out="here")
    kept_in(tmp_path, run, "lightly").write("found")

    assert kept_in(tmp_path, run, "lightly", ("--recipe", "moco_v2")).read() == "found"


def test_the_code_is_that_of_every_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("src/diptych/a.py", "benchmarks/peers/b.py"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("x = 1\n")
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    found = [code()]
    (tmp_path / "src/diptych/a.py").write_text("x = 2\n")
    found.append(code())
    (tmp_path / "benchmarks/c.py").write_text("")
    found.append(code())
    for name in ("README.md", "src/diptych/studies/a.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of no matter")

    assert len({*found, code()}) == 3


def test_settings_are_equal_but_for_places(tmp_path: Path) -> None:
    one, other = (toy_settings(tmp_path / name, data=Path("data")) for name in ("a", "b"))

    assert one.kept() == other.kept()
    assert one.kept() != replace(one, minutes=(10.0, 60.0)).kept()
    assert one.kept() != replace(one, flags=("--recipe", "byol")).kept()
    assert one.kept() != replace(one, data=None).kept()


def test_a_file_serves_where_it_is_whole_and_of_equal_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, asked = tmp_path / "accuracy.json", toy_settings(tmp_path, minutes=(10.0, 60.0)).kept()
    versions = {"diptych": {"torch": "2"}}

    assert not serves(file, versions, asked)
    harness.measure([ROW], file, versions, asked)
    assert serves(file, versions, asked)
    assert load(file) == [ROW]
    assert not serves(file, {"diptych": {"torch": "3"}}, asked)
    assert not serves(file, versions, asked | {"rounds": 9})
    monkeypatch.setattr("peers.results.machine", lambda: {"machine": {"processor": "another"}})
    assert not serves(file, versions, asked)


def test_rows_of_a_figure_that_was_stopped_are_there_and_do_not_serve(tmp_path: Path) -> None:
    file, asked = tmp_path / "accuracy.json", toy_settings(tmp_path).kept()

    def stopped() -> Iterator[Row]:
        yield ROW
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harness.measure(stopped(), file, {}, asked)

    assert load(file) == [ROW]
    assert not serves(file, {}, asked)


def test_all_goes_on_and_again_forgets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = list[float]()

    def measured(settings: Settings) -> list[Row]:
        asked.append(settings.minutes[0])
        return [ROW]

    monkeypatch.setattr(harness, "FIGURES", {"accuracy": measured})
    monkeypatch.setattr(harness, "known_versions", lambda *_: {})
    monkeypatch.setattr("signal.signal", lambda *_: None)
    scratch = tmp_path / "scratch"

    def call(*more: str) -> None:
        words = ["all", "--quick", "--out", str(tmp_path / "out"), "--scratch", str(scratch), *more]
        monkeypatch.setattr(sys, "argv", ["peers", *words])
        harness.main()

    call("--minutes", "10", "60")
    call("--minutes", "10", "60")
    assert asked == [10.0]
    call("--minutes", "5")  # the result of other minutes is no result of these
    assert asked == [10.0, 5.0]
    one, other = (scratch / "quick" / "kept" / name / "1.json" for name in ("learning", "memory"))
    for file in (one, other):
        file.parent.mkdir(parents=True)
        file.touch()
    call("--minutes", "5")
    assert one.exists()
    call("--minutes", "5", "--again")
    assert asked == [10.0, 5.0, 5.0]
    assert not one.exists()
    assert other.exists()  # that figure was not asked for


def test_images_that_were_cut_off_while_they_were_made_are_not_taken(tmp_path: Path) -> None:
    (tmp_path / "set" / "train" / "class0").mkdir(parents=True)

    folder = jpegs(tmp_path / "set", 40, 8)

    assert len(list(folder.rglob("*.jpg"))) == 40
