"""A run says where its time went: the parts are the whole, on every process; and its traces."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from diptych.config.run import ProbeConfig
from diptych.errors import ConfigError
from diptych.logging import times
from diptych.logging.metrics import read_metrics
from diptych.logging.times import time_metrics
from diptych.pretraining import pretrain
from diptych.runtime.stopwatch import PARTS

Stripes = Callable[..., tuple[NDArray[np.uint8], NDArray[np.int64]]]

SMALL: dict[str, Any] = {
    "encoder.width": 4,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 16,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "training.batch_size": 16,
    "training.threads": 1,
    "probe.images": 32,
    "probe.log_every_steps": 3,
}


@pytest.fixture
def images(tmp_path: Path, stripes: Stripes) -> Path:
    pixels, labels = stripes(64)
    np.savez(tmp_path / "images.npz", images=pixels, labels=labels)
    return tmp_path / "images.npz"


def test_the_parts_of_all_lines_are_the_time_of_the_run(images: Path, tmp_path: Path) -> None:
    begun = time.perf_counter()
    out = pretrain(
        images, out=tmp_path / "run", quiet=True, recipe="moco_v2", epochs=3,
        **{**SMALL, "training.chunk_size": 8, "norm.images_per_group": 8},
    )  # fmt: skip
    passed = time.perf_counter() - begun
    lines, whole, step = read_metrics(out / "metrics.jsonl"), 0.0, 0
    for line in lines:
        parts = {k.partition("/")[2]: v for k, v in line.items() if k.startswith("milliseconds/")}
        assert all(value > 0 for value in parts.values())
        assert set(parts) <= set(PARTS)
        assert parts.keys() >= {
            "views",
            "forward",
            "backward",
            "optimizer",
            "momentum_encoder",
            "dictionary",
        }
        assert ("measuring" in parts) == ("effective_rank" in line)
        whole += sum(parts.values()) / 1000 * (line["step"] - step)
        step = line["step"]
    # The clock of `seconds` starts within that of the parts, and stops before it.
    rounding = 0.0005 + 0.5e-6 * len(PARTS) * step
    assert lines[-1]["seconds"] - rounding <= whole <= passed + rounding


def test_every_process_hears_of_the_slowest_and_the_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes, of which the last takes ten times as long for its views."""
    everyone = [
        {
            **dict.fromkeys(PARTS, 0.0),
            "forward": 4.0,
            "communication": 1.0 + rank,
            "views": 20.0 if rank == 2 else 2.0,
            "checkpoint": 100.0 if rank == 0 else 0.0,
        }
        for rank in range(3)
    ]
    rows = torch.tensor([[100 * one[part] for part in PARTS] for one in everyone]).double()
    monkeypatch.setattr(times, "process_count", lambda: 3)
    monkeypatch.setattr(times, "gather_rows", lambda own: rows)
    assert time_metrics(everyone[0], 10) == {
        "milliseconds/views": 200.0,
        "milliseconds/forward": 400.0,
        "milliseconds/communication": 100.0,
        "milliseconds/checkpoint": 10_000.0,
        "slowest_process": 2,
        "slowest_milliseconds/views": 2000.0,
        "slowest_milliseconds/forward": 400.0,
        "slowest_milliseconds/communication": 300.0,
        "usual_milliseconds/views": 200.0,
        "usual_milliseconds/forward": 400.0,
        "usual_milliseconds/communication": 200.0,
    }


def test_a_trace_has_the_parts_of_the_step_by_name(images: Path, tmp_path: Path) -> None:
    plain = pretrain(images, out=tmp_path / "plain", quiet=True, epochs=3, **SMALL)
    traced = pretrain(
        images, out=tmp_path / "traced", quiet=True, epochs=3,
        **{**SMALL, "probe.profile_steps": 2},
    )  # fmt: skip
    assert [file.name for file in (traced / "traces").iterdir()] == ["rank-0.json"]
    events = json.loads((traced / "traces" / "rank-0.json").read_text())["traceEvents"]
    count = {
        part: sum(e.get("name") == part and e.get("cat") == "user_annotation" for e in events)
        for part in PARTS
    }
    assert {part for part, n in count.items() if n} == {
        "views", "forward", "backward", "optimizer", "momentum_encoder", "dictionary",
    }  # fmt: skip
    assert count["forward"] == count["optimizer"] == 2
    assert any("conv" in str(event.get("name")) for event in events)
    ours, theirs = (read_metrics(out / "metrics.jsonl") for out in (traced, plain))
    assert [line["loss"] for line in ours] == [line["loss"] for line in theirs]
    assert not (plain / "traces").exists()


def test_a_trace_of_no_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"probe\.profile_steps must be positive.*got 0"):
        ProbeConfig(profile_steps=0)
