"""What a figure says of itself: units, values of all sides, and no ratio where none is."""

import json
from pathlib import Path
from typing import Any

import pytest
from measuring import Figure, commit, machine, publish
from peers import parts, pretraining
from peers.contenders import OURS
from peers.environments import SHOWN
from peers.results import Row, compared, load, markdown, save

from side_by_side.toy_settings import seconds_by_epochs, toy_settings


def test_the_row_of_a_figure_has_the_values_that_its_ratio_is_made_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ratio = Figure("speed", 4.0, 3.0, unit="images/s", ours=80.0, others={"kornia": 20.0})
    plain = Figure("seconds to the first step", 2.5, 4.0, "at most", "s")
    step = Figure("simclr, resnet18", 0.98, 1.0)
    publish([ratio, plain, step], "Figures", tmp_path / "figures.json")
    found: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())["figures"]

    script = parts.Script("a.py", "a")
    rows = [parts.row_of(script, name, one) for name, one in found.items()]

    assert rows[0] == Row("a", "speed", "images/s", 80.0, {"kornia": 20.0}, 4.0, 3.0)
    assert rows[1] == Row("a", ratio=None, goal=4.0, bound="at most", peers={}, ours=2.5,
                          unit="s", case="seconds to the first step")  # fmt: skip
    assert [row.holds for row in rows] == [True, True, False]
    lines = markdown(rows).splitlines()
    assert lines[2] == "| a, speed | images/s | 80 | 20 | 4.00 | at least 3 |"
    assert lines[3] == "| a, seconds to the first step | s | 2.5 | - |  | at most 4 |"
    assert lines[4] == "| a, simclr, resnet18 | ratio | 0.98 | - |  | at least 1, missed |"


def test_every_figure_has_a_table_of_its_own() -> None:
    rows = [Row("views", "a", "s", 1.0, {"kornia": 2.0}, 2.0, 1.0),
            Row("epoch", "b", "s", 1.0, {"lightly": 2.0}, 2.0, 1.0)]  # fmt: skip

    first, second = markdown(rows).split("\n\n")

    assert "kornia" in first
    assert "lightly" not in first
    assert "kornia" not in second


def test_what_was_not_reached_is_said_in_words_and_misses_its_goal() -> None:
    never = float("inf")
    row = Row("time", "to 60%", "min", never, {"lightly": 2.0}, never, 0.5, "at most")
    assert markdown([row]).splitlines()[2] == (
        "| time, to 60% | min | not reached | 2 |  | at most 0.5, missed |"
    )


def test_ours_alone_has_no_ratio_and_no_goal(tmp_path: Path) -> None:
    row = compared("peak memory", "a case", "MB", {OURS: [3.0, 1.0, 2.0]}, 0.7, "at most")

    assert (row.ours, row.peers, row.ratio, row.goal, row.holds) == (2.0, {}, None, None, None)
    assert markdown([row]).splitlines()[2] == "| peak memory, a case | MB | 2 |  |  |"
    save([row], tmp_path / "memory.json", {})
    assert load(tmp_path / "memory.json") == [row]


def test_less_is_compared_with_the_leanest() -> None:
    values = {OURS: [2.0, 2.0, 3.0], "a": [4.0, 5.0, 4.0], "b": [2.0, 4.0, 2.0]}

    row = compared("peak memory", "a case", "MB", values, 0.7, "at most")

    assert row.ratio == 1.0  # of b, turn by turn: 1, 0.5, 1.5
    assert row.holds is False


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who ran for how many epochs, where no command does."""
    said = list[str]()
    do = seconds_by_epochs(5.0, 1.0, said)
    monkeypatch.setattr("peers.kept.versions", lambda _: {})
    monkeypatch.setattr("peers.timing.do", do)
    monkeypatch.setattr(pretraining, "do", do)
    for made in ("images_for", "limited"):
        monkeypatch.setattr(pretraining, made, lambda *_: tmp_path)
    return said


@pytest.mark.parametrize("figure", ["throughput", "memory"])
def test_a_method_that_the_other_library_has_not_is_left_out(
    tmp_path: Path, commands: list[str], capsys: pytest.CaptureFixture[str], figure: str
) -> None:
    measure = getattr(pretraining, figure)

    beside = list(measure(toy_settings(tmp_path, only=(OURS, "lightly-train"))))
    assert [row.case for row in beside] == ["simclr, small_resnet at 32"]
    assert "moco_v2, small_resnet at 32: left out, as lightly-train has no moco_v2" in (
        capsys.readouterr().out
    )
    alone = list(measure(toy_settings(tmp_path, only=(OURS,))))
    assert [row.ratio for row in alone] == [None, None]
    uncounted, counted = 1, 2 if figure == "throughput" else 1
    theirs = [one for one in commands if one.startswith("lightly-train ")]
    assert len(theirs) == uncounted + counted


def test_memory_is_measured_in_every_round(tmp_path: Path, commands: list[str]) -> None:
    row = next(iter(pretraining.memory(toy_settings(tmp_path, rounds=3))))

    turns = row.notes["turns"]
    assert {name: len(some) for name, some in turns.items()} == dict.fromkeys(turns, 3)
    assert len(turns) == 4


def test_a_figure_that_was_stopped_goes_on_with_the_turn_that_it_lacks(
    tmp_path: Path, commands: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy_settings(tmp_path, only=(OURS, "lightly-train"), rounds=2)
    (whole,) = pretraining.memory(settings)
    every = commands.copy()
    kept = sorted((settings.measured_before / "memory").iterdir())
    assert len(kept) == 4
    kept[-1].unlink()  # lightly-train's second turn
    commands.clear()

    (again,) = pretraining.memory(settings)

    assert every == [*[f"{OURS} 1"] * 2, *["lightly-train 1"] * 2, "lightly-train 1", f"{OURS} 1"]
    assert commands == ["lightly-train 1", "lightly-train 1"]  # uncounted, and the turn
    assert again == whole


def test_scripts_get_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "jpegs", lambda folder, *_: folder)
    settings = toy_settings(tmp_path)

    views = parts.command(parts.SCRIPTS["views"], settings, tmp_path / "a.json")
    start = parts.command(parts.SCRIPTS["start"], settings, tmp_path / "a.json")
    alone = parts.command(
        parts.SCRIPTS["start"], toy_settings(tmp_path, only=(OURS,)), tmp_path / "a.json"
    )

    assert views[views.index("--jpegs") + 1].startswith(str(settings.scratch))
    assert {"--lightly-train", "--lightly", "--stable-pretraining"} <= set(start)
    assert not {"--lightly-train", "--lightly", "--stable-pretraining"} & set(alone)


def test_versions_of_all_that_is_compared_are_kept() -> None:
    compared_with = {"kornia", "pytorch-metric-learning", "scikit-learn", "lightly"}
    found = machine()

    assert compared_with <= found["versions"].keys()
    assert {"diptych", "torch", "numba", "numpy", "torchvision"} <= found["versions"].keys()
    assert {"kornia", "pytorch-metric-learning", "scikit-learn"} <= set(SHOWN)
    assert found["commit"] == commit()


def test_a_copy_without_history_has_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("measuring.ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    assert commit() == ""
