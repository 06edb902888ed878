"""The collapse of methods without negatives is seen within some steps, and nothing else is."""

from dataclasses import replace
from functools import cache
from typing import Any, Final

import numpy as np
import pytest
import torch
from torch import Tensor

from conftest import striped
from diptych.config.method import (
    KeyEncoderConfig,
    LeJEPAConfig,
    MethodConfig,
    SimSiamConfig,
    VICRegConfig,
)
from diptych.config.model import EncoderConfig, HeadConfig
from diptych.config.run import OptimizerConfig, RunConfig, TrainingConfig
from diptych.diagnostics.symptoms import find_symptoms
from diptych.methods.build import METHODS
from diptych.optimization.optimizers import build_optimizer
from diptych.training.step import train_step
from diptych.views.batches import Batch

BATCH: Final = 32
BASE: Final = RunConfig(
    encoder=EncoderConfig(width=8, stage_blocks=(1, 1)),
    head=HeadConfig(hidden_features=32, output_features=32, batch_norm=True),
    training=TrainingConfig(batch_size=BATCH),
    optimizer=OptimizerConfig("sgd"),
)
PREDICTS: Final = replace(BASE.head, predictor_layers=2, predictor_hidden_features=8)
BYOL: Final = MethodConfig("byol", key_encoder=KeyEncoderConfig("momentum"))
HEALTHY: Final = {
    "byol": replace(BASE, method=BYOL, head=PREDICTS),
    "simsiam": replace(BASE, method=MethodConfig("simsiam"), head=PREDICTS),
    "vicreg": replace(BASE, method=MethodConfig("vicreg")),
    "lejepa": replace(BASE, method=MethodConfig("lejepa", lejepa=LeJEPAConfig(0.05, 64))),
}
BROKEN: Final = {
    "simsiam without stop-gradient": replace(
        BASE, method=MethodConfig("simsiam", simsiam=SimSiamConfig(False)), head=PREDICTS
    ),
    "vicreg without variance": replace(
        BASE, method=MethodConfig("vicreg", vicreg=VICRegConfig(variance_weight=0.0))
    ),
}


@cache
def batch_of(step: int) -> Batch:
    """Two views of stripes: each another part, with another brightness."""
    rng = np.random.default_rng(step)
    pixels = [striped(int(rng.integers(6)), rng, side=24) for _ in range(BATCH)]
    images = torch.tensor(np.stack(pixels)).permute(0, 3, 1, 2).float() / 127.5 - 1
    views = [_view(images, rng), _view(images, rng)]
    return Batch((views[0], views[1]), torch.arange(BATCH), step)


def _view(images: Tensor, rng: np.random.Generator) -> Tensor:
    row, column = rng.integers(0, 8, size=2)
    return images[:, :, row : row + 16, column : column + 16] * float(rng.uniform(0.7, 1.3))


def alarms(config: RunConfig, steps: int, rate: float) -> tuple[set[str], list[dict[str, Any]]]:
    """Symptoms of a run of so many steps, and its lines."""
    method = METHODS[config.method.kind].build(config, None, None).train()
    optimizer = build_optimizer(config.optimizer, method)
    lines, found = list[dict[str, Any]](), set[str]()
    for step in range(steps):
        output = train_step(
            method, optimizer, batch_of(step), rate=rate, momentum=0.9, config=config
        )
        metrics = {name: float(value) for name, value in output.metrics.items()}
        lines.append({"step": step + 1, "epoch": 0, "loss": float(output.loss), **metrics})
        found |= {one.name for one in find_symptoms(lines, dictionary_size=None)}
    return found, lines


@pytest.mark.parametrize("name", BROKEN)
def test_a_collapse_is_seen(name: str) -> None:
    found, lines = alarms(BROKEN[name], 30, 0.2)
    assert "projections_collapsed" in found, lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("name", HEALTHY)
def test_no_collapse_where_there_is_none(name: str) -> None:
    found, lines = alarms(HEALTHY[name], 60, 0.05)
    assert "projections_collapsed" not in found, lines[-1]


