"""Runs give the losses that they always gave: twenty steps of each recipe, step by step.

The numbers in ``golden_traces.json`` were measured on one machine, where they hold to the bit.
Others add in another order: losses then differ by some 1e-6, rounding that training enlarges. Where
a change is meant to move them, measure them anew, and say so in the changelog.
"""

import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from conftest import striped
from diptych.logging.metrics import read_metrics
from diptych.pretraining import pretrain

LOSSES: Final[dict[str, list[float]]] = json.loads(
    Path(__file__).with_name("golden_traces.json").read_text()
)
SMALL: Final[dict[str, Any]] = {
    "encoder.width": 4,
    "encoder.pool": 1,
    "encoder.stage_blocks": (1, 1),
    "head.hidden_features": 16,
    "head.output_features": 8,
    "views.side_pixels": 16,
    "views.policy": "crop + flip + color + gray + blur + noise",
    "views.small_views": 1,
    "views.small_side_pixels": 8,
    "training.batch_size": 16,
    "training.epochs": 4,
    "training.threads": 1,
    "training.keep.kind": "last",  # of a teacher too
    "probe.images": 16,
    "probe.health_every_epochs": 4,
    "probe.log_every_steps": 1,
    "checkpoint.every_seconds": float("inf"),
}
RECIPES: Final[dict[str, dict[str, Any]]] = {
    "simclr": {"optimizer.kind": "lars", "optimizer.clip_norm": 1.0},
    "moco_v2": {"method.dictionary.queue.size": 50, "method.symmetric": True},
    "moco_v3": {
        "optimizer.kind": "adamw",
        "method.loss.learn_temperature": True,
        "training.chunk_size": 8,
    },
    "memory_bank": {"method.dictionary.bank.negatives": 20},
    "end_to_end": {},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eighty images, and room for runs."""
    folder = tmp_path_factory.mktemp("golden")
    rng, labels = np.random.default_rng(5), np.arange(80) % 3
    pixels = np.stack([striped(int(label), rng) for label in labels])
    np.savez(folder / "images.npz", images=pixels, labels=labels)
    return folder


def assert_golden(name: str, place: Path, settings: dict[str, Any]) -> Path:
    out = place / name
    if not out.exists():
        pretrain(place / "images.npz", out=out, quiet=True, **{**SMALL, **settings})
    losses = [line["loss"] for line in read_metrics(out / "metrics.jsonl")]
    assert losses == pytest.approx(LOSSES[name], rel=1e-4, abs=1e-6)
    return out


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_losses_of_a_recipe(recipe: str, place: Path) -> None:
    assert_golden(recipe, place, {"recipe": recipe, **RECIPES[recipe]})


def test_the_losses_of_a_student(place: Path) -> None:
    teacher = assert_golden("simclr", place, {"recipe": "simclr", **RECIPES["simclr"]})
    settings = {"views.small_views": 0, "distillation.teacher": str(teacher)}
    assert_golden("distillation", place, {"recipe": "simclr", **settings})
