"""Growth is judged where it shows, by exponents and ratios that known curves have."""

from pathlib import Path

import pytest
from peers import growth
from peers.growth import SLACK, exponent, memory_growth, rows_of, time_growth
from peers.watch import Watched

from side_by_side.toy_settings import toy_settings

SIZES = (1_000, 10_000, 100_000, 1_000_000)


def test_the_exponent_is_that_of_a_power() -> None:
    assert exponent(SIZES, [3.0 * size**1.5 for size in SIZES]) == pytest.approx(1.5)
    assert exponent(SIZES[-2:], [7.0, 7.0]) == pytest.approx(0.0)


def test_what_a_start_costs_does_not_hide_growth() -> None:
    """Quadratic time over a second of start: the last size over the first looks linear."""
    curve = {size: (1.0 + (size / 30_000) ** 2, 500.0) for size in SIZES}
    last, first = curve[SIZES[-1]][0], curve[SIZES[0]][0]
    assert last / first / (SIZES[-1] / SIZES[0]) < 1.2

    assert time_growth(curve, whole=True) > 5


def test_linear_time_holds_and_so_does_that_of_one_image() -> None:
    linear = {size: (0.5 + 1e-4 * size, 500.0) for size in SIZES}
    flat = {size: (2e-3 * (1 + 20 / size), 500.0) for size in SIZES}

    assert time_growth(linear, whole=True) <= 1.0
    assert time_growth(flat, whole=False) <= 1.0
    rising = {64: (1.0, 500.0), 256: (0.7, 500.0), 1024: (0.9, 500.0)}
    assert time_growth(rising, whole=False) == pytest.approx(0.9 / 0.7)


def test_memory_is_judged_above_what_is_there_anyway() -> None:
    linear = {size: (1.0, 600.0 + 2e-3 * size) for size in SIZES}
    quadratic = {size: (1.0, 600.0 + 2e-9 * size**2) for size in SIZES}
    none = {size: (1.0, 600.0 + place) for place, size in enumerate(SIZES)}

    assert memory_growth(linear) == pytest.approx(1.0)
    assert memory_growth(quadratic) > 5
    assert memory_growth(none) < 1
    assert memory_growth({1: (1.0, 500.0), 2: (1.0, 900.0)}) == pytest.approx(0.9)


def test_time_and_memory_have_a_row_each() -> None:
    curve = {size: (1e-4 * size, 600.0 + 2e-3 * size) for size in SIZES}

    time, memory = rows_of("images, opened the first time", curve, whole=True)

    assert time.case == "images, opened the first time: 100,000 to 1,000,000"
    assert time.unit == "exponent"
    assert time.ours == pytest.approx(1.0)
    assert time.ratio == pytest.approx(1.0)
    assert time.goal == SLACK
    assert time.holds
    assert memory.figure == "growth of memory, over linear"
    assert memory.holds
    assert memory.notes["memory"]["1000000"] == 2600.0


def test_what_an_interrupted_opening_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = toy_settings(tmp_path)
    left = settings.scratch / f"files-{growth.FILES_QUICK[0]}" / "class0" / "0000000.jpg"
    index = settings.scratch / "index" / "old.index"
    for file in (left, index):
        file.parent.mkdir(parents=True)
        file.touch()
    linked = tmp_path / "linked" / "train" / "class0" / "a.jpg"
    linked.parent.mkdir(parents=True)
    linked.write_bytes(b"picture")
    monkeypatch.setattr(growth, "jpegs", lambda *_: tmp_path / "linked")

    def watched(command: list[str], variables: object, log: Path, *, memory: bool) -> Watched:
        assert not index.exists()
        names = list(Path(command[3]).rglob("*.jpg"))
        log.write_text(f"0.5 {len(names)}\n")
        return Watched(1.0, float(len(names)), 0.0)

    monkeypatch.setattr(growth, "watch", watched)

    found = growth.opening(settings)

    assert found == {count: (0.5, float(count)) for count in growth.FILES_QUICK}
    assert not left.exists()


def test_the_drawing_lies_beside_the_results(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("opening", "batches", "queues", "processes"):
        monkeypatch.setattr(growth, name, lambda _: {1: (1.0, 500.0), 2: (2.0, 600.0)})
    settings = toy_settings(tmp_path)

    rows = list(growth.growth(settings))

    assert len(rows) == 8
    assert (settings.out / "growth.svg").read_text().startswith("<?xml")
