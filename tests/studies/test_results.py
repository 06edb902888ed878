"""StudyResults in files and tables come back as they were, and a hostile file is refused."""

from pathlib import Path

import pytest

from diptych.errors import RunFolderError
from diptych.studies.cell_results import (
    RESULT_NAME,
    StudyResults,
    from_table,
    read_result,
    to_table,
    write_result,
)
from studies.made_up import result


def test_a_table_comes_back_as_it_was() -> None:
    rows = [
        result("a+b", 0, knn=1 / 3, pretext=0.25),
        result("a+b", 1, knn=0.1 + 0.2, leak=-1e-9),
    ]
    assert from_table(to_table(rows)) == rows
    assert len(to_table(rows).splitlines()) == 3


def test_a_file_comes_back_as_it_was(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    write_result(tmp_path, result("a", 0, knn=0.5))
    assert read_result(tmp_path) == result("a", 0, knn=0.5)
    assert [one.name for one in tmp_path.iterdir()] == [RESULT_NAME]


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"cell": "a"}', '{"measures": 3}', "\x00"])
def test_a_file_that_is_no_result_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / RESULT_NAME).write_text(text)
    with pytest.raises(RunFolderError, match=r"result\.json is no result.*Delete it"):
        read_result(tmp_path)


def test_means_and_errors_are_over_seeds() -> None:
    found = StudyResults([result("a", s, knn=v) for s, v in ((1, 0.3), (0, 0.1), (2, 0.2))])
    assert found.values("a") == [0.1, 0.3, 0.2]
    assert found.mean("a") == pytest.approx(0.2)
    assert found.error("a") == pytest.approx(0.1 / 3**0.5)
    assert found.mean("b") is None
    assert StudyResults([result("a", 0, knn=1.0)]).error("a") is None
