"""The gate figure: means as they are, never scaled to sum to 1."""

import pytest

from trisparse.report.gates import draw, explain

from .rows import gate_rows, written

ONE = [
    {"layer": "0", "head": str(head), "branch": "window", "mean": mean}
    for head, mean in enumerate(("0.9", "0.8"))
]


def test_bars_are_means_over_heads_and_dots_are_heads():
    axes = draw(ONE).axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([0.85])
    assert [list(line.get_ydata()) for line in axes.get_lines()] == [[0.9, 0.8]]


def test_axis_spans_the_whole_gate():
    assert draw(gate_rows()).axes[0].get_ylim() == (0, 1)


def test_branches_are_named():
    words = written(draw(gate_rows(30, 16)))
    assert all(branch in words for branch in ("compressed", "selected", "window"))


def test_explanation_names_the_layers_that_differ_most():
    words = explain(gate_rows())
    assert "need not sum to 1" in words
    assert "selected 0.51 (from 0.30 in layer 0 to 0.70 in layer 5)" in words
    assert explain(ONE).endswith("Means over all layers and heads: window 0.85.")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"branch": "global"}, "expected branch compressed, selected, window, got 'global'"),
        ({"mean": "1.5"}, "0 to 1, got 1.5"),
    ],
)
def test_unknown_branch_and_impossible_gate_are_refused(wrong: dict[str, str], words: str):
    with pytest.raises(ValueError, match=rf"^rows: .*{words}$"):
        draw([ONE[0] | wrong])
