"""Encoders that a run left are measured by one protocol, and only those that were there in time."""

import os
from dataclasses import asdict
from pathlib import Path

import pytest
from peers.contenders import Run
from peers.knn import course
from peers.runners.shared import Job, Snapshots, network_of
from peers.settings import jpegs


def test_encoders_that_came_too_late_do_not_count(tmp_path: Path) -> None:
    images = jpegs(tmp_path / "set", 160, 32)
    run = Run(images=str(images / "train"), out=str(tmp_path / "run"))
    job = Job(**asdict(run))
    Path(run.out).mkdir()
    snapshots, (network, _) = Snapshots(job), network_of(job)
    for seconds in (10.0, 50.0, 61.0):
        snapshots.save(network)
        os.utime(sorted(snapshots.folder.iterdir())[-1], (1000.0 + seconds, 1000.0 + seconds))

    found = course("lightly", run, begun=1000.0, seconds=60.0)

    assert [one.seconds for one in found.snapshots] == [10.0, 50.0]
    assert found.late == 1
    first, last = found.snapshots
    assert first.linear is None  # which takes a while, and is told of the end alone
    assert last.linear is not None
    assert 0.0 <= last.linear <= 100.0
    assert first.knn == last.knn  # of the same weights
    assert course("lightly", run, begun=1000.0, seconds=5.0).snapshots == []


def test_a_run_that_left_nothing_is_named(tmp_path: Path) -> None:
    run = Run(images="train", out=str(tmp_path))

    with pytest.raises(RuntimeError, match="lightly left no snapshot"):
        course("lightly", run, begun=0.0, seconds=60.0)
