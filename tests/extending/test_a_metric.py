"""A protocol of evaluation from outside: one function, and one line in the table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.neighbors import NearestCentroid

import diptych
from diptych.cli.main import main
from diptych.evaluation.protocols import PROTOCOLS
from diptych.evaluation.subject import Subject

subjects: list[Subject] = []  # that were measured


def nearest_mean(subject: Subject) -> dict[str, Any]:
    """Share of the test images whose class has the nearest mean, for every encoder and pixels."""
    subjects.append(subject)
    labelled, found = subject.labelled, {}
    for name, (train, test) in subject.features.items():
        classes = range(len(labelled.classes))
        means = torch.stack([train[labelled.train_labels == one].mean(dim=0) for one in classes])
        predicted = torch.cdist(test, means).argmin(dim=1)
        found[name] = float((predicted == labelled.test_labels).double().mean())
    return {"nearest_mean": found}


@pytest.mark.slow
# Of a few images some features are off in all.
@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_ has at least 1 zero")
def test_a_protocol(
    images: Path,
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(PROTOCOLS, "nearest_mean", nearest_mean)
    run = train(images, "run")
    found = diptych.evaluate(run, ["nearest_mean"], threads=1)["nearest_mean"]
    assert list(found) == ["trained", "untrained", "pixels"]
    labelled = subjects[0].labelled
    for name, (ours, theirs) in subjects[0].features.items():
        oracle = NearestCentroid().fit(ours.numpy(), labelled.train_labels.numpy())
        assert found[name] == oracle.score(theirs.numpy(), labelled.test_labels.numpy())
    assert main(["evaluate", str(run), "--protocol", "nearest_mean", "--threads", "1"]) == 0
    printed = capsys.readouterr().out
    assert "nearest mean" in printed
    assert f"{found['trained']:.1%}" in printed
    assert "nearest mean" in diptych.write_report(run, threads=1).read_text()
