"""Rows are on disk as soon as they are measured."""

from pathlib import Path

import pytest

from trisparse.cli.growing_table import row_keeper
from trisparse.report.rows import read_rows

COLUMNS = ["case", "time"]


def test_every_row_is_kept_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Guards against an hour of measuring that Ctrl-C throws away."""
    path = tmp_path / "rows.csv"
    keep = row_keeper(path, COLUMNS, lambda row: f"{row['case']}!")
    for number in range(3):
        keep({"case": "abc"[number], "time": str(number)})
        assert [row["case"] for row in read_rows(path)] == list("abc")[: number + 1]
    assert capsys.readouterr().err == "a!\nb!\nc!\n"


def test_another_table_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    """Guards against times that have no place to go to."""
    path = tmp_path / "rows.csv"
    path.write_text("loss,step\n1,2\n", encoding="utf-8")
    with pytest.raises(ValueError, match="^path: expected the header case, time"):
        row_keeper(path, COLUMNS, str)
    assert path.read_text(encoding="utf-8") == "loss,step\n1,2\n"


def test_kept_table_stays_as_it_is(tmp_path: Path) -> None:
    """Guards against a check that changes what it looks at."""
    path = tmp_path / "rows.csv"
    path.write_text("case,time\na,1\n", encoding="utf-8")
    row_keeper(path, COLUMNS, str)
    assert path.read_text(encoding="utf-8") == "case,time\na,1\n"
    row_keeper(None, COLUMNS, str)({"case": "b", "time": "2"})
