"""Comparisons and judgements on made-up results, against formulas written out again."""

import math

import numpy as np
import pytest
from scipy import stats

from diptych.studies.cell_results import StudyResults
from diptych.studies.study import (
    Claim,
    best_of,
    better,
    difference_in_points,
    judge_claim,
    rises,
    rises_more,
)
from studies.made_up import result, results


def test_a_difference_has_the_t_interval_of_two_samples_with_one_variance() -> None:
    one, other = [0.42, 0.44, 0.43], [0.40, 0.41, 0.39]
    found = difference_in_points(
        results(one=one, other=other), better("one", "other", "", "").weights
    )
    assert found is not None
    oracle = stats.ttest_ind(one, other, equal_var=True).confidence_interval(0.95)
    assert found.value == pytest.approx(100 * (np.mean(one) - np.mean(other)))
    assert (found.low, found.high) == pytest.approx((100 * oracle.low, 100 * oracle.high))


def test_a_cell_that_varies_more_than_the_others_counts_with_its_own_deviation() -> None:
    loud, quiet = [0.287, 0.314, 0.292], [0.312, 0.318, 0.309]
    others = {"c": [0.385, 0.383, 0.388], "d": [0.381, 0.377, 0.386]}
    found = difference_in_points(
        results(loud=loud, quiet=quiet, **others), better("quiet", "loud", "", "").weights
    )
    assert found is not None
    oracle = stats.ttest_ind(quiet, loud, equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * oracle.low, 100 * oracle.high))


def test_cells_that_agree_by_chance_do_not_count_with_their_own_deviation() -> None:
    one, other = [0.400, 0.401, 0.402], [0.390, 0.391, 0.392]
    third = [0.30, 0.31, 0.32]
    found = difference_in_points(
        results(one=one, other=other, third=third), better("one", "other", "", "").weights
    )
    assert found is not None
    # 2.447 is the quantile 97.5% of t with 6 degrees of freedom, from a printed table.
    half = 2.447 * math.sqrt((0.1**2 + 0.1**2 + 1.0**2) / 3 * (1 / 3 + 1 / 3))
    assert (found.low, found.high) == pytest.approx((1.0 - half, 1.0 + half), rel=1e-3)


def test_a_slope_is_that_of_a_straight_line_through_the_means(rng: np.random.Generator) -> None:
    positions = [7.0, 8.0, 10.0, 11.0]  # doublings of 1
    # The cells at the ends, which say most of a slope, vary least: all cells together vary more.
    values = rng.uniform(0.3, 0.5, (4, 1)) + np.outer([0.01, 0.3, 0.3, 0.01], [0.05, 0.0, -0.05])
    cells = ["a", "b", "c", "d"]
    claim = rises(cells, [2**x for x in positions], "It rises", "it does", per="K")
    found = difference_in_points(
        results(**dict(zip(cells, values.tolist(), strict=True))), claim.weights
    )
    assert found is not None
    slope = np.polyfit(positions, 100 * values.mean(axis=1), 1)[0]
    assert found.value == pytest.approx(slope)
    # One-way analysis of variance: the slope's error from the spread within the cells.
    within = (100 * (values - values.mean(axis=1, keepdims=True))).ravel()
    error = math.sqrt((within @ within) / 8 / 3 / np.var(positions) / 4)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 8) * error)


def test_two_measures_of_one_cell_are_compared_run_by_run() -> None:
    h, g = [0.90, 0.94, 0.92], [0.50, 0.53, 0.53]
    found = difference_in_points(
        StudyResults(result("run", s, h=a, g=b) for s, (a, b) in enumerate(zip(h, g, strict=True))),
        {("run", "h"): 1.0, ("run", "g"): -1.0},
    )
    assert found is not None
    oracle = stats.ttest_rel(h, g).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((100 * oracle.low, 100 * oracle.high))
    single = difference_in_points(
        StudyResults([result("run", 0, h=0.9, g=0.5)]), {("run", "h"): 1.0, ("run", "g"): -1.0}
    )
    assert single is not None
    assert single.high == math.inf


def test_measures_of_two_cells_have_a_standard_deviation_each() -> None:
    h, g = [0.90, 0.94, 0.92], [0.50, 0.52, 0.60]
    found = difference_in_points(
        StudyResults(
            [result("one", s, h=a) for s, a in enumerate(h)]
            + [result("other", s, g=b) for s, b in enumerate(g)]
        ),
        {("one", "h"): 1.0, ("other", "g"): -1.0},
    )
    assert found is not None
    oracle = stats.ttest_ind(h, g, equal_var=False).confidence_interval(0.95)  # Welch
    assert (found.low, found.high) == pytest.approx((100 * oracle.low, 100 * oracle.high))


@pytest.mark.parametrize(
    ("one", "outcome"),
    [([0.50, 0.51, 0.52], "agree"), ([0.40, 0.41, 0.42], "undecided"),
     ([0.30, 0.31, 0.32], "disagree")],
)  # fmt: skip
def test_what_is_beyond_the_interval_is_decided(one: list[float], outcome: str) -> None:
    claim = better("one", "other", "One beats the other", "by 3 points")
    found = judge_claim(claim, results(one=one, other=[0.41, 0.40, 0.42]))
    assert found.outcome == outcome
    words = {"agree": "agrees", "undecided": "Not decided", "disagree": "contradicts"}[outcome]
    assert words in found.sentence()
    assert "by 3 points" in found.sentence()


