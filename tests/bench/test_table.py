"""The CSV file keeps what it has."""

import datetime
from pathlib import Path

import pytest

from trisparse.bench.table import append_rows, environment
from trisparse.report.measurement import ATTENTION_COLUMNS as COLUMNS
from trisparse.report.rows import read_rows


def row(case: str) -> dict[str, str]:
    return dict.fromkeys(COLUMNS, "1, or 2") | {"case": case}


def test_append_keeps_the_old_rows(tmp_path: Path):
    """Hours of measuring must not be lost to one more row."""
    path = tmp_path / "results" / "attention.csv"
    append_rows(path, [row("a")])
    before = path.read_bytes()
    append_rows(path, [row("b"), row("c")])
    assert path.read_bytes().startswith(before)
    assert read_rows(path) == [row("a"), row("b"), row("c")]
    assert [file.name for file in path.parent.iterdir()] == ["attention.csv"]


def test_file_without_a_last_newline_gets_one(tmp_path: Path):
    """An editor may drop it; two rows would become one line."""
    path = tmp_path / "attention.csv"
    append_rows(path, [row("a")])
    path.write_text(path.read_text().rstrip("\n"))
    append_rows(path, [row("b")])
    assert read_rows(path) == [row("a"), row("b")]


@pytest.mark.parametrize("text", ["loss,step\n1,2\n", ",".join(COLUMNS) + "\na,b\n"])
def test_other_table_or_cut_off_row_is_refused_and_untouched(tmp_path: Path, text: str):
    """Rows under a foreign header would be read as other columns."""
    path = tmp_path / "attention.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match="path: expected"):
        append_rows(path, [row("a")])
    assert path.read_text() == text


def test_row_with_other_columns_is_refused(tmp_path: Path):
    """Values are written by position: a column missing or moved shifts all that follow."""
    path = tmp_path / "attention.csv"
    with pytest.raises(ValueError, match="rows: expected columns"):
        append_rows(path, [dict(reversed(row("a").items()))])
    assert not path.exists()


def test_environment_fills_its_columns():
    """A time without its machine, versions and date says nothing."""
    facts = environment()
    assert list(facts) == ["device", "threads", "cpu_flags", "torch", "trisparse", "commit", "date"]
    assert facts["device"] and facts["torch"] and facts["commit"] and int(facts["threads"]) > 0
    datetime.date.fromisoformat(facts["date"])
