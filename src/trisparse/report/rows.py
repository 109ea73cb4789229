"""Rows of a CSV file, and the checks that every figure makes before it trusts them."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from trisparse.files import write_whole

Rows = list[dict[str, str]]


def read_rows(path: Path | str) -> Rows:
    """The rows of a CSV file with a header, as strings.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no header, no row below it, or a row with more or fewer fields than the header.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a CSV file, got {path}, which does not exist; measure first")
    with path.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.reader(file) if line]
    if len(lines) < 2:
        raise ValueError(f"path: expected a header and at least one row in {path}, got {len(lines)} lines")
    header = lines[0]
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(header):
            raise ValueError(
                f"path: expected {len(header)} fields in row {number} of {path}, got {len(line)}; "
                "a measurement that was cut off leaves such a row: remove it"
            )
    return [dict(zip(header, line, strict=True)) for line in lines[1:]]


def write_rows(path: Path | str, rows: Rows) -> None:
    """Write a CSV file whole or not at all; the first row's keys are its header.

    Raises:
        ValueError: no rows, or rows with different columns.
    """
    if not rows:
        raise ValueError(f"rows: expected at least one row for {path}, got none")
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        if row.keys() != rows[0].keys():
            raise ValueError(f"rows: expected columns {', '.join(rows[0])}, got {', '.join(row)}")
        writer.writerow(row)
    write_whole(Path(path), text.getvalue().encode("utf-8"))


def require_columns(rows: Rows, columns: Sequence[str]) -> None:
    """Raise ValueError unless there are rows and each has all `columns`."""
    wanted = f"rows: expected columns {', '.join(columns)}"
    if not rows:
        raise ValueError(f"{wanted}, got an empty table; measure first")
    for row in rows:
        missing = [column for column in columns if column not in row]
        if missing:
            raise ValueError(f"{wanted}, got {', '.join(row)}; add {', '.join(missing)}")


def require_unique(rows: Rows, columns: Sequence[str]) -> None:
    """Raise ValueError if two rows agree in all `columns`: two runs in one table would be drawn as one."""
    seen = set()
    for row in rows:
        key = tuple(row[column] for column in columns)
        if key in seen:
            raise ValueError(
                f"rows: expected one row per {', '.join(columns)}, got two for {', '.join(key)}; "
                "keep the rows of one run"
            )
        seen.add(key)


def number(row: dict[str, str], column: str) -> float:
    """A finite number; a diverged run is an error here, not a hole in a line."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"rows: expected a finite number in column {column}, got {row[column]!r}")
    return value


def integer(row: dict[str, str], column: str) -> int:
    """A whole number, `4096` and `4096.0` alike."""
    value = number(row, column)
    if value != int(value):
        raise ValueError(f"rows: expected a whole number in column {column}, got {row[column]!r}")
    return int(value)


def distinct(values: Iterable[str]) -> list[str]:
    """The different values in the order in which they first come."""
    return list(dict.fromkeys(values))