@pytest.mark.parametrize(
    ("shift", "outcome"), [(0.0, "agree"), (0.02, "undecided"), (0.06, "disagree")]
)
def test_that_nothing_changes_needs_an_interval_within_the_tolerance(
    shift: float, outcome: str
) -> None:
    same = [0.400, 0.402, 0.404]
    claim = Claim("They are equal", "equal", {("a", "knn"): 1, ("b", "knn"): -1}, tolerance=2.0)
    assert judge_claim(claim, results(a=[v + shift for v in same], b=same)).outcome == outcome


@pytest.mark.parametrize(
    ("shift", "words"),
    [
        (0.03, "There is a difference, of +1.5 to +4.5 points; whether it is below 2 points is"),
        (-0.03, "There is a difference, of -4.5 to -1.5 points; whether it is below 2 points is"),
        (0.01, "the interval includes zero and 2 points."),
    ],
)
def test_what_is_not_decided_of_a_tolerance_is_said(shift: float, words: str) -> None:
    # 2.776 is the quantile 97.5% of t with 4 degrees of freedom: 1.5 points to either side.
    spread = 0.015 / 2.776 / math.sqrt(2 / 3)
    same = [0.4 - spread, 0.4, 0.4 + spread]
    claim = better("a", "b", "They are equal", "equal", tolerance=2.0)
    found = judge_claim(claim, results(a=[v + shift for v in same], b=same))
    assert found.outcome == "undecided"
    assert words in found.sentence()


@pytest.mark.parametrize(
    ("shift", "paper", "outcome", "words"),
    [
        (0.00, 4.0, "smaller", "as large as the paper's 4 points is ruled out; the interval incl"),
        (0.00, 1.0, "undecided", "the interval includes zero and the paper's 1 point."),
        (0.03, 4.0, "agree", "This agrees, beyond the interval."),
        (0.03, 9.0, "agree", "beyond the interval, by less than the paper's 9 points."),
        (-0.03, 4.0, "disagree", "This contradicts it"),
    ],
)
def test_a_difference_is_held_against_the_size_of_the_papers(
    shift: float, paper: float, outcome: str, words: str
) -> None:
    spread = 0.015 / 2.776 / math.sqrt(2 / 3)  # 1.5 points to either side, as above
    same = [0.4 - spread, 0.4, 0.4 + spread]
    claim = better("a", "b", "One beats the other", "by far", paper_points=paper)
    found = judge_claim(claim, results(a=[v + shift for v in same], b=same))
    assert found.outcome == outcome
    assert words in found.sentence()
    assert found.is_below_paper == (paper > 100 * shift + 1.5)


def test_of_a_finding_without_a_number_it_is_said_how_much_is_ruled_out() -> None:
    spread = 0.015 / 2.776 / math.sqrt(2 / 3)  # 1.5 points to either side, as above
    same = [0.4 - spread, 0.4, 0.4 + spread]
    found = judge_claim(
        better("a", "b", "One beats the other", "it does"),
        results(a=[value - 0.005 for value in same], b=same),
    )
    assert found.outcome == "undecided"
    assert found.sentence().endswith("includes zero; more than 1.0 points are ruled out.")


def test_a_finding_without_its_measure_says_what_it_waits_for() -> None:
    claim = better("one", "other", "One beats the other", "yes", measure="linear")
    waiting = judge_claim(claim, results(one=[0.9, 0.8], other=[0.1, 0.2]))
    assert waiting.outcome == "unmeasured"
    assert "not measured. It waits for what the same command adds: linear." in waiting.sentence()
    # There is nothing to add to where no run is done.
    assert judge_claim(claim, results()).sentence().endswith("not measured.")


def test_one_seed_decides_nothing_and_no_result_is_said() -> None:
    claim = better("one", "other", "One beats the other", "yes")
    alone = judge_claim(claim, results(one=[0.9], other=[0.1]))
    assert alone.outcome == "undecided"
    assert "one seed gives no interval" in alone.sentence()
    assert "interval " not in alone.sentence().replace("no interval", "")
    missing = judge_claim(claim, results(one=[0.9]))
    assert missing.outcome == "unmeasured"
    assert "not measured" in missing.sentence()


def test_seeds_that_all_agree_leave_an_interval_of_no_width() -> None:
    found = difference_in_points(
        results(a=[0.5, 0.5], b=[0.4, 0.4]), better("a", "b", "", "").weights
    )
    assert found is not None
    assert found.low == pytest.approx(found.high) == pytest.approx(10.0)


def test_a_mean_of_cells_is_compared_and_a_slope_less_another() -> None:
    found = results(a=[0.5, 0.6], b=[0.3, 0.4], c=[0.1, 0.2], d=[0.1, 0.4])
    mean = difference_in_points(found, better(["a", "b"], ["c", "d"], "", "").weights)
    assert mean is not None
    assert mean.value == pytest.approx(100 * ((0.55 + 0.35) / 2 - (0.15 + 0.25) / 2))
    one, other = (rises(cells, [4, 8], "", "", per="K") for cells in (("b", "a"), ("c", "d")))
    claim = rises_more(one, other, "It rises more", "it does")
    assert claim.per == "per doubling of K"
    slopes = difference_in_points(found, claim.weights)
    assert slopes is not None
    assert slopes.value == pytest.approx(100 * ((0.55 - 0.35) - (0.25 - 0.15)))


def test_the_best_is_found_among_those_that_have_results() -> None:
    assert best_of(results(a=[0.1], b=[0.3, 0.1], c=[0.25]), ["none", "a", "b", "c"]) == "c"
