"""Words that follow from the figures, and change when the figures do."""

import math
from typing import Any

import pytest

from diptych.evaluation.symptoms import find_symptoms
from diptych.evaluation.verdict import judge


def line(step: int, **values: float) -> dict[str, Any]:
    healthy = {
        "step": step,
        "epoch": step // 10,
        "loss": 3.0,
        "chance": math.log(512),
        "accuracy": 0.4,
        "candidates": 512,
    }
    return {**healthy, **values}


def names(metrics: list[dict[str, Any]], dictionary_size: int | None = None) -> dict[str, bool]:
    return {s.name: s.alarming for s in find_symptoms(metrics, dictionary_size=dictionary_size)}


def test_a_healthy_run_has_no_symptoms() -> None:
    assert names([line(s, effective_rank=30.0, knn=0.3 + s / 100) for s in (1, 10, 20)]) == {}
    assert names([]) == {}


def test_a_filling_queue_is_normal() -> None:
    assert names([line(1, candidates=257)], dictionary_size=4096) == {"dictionary_filling": False}
    assert names([line(99, candidates=4097)], dictionary_size=4096) == {}


def test_collapse_chance_and_shortcut_are_alarming() -> None:
    assert names([line(30, effective_rank=1.3)]) == {"collapse": True}
    assert names([line(30, loss=math.log(512))]) == {"at_chance": True}
    assert names([line(3, loss=math.log(512))]) == {}  # too early to say
    easy = [line(s, accuracy=0.999, effective_rank=20.0, knn=0.3) for s in (10, 40)]
    assert names(easy) == {"shortcut": True}


def evaluation(trained: float, untrained: float, pixels: float = 0.2, count: int = 1000) -> Any:
    knn = {"trained": trained, "untrained": untrained, "pixels": pixels}
    return {"knn": knn, "linear": knn, "protocol": {"test_images": count, "knn_neighbours": 7}}


@pytest.mark.parametrize(
    ("trained", "untrained", "count", "words"),
    [
        (0.76, 0.58, 1280, "clearly better"),
        (0.64, 0.58, 1280, "learned a little"),
        (0.59, 0.58, 1280, "No gain that can be told from chance"),
        (0.76, 0.58, 20, "No gain that can be told from chance"),
        (0.40, 0.58, 1280, "worse"),
    ],
)
def test_headlines_follow_the_gain_and_its_error(
    trained: float, untrained: float, count: int, words: str
) -> None:
    found = judge([line(9)], evaluation(trained, untrained, count=count))
    assert words in found.headline
    assert f"{100 * (trained - untrained):+.1f} points" in " ".join(found.sentences)
    assert f"By its 7 nearest neighbours, {trained:.1%} of {count:,} test" in found.sentences[0]


def test_a_better_baseline_is_named() -> None:
    found = judge([line(9)], evaluation(0.4, 0.3, pixels=0.5))
    assert any("raw pixels would serve better" in sentence for sentence in found.sentences)


def test_without_labels_it_says_what_is_not_known() -> None:
    found = judge([line(9, effective_rank=20.0)], None)
    assert "without labels" in found.headline
    sick = judge([line(30, effective_rank=1.1)], None)
    assert "Something is wrong" in sick.headline
    assert "collapsed" in sick.sentences[0]


def test_a_rising_end_asks_for_a_longer_run() -> None:
    rising = [line(s, knn=0.3 + s / 500, effective_rank=9.0) for s in range(10, 100, 10)]
    flat = [line(s, knn=0.4, effective_rank=9.0) for s in range(10, 100, 10)]
    assert any("still rising" in s for s in judge(rising, None).sentences)
    assert not any("still rising" in s for s in judge(flat, None).sentences)


def test_a_student_is_judged_by_its_agreement() -> None:
    student = line(9, loss=1.8, chance=math.log(10), accuracy=0.67, candidates=10, classes=10.0)
    words = " ".join(judge([student], None).sentences)
    assert "guessing among 10 classes gives 2.30" in words
    assert "on 67% of the views student and teacher name the same class" in words
    assert "queries" not in words


def measured(gain: tuple[float, float, float], **values: float) -> Any:
    """An evaluation with paired intervals: the gain over every rival is the same."""
    knn = {"trained": 0.6, "untrained": 0.6 - gain[0], "pixels": 0.3, **values}
    interval = dict(zip(("value", "low", "high"), gain, strict=True))
    gains = {name: interval for name in knn if name != "trained"}
    settings = {"test_images": 900, "knn_neighbours": 20}
    details = {"knn": {"settings": settings, "metrics": {"accuracy": {"gains": gains}}}}
    return {"knn": knn, "protocol": settings, "details": details}


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ((0.1, 0.08, 0.12), "clearly better"),
        ((0.02, 0.005, 0.035), "learned a little"),
        ((0.02, -0.005, 0.045), "No gain that can be told from chance"),
        ((-0.02, -0.035, -0.005), "worse"),
    ],
)
def test_the_paired_interval_decides(gain: tuple[float, float, float], words: str) -> None:
    found = judge([line(9)], measured(gain))
    assert words in found.headline
    assert f"95% interval {100 * gain[1]:+.1f} to {100 * gain[2]:+.1f}" in found.sentences[0]
    assert any("Another seed" in sentence for sentence in found.sentences)


def test_rivals_that_know_the_labels_set_the_goal() -> None:
    behind = judge([], measured((-0.2, -0.22, -0.18), supervised=0.8))
    assert any("can hold more than this run taught it" in s for s in behind.sentences)
    ahead = judge([], measured((0.1, 0.08, 0.12), supervised=0.5))
    assert any("learning without labels served better" in s for s in ahead.sentences)
    named = judge([], measured((0.0, -0.01, 0.01), **{"runs/other": 0.6}))
    assert any("not to be told apart from runs/other" in s for s in named.sentences)


def test_a_wide_interval_asks_for_more_test_images() -> None:
    wide = judge([], measured((0.1, 0.02, 0.18)))
    assert any("--test PATH" in sentence for sentence in wide.sentences)
    narrow = judge([], measured((0.1, 0.09, 0.11)))
    assert not any("--test PATH" in sentence for sentence in narrow.sentences)


def test_few_labels_and_other_tasks_are_summed_up() -> None:
    found = measured((0.1, 0.08, 0.12))
    gain = {"value": 0.05, "low": 0.01, "high": 0.09}
    found["finetune"] = {"1": {"trained": 0.9, "untrained": 0.9}, "0.01": {"trained": 0.4}}
    found["finetune"]["0.01"]["untrained"] = 0.35
    shares: Any = {"0.01": {"images": 40, "gains": {"untrained": gain}}}
    found["details"]["finetune"] = {"shares": shares}
    task = {"metrics": {"accuracy": {"gains": {"untrained": gain}}}}
    found["details"]["transfer"] = {"tasks": {"birds": task, "cars": task}}
    words = " ".join(judge([], found).sentences)
    assert "Fine-tuned on 40 labelled images it reaches 40.0%, and 35.0% without" in words
    assert "begin from this encoder" in words
    assert "Of 2 other tasks it is clearly better than the untrained encoder on 2" in words
    shares["0.01"]["gains"]["untrained"] = {"value": 0.05, "low": None, "high": None}
    assert "one seed only" in " ".join(judge([], found).sentences)
