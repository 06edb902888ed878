"""What `diptych detect` found, as the report page shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from diptych.errors import RunFolderError
from diptych.report.charts import detection_group, read_detection


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
