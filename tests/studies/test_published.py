"""The pages of docs/studies follow from the tables beside them."""

import math
import re
import shlex
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diptych.studies.cell_results import CellResult, StudyResults, from_table
from diptych.studies.study import Study, judge_claim
from diptych.studies.study_page import describe, to_markdown
from diptych.studies.study_run import STUDIES, StudyRun, study_run

PAGES = Path(__file__).parents[2] / "docs" / "studies"
SPLIT = re.compile(r"- (Fitted on|On images not recorded)")
"""Lines that say on which images runs were measured, which a table does not."""

ONE_OF = {"collapse": "alarm", "transformations": "rotation_h"}
"""Of the columns that a measure gives, where they are not named as it is."""


def published(study: Study) -> tuple[StudyRun, StudyResults]:
    """The study that a page is of, by its command, and its table with the settings of each run."""
    page = (PAGES / study.name / "index.md").read_text()
    command = re.search(r"^    diptych study .*$", page, re.MULTILINE)
    assert command is not None
    words = shlex.split(command[0])
    given = dict(zip(words[3::2], words[4::2], strict=True))
    plan = study_run(
        study,
        data=given["--data"],
        out=Path(given["--out"]),
        images=int(given["--images"]),
        epochs=int(given["--epochs"]),
        seeds=int(given["--seeds"]),
        threads=int(given["--threads"]),
    )
    return plan, StudyResults(_with_settings(plan), plan.budget.epochs)


def _with_settings(plan: StudyRun) -> Iterator[CellResult]:
    runs = {(run.cell.name, run.seed): run for run in plan.cell_runs()}
    for row in from_table((PAGES / plan.study.name / "table.csv").read_text()):
        run = runs[row.cell, row.seed]
        assert row.command == run.command  # so that its settings are those of the run
        measured = [name for name in run.measures if ONE_OF.get(name, name) in row.measures]
        protocol = {"knn_neighbours": 20, "knn_temperature": 0.07, "measures": measured}
        yield replace(row, settings=run.settings, protocol=protocol)


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_the_page_says_what_its_table_gives(study: Study) -> None:
    page = (PAGES / study.name / "index.md").read_text()
    _, found = published(study)

    said = [judge_claim(claim, found).sentence() for claim in study.claims(found)]

    assert said
    assert [sentence for sentence in said if f"- {sentence}\n" not in page] == []


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_the_page_is_the_one_that_is_written_today(study: Study) -> None:
    page = (PAGES / study.name / "index.md").read_text().splitlines()
    plan, found = published(study)

    written = to_markdown(describe(plan, found)).splitlines()

    assert [line for line in page if not SPLIT.match(line)] == [
        line for line in written if not SPLIT.match(line)
    ]


def test_what_is_known_of_batches_of_as_many_steps_follows_from_the_table() -> None:
    """One slope for each number of steps, their levels left free, by least squares."""
    table = (PAGES / "batch" / "table.csv").read_text()
    cells = {f"batch-{size}-epochs-{epochs}": (size, epochs)
             for size in (64, 128, 256, 512) for epochs in (2, 4, 8)}  # fmt: skip
    rows = [(*cells[row.cell], 100 * row.measures["knn"])
            for row in from_table(table) if row.cell in cells]  # fmt: skip

    def slope(level_of: Callable[[int, int], int], wanted: set[int]) -> float:
        some = [(level_of(size, epochs), math.log2(size), knn) for size, epochs, knn in rows]
        some = [one for one in some if one[0] in wanted]
        levels = sorted({one[0] for one in some})
        design = np.array([[x, *(level == one for one in levels)] for level, x, _ in some])
        return float(np.linalg.lstsq(design, np.array([knn for *_, knn in some]))[0][0])

    as_many_steps = slope(lambda size, epochs: epochs * 512 // size, {2, 4, 8, 16, 32})
    in_eight_epochs = slope(lambda size, epochs: epochs, {8})

    page = (PAGES / "batch" / "index.md").read_text()
    assert f"they win by {as_many_steps:.1f} points per doubling" in page
    assert f"they still lose {-in_eight_epochs:.1f} (" in page
