"""What `diptych detect` found, as the report page shows it."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from diptych.errors import RunFolderError
from diptych.evaluation.confidence import accuracy_of, macro_auc
from diptych.evaluation.knn_and_linear import with_intervals
from diptych.report.charts import chart_groups, detection_group, print_tables, read_detection


def figure(value: float | None, half: float = 0.02) -> dict[str, float | None]:
    if value is None:
        return {"value": None, "low": None, "high": None}
    return {"value": value, "low": value - half, "high": value + half}


FOUND: dict[str, Any] = {
    "protocol": {
        "data": "some/where/cells",
        "train_images": 1205,
        "test_images": 72,
        "epochs": 12,
        "seeds": 3,
    },
    "backbones": {
        "pretrained": {"figures": {"mAP": figure(0.41), "AP50": figure(0.7), "RBC": figure(None)}},
        "untrained": {"figures": {"mAP": figure(0.38), "AP50": figure(0.75), "RBC": figure(None)}},
    },
    "difference": {"mAP": figure(0.03, 0.01), "AP50": figure(-0.05), "RBC": figure(None)},
}


def test_every_figure_has_both_backbones_and_their_difference() -> None:
    group = detection_group(FOUND)
    assert group.title == "Object detection: cells"
    assert "On images not recorded." in group.text
    split = {
        "words": "Fitted on 1,205 images and measured on 72 images that pretraining did not see."
    }
    assert split["words"] in detection_group({**FOUND, "split": split}).text
    assert "3 seeds" in group.text
    of_map, of_half = group.charts  # nothing is said of a class that no image has
    assert of_map.title.startswith("mAP")
    assert [(bar.key, bar.text, bar.range) for bar in of_map.bars] == [
        ("trained", "41.0%", "39.0 to 43.0"),
        ("untrained", "38.0%", "36.0 to 40.0"),
    ]
    assert of_map.gain == "+3.0 points over untrained ResNets (+2.0 to +4.0)"
    assert of_half.gain == "-5.0 points over untrained ResNets (-7.0 to -3.0)"


def test_a_class_is_called_by_its_name() -> None:
    found = json.loads(json.dumps(FOUND))
    for table in (*(one["figures"] for one in found["backbones"].values()), found["difference"]):
        table["RBC"] = figure(0.5)
    assert [chart.title for chart in detection_group(found).charts][-1] == "mAP of RBC"


def test_no_file_is_no_finding(tmp_path: Path) -> None:
    assert read_detection(tmp_path / "detection.json") is None


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"protocol": {"seeds": 1}}'])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "detection.json"
    path.write_text(text)
    with pytest.raises(RunFolderError, match=r"detection\.json.*again"):
        read_detection(path)


def test_a_figure_of_another_task_that_is_not_defined_is_left_out() -> None:
    """No ROC curve is of test images that are all of one class."""
    names, right = ("trained", "untrained"), np.ones(8, dtype=bool)
    scores = np.linspace(0, 1, 8)[:, None] * [1, -1]
    one_class = np.stack([right, ~right], axis=1)
    metrics = {
        "accuracy": with_intervals(dict.fromkeys(names, accuracy_of(right)), 8),
        "auc": with_intervals(dict.fromkeys(names, macro_auc(scores, one_class)), 8),
    }
    assert metrics["auc"]["intervals"]["trained"] == figure(None)
    task = {"labels": 2, "metrics": metrics}
    found = {"transfer": {"birds": {}}, "details": {"transfer": {"tasks": {"birds": task}}}}
    (group,) = chart_groups(found)
    assert [chart.title for chart in group.charts] == ["accuracy"]
    stream = io.StringIO()
    print_tables(Console(file=stream, width=200), found)
    assert "Transfer to birds" in stream.getvalue()
