"""The findings on the pages of docs/studies follow from the tables beside them."""

import re
from pathlib import Path

import pytest

from diptych.studies.cell_results import StudyResults, from_table
from diptych.studies.study import Study, judge_claim
from diptych.studies.study_run import STUDIES

PAGES = Path(__file__).parents[2] / "docs" / "studies"


@pytest.mark.parametrize("study", STUDIES.values(), ids=STUDIES.keys())
def test_the_page_says_what_its_table_gives(study: Study) -> None:
    page = (PAGES / study.name / "index.md").read_text()
    command = re.search(r"--epochs (\d+)", page)
    assert command is not None
    rows = from_table((PAGES / study.name / "table.csv").read_text())
    found = StudyResults(rows, int(command[1]))

    said = [judge_claim(claim, found).sentence() for claim in study.claims(found)]

    assert said
    assert [sentence for sentence in said if f"- {sentence}\n" not in page] == []
