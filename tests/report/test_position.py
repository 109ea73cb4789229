"""The position figure: steps that span what they average."""

import pytest

from trisparse.report.position import draw, explain

from .rows import position_rows, written


def test_first_step_begins_at_zero_on_a_logarithmic_axis():
    axes = draw(position_rows()).axes[0]
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()][:3] == ["0", "256", "512"]


def test_even_steps_have_a_linear_axis():
    rows = [
        {"attention": "nsa", "position_start": str(512 * i), "position_end": str(512 * i + 512)}
        | {"bits_per_byte": "2", "bytes": "9"}
        for i in range(8)
    ]
    axes = draw(rows).axes[0]
    assert axes.get_xscale() == "linear"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1k", "2k", "3k", "4k"]


def test_last_value_is_written_out():
    assert "2.14" in written(draw(position_rows()))


def test_explanation_compares_start_and_end():
    words = explain(position_rows())
    assert (
        "NSA falls: 3.15 bits per byte at tokens 0 to 256, 2.14 bits per byte at tokens 8192 to 16384."
        in words
    )
    assert "at least 3072 bytes" in words


def test_positions_must_be_in_order():
    with pytest.raises(
        ValueError, match=r"^rows: expected 0 <= position_start < position_end, got 256 and 256$"
    ):
        draw([position_rows()[0] | {"position_start": "256"}])
