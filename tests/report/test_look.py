"""The parts of the shared look that can be wrong without looking wrong."""

import pytest

from trisparse.report.look import legend_columns, new_figure, plain_log_axis, spread
from trisparse.report.palette import ATTENTIONS, BACKENDS, BRANCHES, identity


def test_spread_leaves_distant_labels_alone():
    assert spread([0, 50, 20], 10) == [0, 50, 20]


@pytest.mark.parametrize("heights", [[5, 5, 5], [0, 4, 8, 30, 33], [9, 1, 8, 2], []])
def test_spread_keeps_the_order_and_the_gap(heights: list[float]):
    """Two labels that swap places name the wrong line."""
    placed = spread(heights, 10)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    stacked = [placed[index] for index in order]
    assert all(above - below >= 10 - 1e-9 for below, above in zip(stacked, stacked[1:], strict=False))
    assert sum(placed) == pytest.approx(sum(heights))


def test_legend_has_no_column_that_does_not_fit():
    assert legend_columns(["NSA", "full attention"]) == 2
    assert legend_columns(["x" * 60, "y" * 60]) == 1
    assert legend_columns(["x" * 20] * 5) == 3


@pytest.mark.parametrize("known", [BACKENDS, ATTENTIONS, BRANCHES])
def test_no_two_names_share_a_colour(known: dict):
    assert len({one.colour for one in known.values()}) == len(known)


def test_unknown_name_keeps_its_spelling():
    assert identity(BACKENDS, "moba").name == "moba"
    assert identity(BACKENDS, "moba") == identity(BACKENDS, "moba")


@pytest.mark.parametrize(("low", "high"), [(2.1, 4.9), (0.7, 1.4), (5.1, 9.8), (3, 400), (1, 80000)])
def test_logarithmic_axis_has_ticks_enough_and_not_too_many(low: float, high: float):
    _, (axes,) = new_figure(1, 3)
    plain_log_axis(axes, low, high)
    ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
    assert 2 <= len(ticks) <= 8
