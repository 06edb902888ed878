"""A run with a tracker: the same bits, its metrics handed on, also when it goes on."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

import diptych
from diptych.config.run import ProbeConfig
from diptych.errors import ConfigError
from diptych.logging import trackers
from diptych.logging.metrics import read_metrics
from diptych.logging.trackers import TrackedRun
from diptych.runs.folder import RunFolder, load_record

SMALL: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1,),
    "head.hidden_features": 8,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 8,
    "training.device": "cpu",
    "training.threads": 1,
    "probe.images": 16,
    "probe.log_every_steps": 1,
}


class Recorded:
    runs: list[TrackedRun] = []  # noqa: RUF012
    steps: list[int] = []  # noqa: RUF012

    def __init__(self, run: TrackedRun) -> None:
        self.runs.append(run)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        assert figures["loss"] > 0
        self.steps.append(step)

    def finish(self) -> None:
        pass


@pytest.mark.slow
def test_a_tracked_run(
    stripes: Callable[[int], tuple[NDArray[np.uint8], NDArray[np.int64]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    np.savez(tmp_path / "images.npz", images=stripes(24)[0])

    used: dict[str, Any] = {"probe.tracker": "trackio"}

    def run(name: str, epochs: int = 1, **more: Any) -> Path:
        place, settings = tmp_path / name, SMALL | more
        return diptych.pretrain(
            tmp_path / "images.npz", out=place, quiet=True, epochs=epochs, **settings
        )

    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'diptych\[trackio\]'"):
        run("refused", **used)
    assert not (tmp_path / "refused").exists()
    monkeypatch.setattr(trackers, "find_spec", lambda name: name)
    monkeypatch.setattr(trackers, "TRACKERS", {"trackio": Recorded})
    plain, tracked = run("plain"), run("tracked", **used)
    ours, theirs = (load_file(one / "encoder.safetensors") for one in (plain, tracked))
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
    assert Recorded.steps == [line["step"] for line in read_metrics(tracked / "metrics.jsonl")]
    (told,) = Recorded.runs
    assert (told.id, told.name) == (load_record(RunFolder(tracked)).identity.id, "tracked")
    assert told.project == ProbeConfig().tracker_project
    assert told.settings["training.batch_size"] == 8
    # Another tracker, or none, is no other run.
    other: dict[str, Any] = {"probe.tracker_project": "other"}
    diptych.pretrain(out=tracked, resume=True, quiet=True, **other)
