"""Reading a CSV file: every fault is named with the file that has it."""

from pathlib import Path

import pytest

from trisparse.report.rows import distinct, integer, number, read_rows, require_unique


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_rows_come_as_strings(tmp_path: Path):
    path = write(tmp_path / "a.csv", 'name,time\nfull,1.50\n"a, b",2\n')
    assert read_rows(path) == [{"name": "full", "time": "1.50"}, {"name": "a, b", "time": "2"}]


def test_missing_file_is_named(tmp_path: Path):
    with pytest.raises(
        FileNotFoundError, match=r"^path: expected a CSV file, got .*none\.csv, which does not exist"
    ):
        read_rows(tmp_path / "none.csv")


@pytest.mark.parametrize("text", ["", "name,time\n", "\n\n"])
def test_file_without_rows_is_refused(tmp_path: Path, text: str):
    with pytest.raises(ValueError, match=r"^path: expected a header and at least one row in .*a\.csv"):
        read_rows(write(tmp_path / "a.csv", text))


def test_row_that_was_cut_off_is_refused(tmp_path: Path):
    """A benchmark that was stopped leaves half a row, which must not be read as an empty time."""
    path = write(tmp_path / "a.csv", "name,time\nfull,1\nnsa\n")
    with pytest.raises(ValueError, match=r"^path: expected 2 fields in row 3 of .*a\.csv, got 1"):
        read_rows(path)


@pytest.mark.parametrize("value", ["", "nan", "inf", "fast"])
def test_number_must_be_finite(value: str):
    with pytest.raises(ValueError, match=r"^rows: expected a finite number in column time, got"):
        number({"time": value}, "time")


def test_integer_takes_no_fraction():
    assert integer({"tokens": "4096.0"}, "tokens") == 4096
    with pytest.raises(ValueError, match=r"^rows: expected a whole number in column tokens, got '1\.5'$"):
        integer({"tokens": "1.5"}, "tokens")


def test_distinct_keeps_the_order():
    assert distinct(["b", "a", "b"]) == ["b", "a"]


def test_two_runs_in_one_table_are_refused():
    """Their mean, or whichever comes last, is a number that no run has."""
    rows = [{"layer": "0", "head": head, "mean": "0.5"} for head in "01"]
    require_unique(rows, ["layer", "head"])
    with pytest.raises(ValueError, match=r"^rows: expected one row per layer, head, got two for 0, 1; keep"):
        require_unique([*rows, rows[1] | {"mean": "0.6"}], ["layer", "head"])
