"""The latency figure: the right times, and a failed case that nobody can overlook."""

import math

from trisparse.report.latency import draw, explain, tabulate
from trisparse.report.look import FAILED

from .rows import attention_row, attention_rows, written

FAILING = [*attention_rows(), attention_row("triton", "forward", 4096, gate="fail")]


def test_a_panel_per_direction_and_a_line_per_backend():
    figure = draw(attention_rows())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Forward", "Forward + backward"]
    names = [line.get_label() for line in figure.axes[0].get_lines()]
    assert names == ["full attention (SDPA)", "NSA (cpu)", "NSA (torch)"]


def test_failed_case_is_a_red_cross_with_its_name():
    figure = draw(FAILING)
    assert "NSA (triton) failed" in written(figure)
    (crosses,) = [line for line in figure.axes[0].get_lines() if line.get_marker() == "x"]
    assert (list(crosses.get_xdata()), crosses.get_color()) == ([4096], FAILED)


def test_failed_case_breaks_its_line():
    """A line drawn across a failed length would show a time that nobody measured."""
    rows = [row for row in attention_rows() if (row["backend"], row["tokens"]) != ("cpu", "4096")]
    rows += [attention_row("cpu", way, 4096, gate="fail") for way in ("forward", "forward+backward")]
    (line,) = [line for line in draw(rows).axes[0].get_lines() if line.get_label() == "NSA (cpu)"]
    assert [math.isnan(time) for time in line.get_ydata()] == [False, False, True, False, False]


def test_nothing_but_failures_still_draws():
    rows = [attention_row(backend, "forward", 1024, gate="fail") for backend in ("sdpa", "cpu")]
    assert "full attention (SDPA) failed" in written(draw(rows))
    assert "takes" not in explain(rows)


def test_table_says_failed_and_not_measured():
    table = tabulate(FAILING)
    row = next(row for row in table if (row["direction"], row["tokens"]) == ("forward", "4096"))
    assert row["NSA (triton)"] == "failed"
    assert row["NSA (cpu)"] == "80.0 ms"
    assert table[0]["NSA (triton)"] == "not measured"


def test_explanation_names_the_longest_context_and_the_failure():
    words = explain(FAILING)
    assert "At 16384 tokens, forward takes 1920 ms with full attention (SDPA), 320 ms with NSA (cpu)" in words
    assert "failed its correctness check and so has no time: NSA (triton), forward at 4096 tokens." in words
    assert "Every case passed its correctness check." in explain(attention_rows())
