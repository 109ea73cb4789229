"""The needle figure: the usual colours, the mean in the title, no score where nothing was measured."""

import numpy
import pytest
from matplotlib.colors import to_hex

from trisparse.report.needle import draw, explain

from .rows import needle_rows, written


def test_mean_stands_in_the_title():
    figure = draw(needle_rows())
    titles = [axes.get_title(loc="left") for axes in figure.axes[:2]]
    assert titles == ["NSA: mean 0.89", "Full attention: mean 0.65"]


def test_colours_are_those_of_other_needle_plots():
    mesh = draw(needle_rows()).axes[0].collections[0]
    ends = [to_hex(mesh.get_cmap()(score)).upper() for score in (0.0, 1.0)]
    assert ends == ["#F0496E", "#0CD79F"]


def test_unmeasured_cell_is_no_zero():
    cells = draw(needle_rows()[1:]).axes[0].collections[0].get_array()
    assert numpy.ma.count_masked(cells) == 1


def test_scores_are_written_while_they_fit():
    """Red and green are one colour to some readers: the number must tell them apart."""
    assert "0.95" in written(draw(needle_rows()))


def test_explanation_names_the_longest_context_and_the_worst():
    words = explain(needle_rows())
    assert "Samples per cell: 20." in words
    assert (
        "Full attention scores 0.65 on average and 0.32 at 16384 tokens; its lowest score is 0 (6 of 55"
        in words
    )


def test_score_above_one_is_refused():
    with pytest.raises(ValueError, match=r"^rows: expected a score from 0 to 1, got 95$"):
        draw([needle_rows()[0] | {"score": "95"}])
