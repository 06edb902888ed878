"""Rank correlations and neighbours against plain loops."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diptych.diagnostics.label_free import (
    combined_rank,
    neighbour_agreement,
    rank_agreement,
)

VALUES = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=30)


@pytest.mark.slow
@given(VALUES)
def test_rank_correlations_equal_plain_loops(pairs: list[tuple[int, int]]) -> None:
    first, second = ([float(pair[place]) for pair in pairs] for place in (0, 1))
    found = rank_agreement({"measure": first}, second)["measure"]
    if len(set(first)) == 1 or len(set(second)) == 1:
        assert found is None
        return
    assert found is not None
    assert found.kendall == pytest.approx(tau_b(first, second), abs=1e-12)
    wanted = np.corrcoef(mean_ranks(first), mean_ranks(second))[0, 1]
    assert found.spearman == pytest.approx(wanted, abs=1e-12)


def tau_b(first: list[float], second: list[float]) -> float:
    """Pairs in the same order less those in the other, over the root of those without ties."""
    both, untied_first, untied_second = 0, 0, 0
    for (a, b), (c, d) in itertools.combinations(zip(first, second, strict=True), 2):
        both += ((a > c) - (a < c)) * ((b > d) - (b < d))
        untied_first += a != c
        untied_second += b != d
    return both / math.sqrt(untied_first * untied_second)


def mean_ranks(values: list[float]) -> list[float]:
    places = sorted(values)
    return [
        np.mean([place for place, one in enumerate(places) if one == value]).item()
        for value in values
    ]


def test_figures_of_earlier_versions_stay_the_same() -> None:
    """With ties, of more encoders than all orders are tried of: the random orders are the same."""
    measure = [2.0, 1.0, 1.0, 5.0, 3.0, 3.0, 8.0, 7.0, 6.0, 4.0]
    accuracy = [0.3, 0.2, 0.3, 0.4, 0.4, 0.1, 0.9, 0.8, 0.5, 0.5]
    found = rank_agreement({"measure": measure}, accuracy)["measure"]
    assert found == pytest.approx((0.7529932885360187, 0.8615425398559954, 7 / 5001, 10, 0.0))


@pytest.mark.parametrize("count", [4, 6, 7])
def test_the_chance_is_exact_for_few(count: int, rng: np.random.Generator) -> None:
    measure, accuracy = rng.normal(size=(2, count))
    found = rank_agreement({"measure": measure.tolist()}, accuracy.tolist())["measure"]
    assert found is not None
    wanted = stats.kendalltau(measure, accuracy, method="exact")
    assert found.p_value == pytest.approx(wanted.pvalue, abs=1e-12)
    assert found.encoders == count


def test_the_chance_is_near_for_many(rng: np.random.Generator) -> None:
    measure = rng.normal(size=20)
    accuracy = measure + rng.normal(0, 2.0, 20)
    found = rank_agreement({"measure": measure.tolist()}, accuracy.tolist())["measure"]
    assert found is not None
    wanted = stats.kendalltau(measure, accuracy, method="exact")
    assert found.p_value == pytest.approx(wanted.pvalue, abs=0.02)


def test_what_a_choice_costs() -> None:
    found = rank_agreement({"good": [1.0, 2.0, 3.0], "bad": [3.0, 2.0, 1.0]}, [0.5, 0.6, 0.9])
    assert found["good"] is not None
    assert found["bad"] is not None
    assert [found["good"].kendall, found["good"].lost] == pytest.approx([1, 0])
    assert [found["bad"].kendall, found["bad"].lost] == pytest.approx([-1, 0.4])
    assert found["combined"] is None  # the two say the opposite: nothing is left


def test_unknown_values_have_no_say() -> None:
    measures: dict[str, list[float | None]] = {
        "some": [1.0, None, 3.0, 2.0],
        "none": [None] * 4,
        "all": [4.0, 5.0, 6.0, 7.0],
    }
    assert combined_rank(measures) == pytest.approx([0, 1 / 3, (1 + 2 / 3) / 2, (0.5 + 1) / 2])
    found = rank_agreement(measures, [0.1, 0.2, 0.4, 0.3])
    assert found["some"] is not None
    assert [found["some"].encoders, found["some"].kendall] == pytest.approx([3, 1])
    assert found["none"] is None
    assert rank_agreement({"two": [1.0, 2.0]}, [1.0, 2.0])["two"] is None
    assert combined_rank({"none": [None, math.nan]}) == [None, None]
    assert combined_rank({"one": [None, 3.0]}) == [None, 0.5]


def test_neighbours_equal_the_loop(rng: np.random.Generator) -> None:
    first, second = rng.normal(size=(30, 5)) + 1, rng.normal(size=(30, 4))
    second[:, :3] += first[:, :3]

    def nearest(vectors: np.ndarray, image: int) -> set[int]:
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = unit - unit.mean(axis=0)
        cosines = [
            -math.inf if other == image else a @ unit[image] / np.linalg.norm(a)
            for other, a in enumerate(unit)
        ]
        return set(np.argsort(cosines)[-4:].tolist())

    wanted = np.mean([len(nearest(first, i) & nearest(second, i)) / 4 for i in range(30)])
    ours = neighbour_agreement(torch.from_numpy(first), torch.from_numpy(second), 4)
    assert ours == pytest.approx(wanted)


def test_neighbours_of_the_same_and_of_unrelated_features() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 500, 32, generator=generator)
    assert neighbour_agreement(first, 5 * first) == 1
    assert neighbour_agreement(first, second) == pytest.approx(10 / 499, abs=0.006)


def test_one_point_has_no_neighbours() -> None:
    point = torch.ones(50, 8) + 1e-7 * torch.randn(
        50, 8, generator=torch.Generator().manual_seed(0)
    )
    assert neighbour_agreement(point, point) == 0
    assert neighbour_agreement(torch.ones(1, 3), torch.ones(1, 3)) == 0
