"""The pages of docs/studies follow from the tables beside them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

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
