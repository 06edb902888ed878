"""How often a verdict is wrong: counted over a population made by hand."""

from pathlib import Path
from typing import Any

import pytest
from verdict_calibration import (
    as_markdown,
    calibrate,
    figures_of,
    judged,
    of_studies,
    read_studies,
)

HEALTH = {"effective_rank": 20.0, "stability": 0.1, "pixel_stability": 0.1}


def metrics(stability: float) -> list[dict[str, Any]]:
    task = {"pretext_accuracy": 0.5, "chance_pretext_accuracy": 0.01, "loss": 1.0, "epoch": 9}
    return [
        {"step": step, **task, **HEALTH, "stability": one}
        for step, one in ((1, 0.1), (900, stability))
    ]


def figures(trained: float, untrained: float, pixels: float) -> Any:
    knn = {"trained": trained, "untrained": untrained, "pixels": pixels}
    return {"knn": knn, "protocol": {"test_images": 10_000, "classes": 10}}


def test_what_is_said_is_held_against_other_images() -> None:
    good, bad = figures(0.6, 0.4, 0.5), figures(0.3, 0.4, 0.5)
    middling = figures(0.45, 0.4, 0.5)
    rows = calibrate(
        [
            judged("one", metrics(0.3), good, good),  # rightly learned and healthy
            judged("one", metrics(0.3), good, bad),  # wrongly both
            judged("one", metrics(0.3), good, middling),  # better than it began, not than pixels
            judged("one", metrics(0.1), bad, bad),  # neither is said
            judged("two", metrics(0.3), None, good),  # without a verdict with labels
        ]
    )
    one, two = rows
    assert one == ("one", 4, 2, 3, 1, 2, 3, 1, 2)
    assert two == ("two", 1, 1, 0, 0, 0, 1, 0, 0)
    values = {figure.name: figure.value for figure in figures_of(rows)}
    assert values['"learned" of an encoder no better than it began'] == pytest.approx(1 / 3)
    assert values['"healthy" of an encoder no better than it began or raw pixels'] == 0.5
    assert as_markdown(rows).splitlines()[2] == "| one | 4 | 2 | 3 | 1 | 2 | 3 | 1 | 2 |"


def test_cells_are_read_from_the_tables_of_studies(tmp_path: Path) -> None:
    head = "study,cell,seed,knn,pretext,effective_rank,untrained,command\n"
    command = (
        "diptych pretrain cifar10 --recipe simclr --scale tiny --images.limit 10000 --epochs 7 "
        "--no-report --resume"
    )
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "table.csv").write_text(
        f"{head}s,a,0,0.4,0.5,30.0,0.3,{command}\ns,b,0,0.2,0.5,30.0,,{command}\ns,c,0,,,,,\n"
    )
    found = list(of_studies(read_studies(tmp_path), {10_000: 0.35}))
    # 78 batches of the recipe's 128 an epoch are 546 steps, which is enough.
    assert [(one.healthy, one.gained, one.useful) for one in found] == [
        (True, True, True),
        (True, False, False),
    ]


def test_cells_that_are_left_out_are_told_with_the_reason(tmp_path: Path) -> None:
    command = "diptych pretrain cifar10 --recipe simclr --scale tiny --images.limit 5000 --epochs 1"
    head = "study,cell,seed,knn,pretext,effective_rank,untrained,command\n"
    for name, untrained in (("with", "0.3"), ("without", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.csv").write_text(
            f"{head}{name},a,0,0.4,0.5,30.0,{untrained},{command}\n{name},b,0,,,,,{command}\n"
        )

    studies = read_studies(tmp_path)

    assert [study.left_out for study in studies] == [
        "Left out: 1 cell of with, without a result.",
        "Left out: 2 cells of without, its untrained encoder was not measured.",
    ]
    assert len(list(of_studies(studies, {}))) == 1
