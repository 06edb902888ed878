"""Which encoder a verdict names as the best: cases of figures and what is said of them."""

from typing import Any

import pytest

from diptych.diagnostics.comparison import compare, result_table
from diptych.diagnostics.verdict import judge

Gains = dict[str, tuple[float, float]]

BETTER, WORSE, UNSURE = (0.05, 0.03), (-0.05, 0.03), (0.01, 0.03)
"""A gain of the trained encoder, and half of its interval."""


def probe(metrics: dict[str, Gains], **settings: Any) -> tuple[dict[str, float], Any]:
    """Accuracy by encoder, and details, from gains over each baseline; the trained one has 60%."""
    found = {}
    for metric, gains in metrics.items():
        values = {"trained": 0.6} | {name: 0.6 - gain for name, (gain, _) in gains.items()}
        found[metric] = {
            "intervals": {
                name: {"value": value, "low": value - 0.02, "high": value + 0.02}
                for name, value in values.items()
            },
            "gains": {
                name: {"value": gain, "low": gain - half, "high": gain + half}
                for name, (gain, half) in gains.items()
            },
        }
    table = {name: one["value"] for name, one in found["accuracy"]["intervals"].items()}
    usual = {"test_images": 900, "train_images": 9000, "images": "a", "measured_classes": 4}
    usual |= {"classes": 4, "largest_class": 0.25, "knn_neighbours": 20}
    return table, {"metrics": found, "settings": {**usual, **settings}}


def evaluation(knn: Gains, linear: Gains | None = None, **settings: Any) -> Any:
    found: Any = {"details": {}, "protocol": {"test_images": 900}}
    for name, gains in (("knn", knn), ("linear", linear)):
        if gains is not None:
            found[name], found["details"][name] = probe({"accuracy": gains}, **settings)
    return found


def gains(start: Any = None, untrained: Any = BETTER, pixels: Any = BETTER) -> Gains:
    found = {"start": start, "untrained": untrained, "pixels": pixels}
    return {name: one for name, one in found.items() if one is not None}


@pytest.mark.parametrize(
    ("knn", "linear", "words"),
    [
        (gains(), None, "The encoder learned a little: by kNN it is better than the untrained"),
        (gains(), gains(), "by kNN and by the linear classifier"),
        (gains(start=BETTER), gains(start=BETTER), "than the start weights, the untrained"),
        (
            gains(pixels=WORSE),
            None,
            "Raw pixels serve better than the trained encoder: 65.0% again",
        ),
        (gains(pixels=WORSE), gains(pixels=UNSURE), "Raw pixels serve better"),
        (gains(pixels=WORSE), gains(pixels=BETTER), "The figures disagree on what serves best"),
        (gains(pixels=UNSURE), None, "but cannot be told apart from raw pixels"),
        (
            gains(pixels=UNSURE),
            gains(),
            "better than the untrained encoder and raw pixels by the linear classifier; by kNN it "
            "cannot be told apart from raw pixels.",
        ),
        (gains(start=WORSE), None, "The start weights serve better than the trained encoder"),
        (gains(start=UNSURE), None, "No gain that can be told from chance: the trained encoder is"),
        (gains(untrained=WORSE, pixels=WORSE), None, "serves better than the trained encoder"),
        (gains(untrained=UNSURE, pixels=UNSURE), None, "No gain that can be told from chance"),
    ],
)
def test_the_headline_names_the_best(knn: Gains, linear: Gains | None, words: str) -> None:
    found = judge([], evaluation(knn, linear))
    assert words in found.headline
    learned = "encoder learned" in found.headline
    assert learned == all(
        gain - half > 0 for one in (knn, linear or {}) for gain, half in one.values()
    )
    assert learned == (not any("What to do next" in s for s in found.sentences))


def test_advice_is_of_the_start_weights_where_a_run_had_them() -> None:
    said = " ".join(judge([], evaluation(gains(start=WORSE))).sentences)
    assert "take the start weights as they are" in said
    assert "--weights FILE" not in said
    assert "--weights FILE" in " ".join(judge([], evaluation(gains(pixels=WORSE))).sentences)


