"""Intervals and figures against SciPy, scikit-learn, closed forms and plain loops."""

import math
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from diptych.evaluation import confidence
from diptych.evaluation.confidence import (
    Statistic,
    accuracy_of,
    estimate,
    macro_auc,
    macro_auc_of_classes,
    macro_f1,
    macro_f1_of_classes,
    mean_per_class,
    mean_share_per_class,
    over_seeds,
    resamples,
    share_of_answers,
)


def test_an_accuracy_has_the_binomial_spread(rng: np.random.Generator) -> None:
    right = rng.random(800) < 0.7
    found = estimate(accuracy_of(right), 800, draws=4000)
    share = right.mean()
    assert found.value == pytest.approx(share)
    assert found.draws.std() == pytest.approx(math.sqrt(share * (1 - share) / 800), rel=0.06)
    wanted = stats.binom.ppf([0.025, 0.975], 800, share) / 800
    np.testing.assert_allclose(found.interval()[1:], wanted, atol=0.004)


def test_intervals_agree_with_scipy(rng: np.random.Generator) -> None:
    right = (rng.random(300) < 0.6).astype(float)
    other = np.where(rng.random(300) < 0.8, right, 1 - right)
    ours = estimate(accuracy_of(right > 0), 300).minus(estimate(accuracy_of(other > 0), 300))
    theirs = stats.bootstrap(
        (right, other),
        lambda a, b: np.mean(a) - np.mean(b),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    np.testing.assert_allclose(ours.interval()[1:], (theirs.low, theirs.high), atol=0.008)
    apart = math.hypot(*(estimate(accuracy_of(x > 0), 300).draws.std() for x in (right, other)))
    assert ours.draws.std() < 0.75 * apart  # what both get wrong does not widen a difference


def test_coverage_is_what_is_promised() -> None:
    generator = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        low, high = estimate(accuracy_of(generator.random(120) < 0.65), 120, draws=400).interval()[
            1:
        ]
        inside += low <= 0.65 <= high
    assert 178 <= inside <= 199  # 95% of 200; the bounds lie 4 standard errors away


def test_videos_that_are_right_as_a_whole_are_drawn_as_a_whole() -> None:
    generator = np.random.default_rng(5)
    inside = {"videos": 0, "frames": 0}
    for _ in range(200):
        videos = generator.permutation(np.repeat(np.arange(60), 10))
        right = (generator.random(60) < 0.65)[videos]
        for what, units in (("videos", videos), ("frames", None)):
            found = estimate(accuracy_of(right), 600, units=units, draws=400).interval()
            inside[what] += found.low <= 0.65 <= found.high
    assert 178 <= inside["videos"] <= 199  # as above
    assert inside["frames"] < 120  # with ten times as many images as there are chances to be right


def test_the_interval_over_videos_is_that_of_their_shares(rng: np.random.Generator) -> None:
    sizes = rng.integers(1, 9, 80)
    videos = np.repeat(np.arange(80), sizes)
    right = rng.random(len(videos)) < rng.beta(0.8, 0.5, 80)[videos]
    hits = np.bincount(videos, right)
    theirs = stats.bootstrap(
        (hits, sizes.astype(float)),
        lambda a, b: a.sum() / b.sum(),
        paired=True,
        vectorized=False,
        n_resamples=4000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    order = rng.permutation(len(videos))
    names = rng.permutation(1000)[:80]  # units are numbered anyhow, and stand anywhere
    found = estimate(accuracy_of(right[order]), len(videos), units=names[videos[order]])
    assert found.value == pytest.approx(right.mean())
    np.testing.assert_allclose(found.interval()[1:], (theirs.low, theirs.high), atol=0.008)


def test_units_of_one_image_each_change_no_bit(rng: np.random.Generator) -> None:
    truth, scores = rng.integers(0, 5, 150), rng.normal(size=(150, 5))
    right, predicted = rng.random(150), scores.argmax(axis=1)
    for figure in (
        accuracy_of(predicted == truth),
        mean_per_class(predicted, truth),
        mean_share_per_class(right, truth),
        macro_f1_of_classes(predicted, truth),
        macro_auc(scores, np.eye(5, dtype=bool)[truth]),
    ):
        alone = estimate(figure, 150, draws=60)
        units = estimate(figure, 150, units=rng.permutation(900)[:150], draws=60)
        assert alone.draws.tobytes() == units.draws.tobytes()
        assert alone.interval() == units.interval()


def test_a_resample_has_each_unit_whole_and_as_many_as_there_are(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = rng.permutation(np.repeat([3, 8, 1, 90], [1, 5, 2, 12]))
    whole = np.concatenate(list(resamples(20, draws=30, seed=4, units=units)))
    taken = np.stack([whole[:, units == one].max(axis=1) for one in (3, 8, 1, 90)])
    assert (taken.sum(axis=0) == 4).all()
    for row, one in enumerate((3, 8, 1, 90)):
        assert (whole[:, units == one] == taken[row][:, None]).all()
    monkeypatch.setattr(confidence, "_CELLS", 200)
    parts = list(resamples(20, draws=30, seed=4, units=units))
    assert [len(one) for one in parts] == [10, 10, 10]  # of few units as little is held
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_units_that_all_agree_prove_as_little_as_so_many_images() -> None:
    found = estimate(accuracy_of(np.ones(40, dtype=bool)), 40, units=np.arange(40) // 10)
    exact = stats.binomtest(4, 4).proportion_ci(0.95, method="exact")
    assert found.interval() == pytest.approx((1.0, exact.low, 1.0))


@pytest.mark.parametrize("images", [1, 2, 3, 12, 400])
def test_images_that_all_agree_have_the_exact_interval(images: int) -> None:
    """Their resamples agree as well, and made 100 to 100% of three images."""
    right = estimate(accuracy_of(np.ones(images, dtype=bool)), images)
    wrong = estimate(accuracy_of(np.zeros(images, dtype=bool)), images)
    exact = stats.binomtest(images, images).proportion_ci(0.95, method="exact")
    assert right.interval() == pytest.approx((1.0, exact.low, 1.0))
    assert wrong.interval() == pytest.approx((0.0, 0.0, 1.0 - exact.low))


@pytest.mark.parametrize("images", range(1, 12))
def test_a_gain_on_every_image_is_as_sure_as_the_sign_test(images: int) -> None:
    right = estimate(accuracy_of(np.ones(images, dtype=bool)), images)
    gain = right.minus(estimate(accuracy_of(np.zeros(images, dtype=bool)), images)).interval()
    assert (gain.low > 0) == (stats.binomtest(images, images, 0.5).pvalue < 0.05)
    none = right.minus(right).interval()
    assert none.low == -none.high < 0


def test_of_many_images_the_resamples_decide(rng: np.random.Generator) -> None:
    found = estimate(accuracy_of(rng.random(500) < 0.9), 500)
    np.testing.assert_allclose(found.interval()[1:], np.quantile(found.draws, [0.025, 0.975]))


def test_resamples_have_the_size_of_the_set(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resamples(50, draws=30, seed=4)))
    assert whole.shape == (30, 50)
    assert (whole.sum(axis=1) == 50).all()
    monkeypatch.setattr(confidence, "_CELLS", 500)  # ten resamples at a time
    parts = list(resamples(50, draws=30, seed=4))
    assert len(parts) == 3
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, next(iter(resamples(50, draws=30, seed=5))))


def drawn(counts: NDArray[np.float64]) -> NDArray[np.int64]:
    """The images of a resample, written out."""
    return np.repeat(np.arange(len(counts)), counts.astype(int))


def test_figures_of_resamples_equal_scikit_learn(rng: np.random.Generator) -> None:
    truth = rng.integers(0, 4, 90)
    scores = np.round(rng.normal(size=(90, 4)) + 1.2 * np.eye(4)[truth], 1)  # with ties
    predicted = scores.argmax(axis=1)
    hot, said = np.eye(4, dtype=bool)[truth], np.eye(4, dtype=bool)[predicted]
    counts = np.concatenate([np.ones((1, 90)), *resamples(90, draws=6, seed=1)])
    figures = {
        "class": mean_per_class(predicted, truth)(counts),
        "f1": macro_f1(said, hot)(counts),
        "f1, one answer": macro_f1_of_classes(predicted, truth)(counts),
        "auc": macro_auc(scores, hot)(counts),
        "auc, one class": macro_auc_of_classes(lambda c: scores[:, c], truth, 4)(counts),
        "answers": share_of_answers(said, hot)(counts),
    }
    for draw, row in enumerate(counts):
        some = drawn(row)
        wanted = {
            "class": balanced_accuracy_score(truth[some], predicted[some]),
            "f1": f1_score(truth[some], predicted[some], average="macro"),
            "auc": np.mean([roc_auc_score(hot[some, c], scores[some, c]) for c in range(4)]),
            "answers": np.mean([said[i] == hot[i] for i in some]),
        }
        wanted |= {"f1, one answer": wanted["f1"], "auc, one class": wanted["auc"]}
        for name, value in wanted.items():
            assert figures[name][draw] == pytest.approx(value, abs=1e-12), name


def test_sums_by_class_are_those_of_a_matrix_of_members_to_the_bit(
    rng: np.random.Generator,
) -> None:
    truth, predicted = rng.choice([0, 2, 3, 9, 11], 400), rng.integers(0, 12, 400)
    truth[:300] = 3  # the others are rare, and missing in some resamples
    counts = np.concatenate(list(resamples(400, draws=50, seed=1)))
    members = (truth[:, None] == np.unique(truth)).astype(float)

    def plain(right: NDArray[np.float64]) -> NDArray[np.float64]:
        above, below = counts @ (members * right[:, None]), counts @ members
        ratio = np.divide(above, below, out=np.zeros_like(above), where=below > 0)
        mean: NDArray[np.float64] = ratio.sum(axis=1) / (below > 0).sum(axis=1)
        return mean

    right = (predicted == truth).astype(float)
    np.testing.assert_array_equal(mean_per_class(predicted, truth)(counts), plain(right))
    shares = rng.random(400)
    found = mean_share_per_class(shares, truth)(counts)
    np.testing.assert_allclose(found, plain(shares), rtol=0, atol=1e-12)


def test_labels_in_blocks_are_those_of_all_at_once(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    said, wanted = rng.random((2, 60, 11)) < 0.3
    counts = next(resamples(60, draws=8, seed=2))
    whole = macro_f1(said, wanted)(counts)
    monkeypatch.setattr(confidence, "_CELLS", 240)  # four labels at a time
    assert macro_f1(said, wanted)(counts).tobytes() == whole.tobytes()


MANY = 2000  # images, and as many classes


@pytest.mark.parametrize(
    "made",
    [
        lambda scores, truth: mean_per_class(truth[::-1].copy(), truth),
        lambda scores, truth: macro_f1_of_classes(truth[::-1].copy(), truth),
        lambda scores, truth: macro_auc_of_classes(lambda c: scores[:, c], truth, MANY),
        lambda scores, truth: macro_auc(scores, scores > 0.5),
        lambda scores, truth: macro_f1(scores > 0.5, scores > 0.5),
    ],
    ids=["mean per class", "f1 of classes", "auc of classes", "auc of labels", "f1 of labels"],
)
def test_no_figure_holds_images_times_classes_numbers(
    made: Callable[[NDArray[np.float32], NDArray[np.int64]], Statistic],
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(confidence, "_CELLS", 100_000)
    scores = rng.random((MANY, MANY), dtype=np.float32)
    truth, counts = rng.permutation(MANY), np.ones((2, MANY))
    tracemalloc.start()
    assert 0 <= made(scores, truth)(counts)[0] <= 1
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Answers of several labels are flags, two of a byte each; a matrix of numbers has eight.
    assert peak < 2.8 * MANY**2


def test_a_class_that_is_not_there_is_left_out() -> None:
    counts = np.array([[1.0, 1, 0, 0], [0, 0, 1, 1]])
    truth = np.array([0, 0, 1, 1])
    np.testing.assert_array_equal(mean_per_class(np.array([0, 1, 1, 1]), truth)(counts), [0.5, 1])
    auc = macro_auc(np.ones((4, 2)), np.eye(2, dtype=bool)[truth])
    assert np.isnan(auc(counts)).all()
    found = estimate(auc, 4, draws=50)
    assert found.value == 0.5
    low, high = found.interval()[1:]
    assert 0 < low < 0.5 < high < 1  # all resamples agree; four images prove little
    none = macro_auc(np.ones((4, 1)), np.zeros((4, 1), dtype=bool))
    assert math.isnan(estimate(none, 4, draws=5).interval().low)


def test_seeds_have_the_t_interval() -> None:
    values = [0.31, 0.35, 0.33]
    wanted = stats.ttest_1samp(values, 0.0).confidence_interval(0.95)
    assert over_seeds(values) == pytest.approx((0.33, wanted.low, wanted.high))
    assert over_seeds([0.4]).value == 0.4
    assert math.isnan(over_seeds([0.4]).low)
