"""Times of epochs, runs of so many minutes, and which of their encoders count."""

from dataclasses import replace
from pathlib import Path

import pytest
from peers import accuracy
from peers.accuracy import Learner, after_minutes, learn, time_to_accuracy, timed
from peers.contenders import OURS, Run, settings_of_docs
from peers.knn import Course, Snapshot
from peers.settings import IMAGES, Settings
from peers.timing import Times, difference

from side_by_side.toy_settings import seconds_by_epochs, toy_settings


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("peers.kept.versions", lambda _: {})
    monkeypatch.setattr("peers.kept.code", lambda: "one code")
    monkeypatch.setattr(accuracy, "images_for", lambda *_: tmp_path)


def learner(folder: Path, name: str = OURS) -> Learner:
    return Learner(name, "our", Run(images="train", out=str(folder / "run")), Times(6.0, 3.0))


def test_an_epoch_is_what_a_longer_run_takes_more() -> None:
    assert difference("ours", (2, 6), [20.0, 48.0]) == Times(7.0, 6.0)


@pytest.mark.parametrize("long", [19.0, 20.0, 21.9])
def test_a_difference_that_tells_nothing_is_refused(long: float) -> None:
    with pytest.raises(RuntimeError, match=r"lightly: 1 epochs took 20\.0 s and 3 .*idle machine"):
        difference("lightly", (1, 3), [20.0, long])


def test_the_first_run_of_a_library_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = list[str]()
    monkeypatch.setattr("peers.timing.do", seconds_by_epochs(4.0, 2.0, said))
    settings = toy_settings(tmp_path, quick=False)
    for part, count in {"few": 2, "all": 6}.items():
        for number in range(count):
            file = tmp_path / part / "train" / "class0" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
    one = learner(tmp_path)
    one = one._replace(run=replace(one.run, images=str(tmp_path / "all" / "train")))

    found = timed(settings, one, tmp_path / "few")
    again = timed(settings, one, tmp_path / "few")

    assert said == [f"{OURS} 1", f"{OURS} 1", f"{OURS} 3"]
    assert found.times == again.times == Times(2.0, 4.0)
    # A peer's are of the few, and an epoch of all takes it three times as long.
    assert timed(settings, one._replace(name="lightly"), tmp_path / "few").times == Times(6.0, 4.0)


def test_a_run_has_as_many_epochs_as_fit(tmp_path: Path) -> None:
    run = learner(tmp_path).lasting(60.0, 7)

    assert run.epochs == 9  # 3 + 9 * 6 = 57 seconds, and 3 + 10 * 6 are too many
    assert run.seed == 7
    assert learner(tmp_path).lasting(1.0, 0).epochs == 1
    assert learner(tmp_path, "lightly").lasting(60.0, 0).epochs == 10  # to the end of its tenth


def test_a_peers_last_encoder_counts_however_late_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = list[float]()
    monkeypatch.setattr(accuracy, "do", seconds_by_epochs(3.0, 7.0, []))

    def course(name: str, run: Run, begun: float, seconds: float) -> Course:
        limits.append(seconds)
        return Course([Snapshot(66.0, 50.0, 55.0)], 0)

    monkeypatch.setattr(accuracy, "course", course)

    learn(toy_settings(tmp_path), learner(tmp_path, "lightly"), 1.0, 0)

    assert limits == [float("inf")]


def test_a_run_that_went_over_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = list[float]()
    monkeypatch.setattr(accuracy, "do", seconds_by_epochs(3.0, 7.0, []))

    def course(name: str, run: Run, begun: float, seconds: float) -> Course:
        limits.append(seconds)
        return Course([Snapshot(5.0, 30.0), Snapshot(59.0, 50.0, 55.0)], 1)

    monkeypatch.setattr(accuracy, "course", course)
    settings = toy_settings(tmp_path)

    found = learn(settings, learner(tmp_path), 1.0, 0)
    again = learn(settings, learner(tmp_path), 1.0, 0)

    assert found == again == [Snapshot(5.0, 30.0), Snapshot(59.0, 50.0, 55.0)]
    assert limits == [60.0]
    said = capsys.readouterr().out
    assert "diptych, 1 minutes, seed 0: 50.00% in 0.98 min" in said
    assert said.count("it went over them; encoders that came too late: 1") == 2