# Of runs of the study `negatives`, every ten steps of 780: spread over the start's, directions.
SWAV_LEARNS: Final = [
    *((1.00, 10.2), (0.99, 9.1), (0.79, 4.5), (0.63, 3.5), (0.55, 3.0), (0.55, 3.3), (0.57, 2.9)),
    *((0.56, 3.0), (0.53, 3.6), (0.51, 3.1), (0.53, 3.3), (0.48, 3.2), (0.48, 3.2), (0.50, 2.9)),
]
WITHOUT: Final = {
    "byol without a predictor": [(1.00, 12.8), (0.73, 13.2), (0.42, 7.4), (0.36, 4.4), (0.30, 3.7)],
    "vicreg without variance": [
        *((1.00, 21.5), (0.96, 38.2), (0.74, 15.0), (0.64, 9.9), (0.51, 7.3), (0.47, 10.5)),
        *((0.39, 12.1), (0.38, 21.1)),
    ],
    "simsiam without stop-gradient": [
        *((1.00, 20.8), (1.00, 12.6), (0.90, 2.7), (0.80, 2.0), (0.52, 2.1), (0.55, 2.0)),
        *((0.39, 1.8), (0.35, 1.4)),
    ],
}


def told(spreads: list[tuple[float, float]]) -> list[str]:
    lines = [
        {"step": 10 * at, "epoch": 0, "loss": 1.0, "projection_std": std, "projection_rank": rank}
        for at, (std, rank) in enumerate(spreads)
    ]
    return [one.name for one in find_symptoms(lines, dictionary_size=None)]


def test_runs_that_learn_raise_no_alarm_and_collapses_do_in_the_first_tenth() -> None:
    for end in range(1, len(SWAV_LEARNS) + 1):
        assert told(SWAV_LEARNS[:end]) == []
    for spreads in WITHOUT.values():
        assert len(spreads) < 780 / 10 / 10 + 1
        assert told(spreads) == ["projections_collapsed"]
        assert told(spreads[:-2]) == []


def test_the_spread_is_compared_with_that_of_the_start() -> None:
    """Without batch norm a network begins with projections that are hardly spread."""

    def names(start: float, std: float, rank: float) -> list[str]:
        first = {"epoch": 0, "loss": 1.0, "projection_std": start, "projection_rank": 6.0}
        later = {**first, "projection_std": std, "projection_rank": rank}
        lines = [{"step": 1, **first}, {"step": 9, **later}, {"step": 19, **later}]
        # One batch is not enough.
        assert find_symptoms(lines[:1], dictionary_size=None) == []
        assert find_symptoms(lines[:2], dictionary_size=None) == []
        assert find_symptoms([*lines, {"step": 29, **first}], dictionary_size=None) == []
        return [one.name for one in find_symptoms(lines, dictionary_size=None)]

    assert names(0.11, 0.05, 3.0) == []
    assert names(0.11, 0.04, 3.0) == ["projections_collapsed"]
    assert names(0.98, 0.6, 1.7) == ["projections_collapsed"]  # a line
    assert names(0.98, 0.9, 1.7) == []


def test_an_image_that_is_not_found_by_its_other_view_is_told_of() -> None:
    """As BYOL's and SimSiam's on one kind of tile: no loss says it, and the spread is kept."""

    def names(
        found: float, *, steps: int = 600, count: int = 5, candidates: int = 128
    ) -> list[str]:
        line = {"epoch": 9, "loss": 0.7, "candidates": candidates, "retrieval_accuracy": found}
        line["chance_retrieval_accuracy"] = 1 / candidates
        lines = [{"step": steps - 10 * at, **line} for at in reversed(range(count))]
        return [one.name for one in find_symptoms(lines, dictionary_size=None)]

    assert names(0.0) == ["retrieval_at_chance"]
    assert names(2.9 / 128) == ["retrieval_at_chance"]
    assert names(3.1 / 128) == []
    assert names(0.0, steps=530) == []  # not all of them after so many steps
    assert names(0.0, count=4) == []
    assert names(0.1, candidates=16) == []  # thrice the chance level is little to ask of many
