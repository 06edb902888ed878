"""Both ways in which prototypes collapse are told from learning."""

import math
from typing import Any

import pytest

from diptych.diagnostics.symptoms import find_symptoms


def line(step: int, **metrics: float) -> dict[str, Any]:
    usual = {"prototype_agreement": 0.4, "chance_prototype_agreement": 0.02}
    learned = {"target_divergence": 0.7, "chance_loss": math.log(100)}
    return {"step": step, "epoch": 0, "loss": 4.0, **usual, **learned, **metrics}


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"prototype_agreement": 1.0, "chance_prototype_agreement": 0.9}, "90% of pairs"),
        ({"prototype_agreement": 0.03, "target_divergence": 0.01}, "only 0.010 above the entropy"),
        ({"target_divergence": 0.01}, None),  # all is learned
        ({}, None),
    ],
)
def test_one_prototype_or_all_alike(metrics: dict[str, float], words: str | None) -> None:
    found = find_symptoms(
        [line(1), *(line(step, **metrics) for step in (10, 20, 30))], dictionary_size=None
    )
    assert [one.name for one in found] == ([] if words is None else ["prototypes_collapsed"])
    assert words is None or words in found[0].sentence


def test_a_few_lines_are_no_collapse_and_others_have_no_prototypes() -> None:
    lines = [line(step, chance_prototype_agreement=1.0) for step in (1, 10, 20)]
    assert find_symptoms(lines, dictionary_size=None) == []
    plain = [{"step": step, "epoch": 0, "loss": 4.0} for step in range(6)]
    assert find_symptoms(plain, dictionary_size=None) == []
