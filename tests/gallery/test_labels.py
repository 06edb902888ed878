"""Labels on disk: what is confirmed stays, whatever happens."""

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from diptych.gallery.labels import LabelsError, LabelStore, OutdatedLabels

NAMES = ["a.png", "b.png", "K\udcf6ln.png", "d.png"]


def rows(*some: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(some, np.int64)


@pytest.fixture
def store(tmp_path: Path) -> LabelStore:
    return LabelStore(tmp_path / "labels.sqlite", NAMES)


def test_labels_are_given_changed_and_taken_away(store: LabelStore) -> None:
    assert store.version == 0
    first = store.give(rows(0, 2), "cat")
    assert (first.version, first.changed, first.words) == (1, 2, "2 images labelled cat")
    assert store.give(rows(2, 3), "dog").changed == 2
    assert store.classes() == ["cat", "dog"]
    version, codes = store.codes()
    assert codes.dtype == np.int16
    assert (version, codes.tolist()) == (2, [0, -1, 1, 1])
    assert store.give(rows(0, 1, 2), None).changed == 2  # the second had none
    assert store.codes()[1].tolist() == [-1, -1, -1, 1]


def test_changes_are_taken_back_in_turn(store: LabelStore) -> None:
    store.give(rows(0, 1), "cat")
    store.give_each(rows(1, 2, 3), ["dog", "cat", "dog"])
    assert store.undo().changed == 3
    assert store.codes()[1].tolist() == [0, 0, -1, -1]
    assert store.undo().words == "Taken back: 2 images labelled cat"
    assert store.codes()[1].tolist() == [-1, -1, -1, -1]
    with pytest.raises(LabelsError, match="no change"):
        store.undo()
    assert store.version == 4
    assert [one.version for one in store.since(2)] == [3, 4]


def test_accepted_proposals_leave_labels_that_were_given_since(store: LabelStore) -> None:
    store.give(rows(1), "corrected")
    accepted = store.accept(rows(0, 1, 2), ["cat", "cat", "dog"])
    assert (accepted.changed, accepted.words) == (2, "2 proposed labels accepted")
    classes = store.classes()
    given = [None if code < 0 else classes[code] for code in store.codes()[1]]
    assert given == ["cat", "corrected", "dog", None]
    assert store.undo().changed == 2
    assert store.codes()[1].tolist() == [-1, 0, -1, -1]


def test_two_windows_do_not_overwrite_each_other(store: LabelStore) -> None:
    seen = store.version
    store.give(rows(0), "cat", expected=seen)
    with pytest.raises(OutdatedLabels, match="version 1"):
        store.give(rows(0), "dog", expected=seen)
    assert store.classes() == ["cat"]  # nothing of the refused change is there
    assert store.codes()[1].tolist() == [0, -1, -1, -1]


def test_two_processes_see_each_others_changes(store: LabelStore) -> None:
    other = LabelStore(store.file, NAMES)
    other.give(rows(1), "dog")
    assert store.codes()[1].tolist() == [-1, 0, -1, -1]
    store.give(rows(2), "cat")
    assert other.codes()[1].tolist() == [-1, 0, 1, -1]


def test_labels_stay_with_the_name_of_their_image(store: LabelStore) -> None:
    store.give(rows(1), "cat")
    store.give(rows(2), "dog")
    store.close()
    again = LabelStore(store.file, ["new.png", NAMES[2], NAMES[1]])
    assert again.codes()[1].tolist() == [-1, 1, 0]


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    count = 40
    store = LabelStore(tmp_path / "labels.sqlite", [str(row) for row in range(count)])
    threads = [
        threading.Thread(target=store.give, args=(rows(row), f"class {row % 3}"))
        for row in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    classes = store.classes()
    assert [classes[code] for code in store.codes()[1]] == [f"class {i % 3}" for i in range(count)]
    assert store.version == count


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\x1b[2J", "x" * 201, 7, "\udcff"])
def test_names_of_classes_can_be_seen(store: LabelStore, name: str) -> None:
    with pytest.raises(LabelsError, match="1 to 200 letters"):
        store.give_each(rows(0), [name])
    assert store.version == 0


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "labels.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(LabelsError, match="Move it away"):
        LabelStore(tmp_path / "labels.sqlite", NAMES)


GIVES = """
import sys
import numpy as np
from pathlib import Path
from diptych.gallery.labels import LabelStore
store = LabelStore(Path(sys.argv[1]), [str(row) for row in range(500)])
for number in range(100_000):
    rows = np.random.default_rng(number).choice(500, 20, replace=False)
    print(store.give(rows, f"class {number % 5}").version, flush=True)
"""


def expected_codes(version: int) -> list[int]:
    codes = np.full(500, -1)
    for number in range(version):
        codes[np.random.default_rng(number).choice(500, 20, replace=False)] = number % 5
    return codes.tolist()


@pytest.mark.slow
def test_nothing_confirmed_is_lost_when_killed_twenty_times(tmp_path: Path) -> None:
    pause = random.Random(0)
    for kill in range(20):
        file = tmp_path / f"{kill}.sqlite"
        process = subprocess.Popen(
            [sys.executable, "-c", GIVES, str(file)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(pause.uniform(0, 0.3))
        process.kill()
        confirmed = int([first, *process.stdout.read().splitlines()][-1])
        process.wait()
        process.stdout.close()
        store = LabelStore(file, [str(row) for row in range(500)])
        # The last change may have been kept and not yet confirmed.
        assert store.version in (confirmed, confirmed + 1)
        assert store.codes()[1].tolist() == expected_codes(store.version)
        store.close()
