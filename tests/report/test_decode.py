"""The decode figure: a panel per batch size, ratios against the right partner, failures in sight."""

import pytest

from trisparse.report.decode import draw, explain

from .rows import decode_row, decode_rows, written


def test_a_panel_per_batch_size_and_a_line_per_backend():
    """Panels in the order of the table, 1, 16, 4, would be read wrongly."""
    figure = draw(decode_rows((16, 1, 4)))
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Batch 1", "Batch 4", "Batch 16"]
    names = [line.get_label() for line in figure.axes[0].get_lines()]
    assert names == ["full attention (SDPA)", "full attention (our kernels)", "NSA (cpu)"]


def test_last_speedup_of_each_line_is_written_out():
    """0.4 ms against 8 ms of SDPA and 1.6 ms of our own full attention."""
    words = written(draw(decode_rows((1,))))
    assert "20.0×" in words
    assert "5.00×" in words
    assert "4.00×" not in words


def test_explanation_sets_nsa_against_both():
    """The ratio to SDPA alone would credit NSA with what SDPA leaves undone."""
    words = explain(decode_rows())
    assert "Batch 16, 16384 tokens: 128 ms with full attention (SDPA)" in words
    assert "0.400 ms with NSA (cpu) (20.0× as fast as sdpa and 4.00× as fast as dense)" in words


def test_ragged_rows_are_told_and_not_drawn():
    """Their context length is that of the longest row only: no point on this axis."""
    ragged = [
        decode_row(name, 32768, 4, direction="ragged decode", case="ragged")
        for name in ("sdpa", "dense", "cpu")
    ]
    rows = [*decode_rows((4,)), *ragged]
    assert "Rows of different length, batch 4, 32768 tokens:" in explain(rows)
    assert "32k" not in written(draw(rows))
    with pytest.raises(ValueError, match=r"^rows: expected direction decode, got none of it"):
        draw(ragged)


def test_failed_case_is_marked_and_has_no_ratio():
    """The speed of a wrong result is no speed."""
    rows = [*decode_rows((1,))[:-1], decode_row("cpu", 16384, gate="fail")]
    words = written(draw(rows))
    assert "NSA (cpu) failed" in words
    assert "20.0×" not in words
    assert "NSA (cpu), decode at 16384 tokens" in explain(rows)


def test_two_kinds_of_step_in_one_table_are_refused():
    """One new token and four of them in one line would be a line about nothing."""
    rows = [decode_row("cpu", 1024), decode_row("cpu", 1024, new_tokens="4", case="four")]
    with pytest.raises(ValueError, match=r"^rows: expected one case per"):
        draw(rows)
