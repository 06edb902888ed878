"""A loss from outside: a function and an entry of the table, or given in Python."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import diptych
from diptych.cli.main import main
from diptych.methods.losses import LOSSES

MARGIN = 0.8  # that the triplet of the table has when nothing else is said


def hinge(positive: Tensor, negatives: Tensor, settings: object) -> Tensor:
    """Mean over queries, and over the negatives of each that count, of max(0, s- - s+ + margin)."""
    counts = negatives > -torch.inf
    violation = (negatives - positive[:, None] + MARGIN).clamp(min=0).masked_fill(~counts, 0)
    return (violation.sum(dim=1) / counts.sum(dim=1)).mean()


HINGE = diptych.Loss(hinge, needs_all_logits=True)


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_loss_of_the_table(
    images: Path,
    train: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(LOSSES, "hinge", HINGE)
    own = train(images, "own", **{"method.loss.kind": "hinge"})
    there = train(images, "there", **{"method.loss.kind": "triplet"})
    for ours, theirs in zip(lines(own), lines(there), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["chance_loss"] == pytest.approx(MARGIN)
    assert main(["pretrain", str(images), "--method.loss.kind", "hing"]) == 2
    assert "triplet, supervised, hinge; got 'hing'" in capsys.readouterr().err


def test_a_loss_that_is_given(images: Path, train: Callable[..., Path]) -> None:
    def plain(positive: Tensor, logsumexp: Tensor, settings: object) -> Tensor:
        return torch.log1p(torch.exp(logsumexp - positive)).mean()

    own = train(images, "own", loss=plain)
    there = train(images, "there")
    for ours, theirs in zip(lines(own), lines(there), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        assert ours["chance_loss"] == pytest.approx(theirs["chance_loss"])
    assert 'kind = "own"' in (own / "config.toml").read_text().split("[method.loss]")[1]
    assert "knn" in diptych.evaluate(own, ["knn"], threads=1)
