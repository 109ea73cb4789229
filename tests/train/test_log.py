"""The log: what a line holds, and what is left of it after a resume."""

import json
import math
from pathlib import Path

import pytest

from trisparse.report.loss import COLUMNS
from trisparse.train.log import LineFile, log_line, loss_rows, read_log, truncate_log


def write(path: Path) -> bytes:
    with LineFile(path) as log:
        for step in (1, 2, 3):
            log.add(log_line("train", step, 64 * step, math.log(2) * 8, 1e-3, 0.5))
        log.add(log_line("heldout", 3, 192, math.log(2) * 7))
    return path.read_bytes()


def test_lines_hold_the_loss_in_nats_and_bits(tmp_path: Path) -> None:
    """Guards the unit: a loss of ln 2 nats is one bit."""
    write(tmp_path / "log.jsonl")
    first, *_, last = read_log(tmp_path / "log.jsonl")
    assert first == {
        "split": "train",
        "step": 1,
        "tokens": 64,
        "loss": math.log(2) * 8,
        "bits_per_byte": 8.0,
        "learning_rate": 1e-3,
        "grad_norm": 0.5,
    }
    assert (last["split"], last["bits_per_byte"], last["grad_norm"]) == ("heldout", 7.0, None)


def test_each_line_is_on_its_way_at_once(tmp_path: Path) -> None:
    """Guards what a killed run leaves: all finished steps, not those that filled a buffer."""
    with LineFile(tmp_path / "log.jsonl") as log:
        log.add(log_line("train", 1, 64, 5.0))
        assert len(read_log(tmp_path / "log.jsonl")) == 1


def test_truncation_keeps_the_bytes_up_to_the_step(tmp_path: Path) -> None:
    """Guards the log of a resumed run, also against half a line at the end."""
    path = tmp_path / "log.jsonl"
    whole = write(path)
    path.write_bytes(whole + b'{"split": "train", "st')
    truncate_log(path, 3)
    assert path.read_bytes() == whole
    truncate_log(path, 2)
    assert path.read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    truncate_log(path, 0)
    assert path.read_bytes() == b""


def test_truncation_of_no_log_makes_none(tmp_path: Path) -> None:
    """Guards a timing file that somebody removed."""
    truncate_log(tmp_path / "timing.jsonl", 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["not json", "[1]", json.dumps({"split": "train"})])
def test_broken_line_is_named(tmp_path: Path, line: str) -> None:
    """Guards against a figure of half a run, and a resume that a line of later steps stands in the way of."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(
        ValueError, match=r"^log: expected a JSON object with a step in line 2 of '.*log\.jsonl', got none$"
    ):
        read_log(path)
    truncate_log(path, 5)
    assert path.read_text() == '{"step": 1}\n'


def test_rows_fit_the_loss_figure(tmp_path: Path) -> None:
    """Guards the way from a run to its curve; the figure refuses a row without one of its columns."""
    write(tmp_path / "log.jsonl")
    rows = loss_rows(tmp_path, "first", "nsa")
    assert [list(row) for row in rows] == [COLUMNS] * 4
    assert list(rows[-1].values()) == ["first", "nsa", "heldout", "3", "192", "7.0"]


def test_rows_without_a_log_are_refused(tmp_path: Path) -> None:
    """Guards against an empty curve for a folder misspelled."""
    with pytest.raises(ValueError, match=r"^log: cannot read '.*log\.jsonl': No such file"):
        loss_rows(tmp_path, "first", "nsa")