def test_probes_that_name_different_encoders_are_told_of() -> None:
    found = judge([], evaluation(gains(pixels=UNSURE), gains(pixels=(-0.01, 0.03))))
    assert any("The probes do not agree: by kNN this encoder is" in s for s in found.sentences)
    agree = judge([], evaluation(gains(), gains()))
    assert not any("do not agree" in s for s in agree.sentences)


def test_a_linear_classifier_on_other_images_decides_nothing() -> None:
    found = evaluation(gains(), gains(pixels=WORSE))
    found["details"]["linear"]["settings"]["images"] = "b"
    said = judge([], found)
    assert "encoder learned" in said.headline
    assert any("on other images" in sentence for sentence in said.sentences)


def unequal(accuracy: Gains, per_class: Gains) -> Any:
    table, detail = probe(
        {"accuracy": accuracy, "mean_per_class": per_class}, largest_class=0.71, measured_classes=6
    )
    return {"knn": table, "details": {"knn": detail}, "protocol": detail["settings"]}


@pytest.mark.parametrize(
    ("accuracy", "per_class", "words"),
    [
        (gains(), gains(), "learned a little: by kNN (mean per class)"),
        (gains(pixels=UNSURE), gains(), "learned"),
        (gains(), gains(pixels=UNSURE), "cannot be told apart from raw pixels"),
        (gains(), gains(pixels=WORSE), "Raw pixels serve better"),
        (gains(pixels=WORSE), gains(), "The figures disagree"),
    ],
)
def test_mean_per_class_decides_where_a_class_has_over_half(
    accuracy: Gains, per_class: Gains, words: str
) -> None:
    found = judge([], unequal(accuracy, per_class))
    assert words in found.headline
    assert any("always answering the largest class gets 71.0%" in s for s in found.sentences)
    (alike,) = [one for one in found.sentences if "Each class counted alike" in one]
    assert "with this encoder, " in alike  # which may be the start


def test_equal_classes_are_not_called_unequal() -> None:
    found = judge([], evaluation(gains()))
    assert not any("unequal" in sentence for sentence in found.sentences)


def test_one_class_tells_nothing() -> None:
    found = judge([], evaluation(gains(), measured_classes=1, largest_class=1.0))
    assert "are of one class" in found.headline


def test_fewer_labelled_images_than_neighbours_are_told_of() -> None:
    few = judge([], evaluation(gains(), train_images=12, knn_neighbours=12))
    assert any("12 labelled images of 4 classes and all of them vote" in s for s in few.sentences)
    assert not any("vote" in s for s in judge([], evaluation(gains())).sentences)


def test_the_table_marks_the_best_of_each_column() -> None:
    found = unequal(gains(start=BETTER, pixels=WORSE), gains(start=UNSURE))
    table = result_table(found)
    assert table is not None
    assert table.columns == ("kNN", "kNN, mean per class")
    assert [name for name, _ in table.rows] == [
        "trained encoder", "start weights", "untrained encoder", "raw pixels"
    ]  # fmt: skip
    assert [[cell.best for cell in cells] for _, cells in table.rows] == [
        [False, True], [False, False], [False, False], [True, False]
    ]  # fmt: skip
    assert table.rows[0][1][0].range == "58.0 to 62.0"
    assert table.largest == "71.0%"
    assert result_table(None) is None


def test_an_older_file_has_accuracies_only() -> None:
    old = {"knn": {"trained": 0.6, "untrained": 0.5, "pixels": 0.4}}
    found = compare(old | {"protocol": {"test_images": 1000}})
    assert found is not None
    assert found.beats("untrained")
    assert not found.is_unequal
    gain = found.deciding[0].gains["untrained"]
    # Of two independent shares: sqrt(0.6 x 0.4 / 1000 + 0.5 x 0.5 / 1000) = 0.02214.
    assert gain.error == pytest.approx(0.02214, abs=1e-5)