def made_up(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Learners whose accuracy is their time: ours learns twice as fast."""
    ours, other = learner(folder), learner(folder, "lightly")
    monkeypatch.setattr(accuracy, "learners", lambda s: [ours] if s.alone else [ours, other])

    def learned(settings: Settings, one: Learner, minutes: float, seed: int) -> list[Snapshot]:
        speed = 2.0 if one.name == OURS else 1.0
        ends = [0.5 * minutes, minutes]
        return [Snapshot(60 * end, speed * end + seed, speed * end + 1) for end in ends]

    monkeypatch.setattr(accuracy, "learn", learned)


def test_every_number_of_minutes_has_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, tmp_path)

    rows = list(after_minutes(toy_settings(tmp_path, minutes=(10.0, 20.0), seeds=3)))

    assert [row.figure for row in rows] == ["kNN accuracy", "linear accuracy"] * 2
    assert [row.ours for row in rows] == [21.0, 21.0, 41.0, 41.0]
    assert rows[0].ratio == 21.0 / 11.0
    assert rows[3].peers == {"lightly, our settings": 21.0}
    # (0.97 * 600 - 3) / 6, and of a peer (600 - 3) / 6 with the rest
    assert rows[0].notes["epochs"] == {OURS: 96, "lightly, our settings": 100}
    assert "20 minutes" in rows[2].case


def test_where_no_minutes_are_asked_for_each_figure_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, tmp_path)
    settings = toy_settings(tmp_path, minutes=())

    cases = [row.case for row in (*after_minutes(settings), *time_to_accuracy(settings))]

    assert [text in case for text, case in zip(
        ("10 minutes", "10 minutes", "60 minutes", "60 minutes", "after 20 minutes"),
        cases, strict=True,
    )] == [True] * 5  # fmt: skip


def test_ours_alone_is_a_figure_without_a_ratio(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up(monkeypatch, tmp_path)
    alone = toy_settings(tmp_path, only=(OURS,))

    assert [row.ratio for row in after_minutes(alone)] == [None, None]
    assert list(time_to_accuracy(alone)) == []
    assert "left out" in capsys.readouterr().out


def test_the_time_to_an_accuracy_is_of_the_shortest_run_that_reaches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_up(monkeypatch, tmp_path)

    (row,) = time_to_accuracy(toy_settings(tmp_path, minutes=(20.0,)))

    assert row.ours == 10.0  # of a run of half the minutes
    assert row.ratio == 0.5
    assert "to 20.0% kNN" in row.case


def test_a_whole_run_without_data_has_as_many_images_as_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = list[int]()

    def images_for(settings: Settings, side: int, count: int) -> Path:
        counts.append(count)
        return tmp_path

    monkeypatch.setattr(accuracy, "images_for", images_for)
    monkeypatch.setattr(accuracy, "timed", lambda settings, one, few: one)
    monkeypatch.setattr(accuracy, "limited", lambda settings, folder, count: folder)

    accuracy.learners(toy_settings(tmp_path, quick=False))
    accuracy.learners(toy_settings(tmp_path))

    assert counts == [IMAGES, 320]


def test_settings_of_its_documents_are_lightly_trains_own_head_and_blur() -> None:
    run = Run(images="train", out="run", batch=128)

    own = settings_of_docs("lightly-train", run)

    assert (own.hidden_features, own.blur, own.strength, own.temperature) == (2048, True, 1.0, 0.1)
    assert own.rate * 256 / own.batch == 0.3
    assert (own.batch, own.side, own.network) == (run.batch, run.side, run.network)
