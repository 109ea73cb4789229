"""The speedup figure: ratios only where both times exist, and what failed stays in sight."""

import pytest

from trisparse.report.speedup import draw, explain

from .rows import attention_row, attention_rows, written


def test_last_value_of_each_line_is_written_out():
    words = written(draw(attention_rows()))
    assert "6.00×" in words
    assert "2.32×" in words
    assert "full attention (SDPA) = 1×" in words


def test_failed_full_attention_is_named_rather_than_the_case_beside_it():
    rows = [row for row in attention_rows() if row["direction"] == "forward"]
    rows = [row for row in rows if (row["backend"], row["tokens"]) != ("sdpa", "16384")]
    words = written(draw([*rows, attention_row("sdpa", "forward", 16384, gate="fail")]))
    assert "full attention (SDPA) failed" in words
    assert "NSA (cpu) failed" not in words


def test_full_attention_is_needed():
    with pytest.raises(
        ValueError, match=r"^rows: expected backend sdpa and another .*; measure full attention too$"
    ):
        draw(attention_rows(("cpu", "torch")))


def test_explanation_says_from_where_on_it_is_ahead():
    words = explain(attention_rows(("sdpa", "cpu", "reference")))
    assert "NSA (cpu) is at 6.00× (ahead from 4096 tokens on), at 16384 tokens" in words
    assert "NSA (reference) is at 0.125× (behind at every length measured), at 4096 tokens" in words


def test_explanation_names_what_has_no_partner():
    words = explain([*attention_rows(), attention_row("cpu", "forward", 32768)])
    assert "for want of full attention beside it: NSA (cpu), forward at 32768 tokens." in words
