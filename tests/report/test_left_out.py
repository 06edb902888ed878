"""What was found and is not used, as the page shows it."""

from pathlib import Path

from diptych.images.inventory import Skipped
from diptych.report.page import LeftOutTable, left_out_table, template


def written(folder: Path, *rows: str) -> Path:
    table = folder / "skipped.csv"
    table.write_text("\n".join(["part,name,reason,count", *rows]) + "\n", encoding="utf-8")
    return table


def test_many_of_one_kind_hide_no_other(tmp_path: Path) -> None:
    junk = [f"train,{number}.png,empty file,1" for number in range(60)]
    table = written(tmp_path, *junk, "val,1.png,empty file,1", "train,a.heic,.heic is no,7")
    assert left_out_table(table) == LeftOutTable(
        (
            Skipped("0.png", "empty file", "train", 60),
            Skipped("a.heic", ".heic is no", "train", 7),
            Skipped("1.png", "empty file", "val", 1),
        )
    )


def test_more_kinds_than_fit_are_counted(tmp_path: Path) -> None:
    found = left_out_table(written(tmp_path, *(f",{n}.png,reason {n},{n}" for n in range(1, 60))))
    assert found is not None
    assert (len(found.rows), found.more) == (50, 9)
    assert found.rows[0] == Skipped("59.png", "reason 59", "", 59)


def test_a_table_of_before_has_a_row_for_each(tmp_path: Path) -> None:
    table = tmp_path / "skipped.csv"
    table.write_text("name,reason\na.png,empty file\nb.png,empty file\n")
    assert left_out_table(table) == LeftOutTable((Skipped("a.png", "empty file", "", 2),))


def test_without_a_table_nothing_is_claimed(tmp_path: Path) -> None:
    assert left_out_table(tmp_path / "skipped.csv") is None
    assert left_out_table(written(tmp_path)) == LeftOutTable(())


def shown(table: Path) -> str:
    page = template("left_out.html.jinja").render(left_out=left_out_table(table))
    return " ".join(page.split())


def test_the_page_shows_part_name_reason_and_count(tmp_path: Path) -> None:
    assert "the run folder has no skipped.csv" in shown(tmp_path / "skipped.csv")
    assert "every file that was found is an image" in shown(written(tmp_path))
    page = shown(written(tmp_path, "val,<b>.png,empty file,1", "val,c.png,empty file,1234"))
    row = "<tr><td>val</td><td><code>&lt;b&gt;.png</code></td><td>empty file</td> <td>1,235</td>"
    assert row in page
    assert "more kinds" not in page
    page = shown(written(tmp_path, *(f",{n}.png,reason {n},{n}" for n in range(1, 60))))
    assert "<p>And 9 more kinds.</p>" in page
