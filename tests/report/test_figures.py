"""What every figure owes its reader: named axes, words that do not collide, errors that say what to do."""

import subprocess
import sys
from dataclasses import dataclass
from itertools import combinations
from types import ModuleType

import pytest

from trisparse.report import decode, gates, latency, loss, needle, position, selection, speedup
from trisparse.report.measurement import COLUMNS

from . import rows


@dataclass(frozen=True)
class Case:
    """A figure, rows that it can draw, the columns that it needs and one of them that holds numbers."""

    figure: ModuleType
    rows: rows.Rows
    columns: list[str]
    number: str


CASES = {
    "latency": Case(latency, rows.attention_rows(), COLUMNS, "median_ms"),
    "speedup": Case(speedup, rows.attention_rows(), COLUMNS, "median_ms"),
    "decode": Case(decode, rows.decode_rows(), decode.COLUMNS, "median_ms"),
    "loss": Case(loss, rows.loss_rows(), loss.COLUMNS, "bits_per_byte"),
    "position": Case(position, rows.position_rows(), position.COLUMNS, "bits_per_byte"),
    "needle": Case(needle, rows.needle_rows(), needle.COLUMNS, "score"),
    "selection": Case(selection, rows.selection_rows(), selection.COLUMNS, "share"),
    "gates": Case(gates, rows.gate_rows(), gates.COLUMNS, "mean"),
}
every_figure = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


@every_figure
def test_axes_are_named(case: Case):
    """A panel without a name on its axes says nothing."""
    panels = [axes for axes in case.figure.draw(case.rows).axes if axes.get_label() != "<colorbar>"]
    assert all(panel.get_xlabel() for panel in panels)
    assert panels[0].get_ylabel()


@every_figure
def test_words_do_not_collide(case: Case):
    """Labels that grow into each other are the commonest fault of a figure that is drawn from new data."""
    figure = case.figure.draw(case.rows)
    figure.draw_without_rendering()
    boxes = [(text.get_text(), text.get_window_extent()) for text in rows.words(figure)]
    pairs = combinations(boxes, 2)
    assert [(first, second) for (first, one), (second, two) in pairs if one.overlaps(two)] == []


@every_figure
def test_missing_column_is_named(case: Case):
    for column in case.columns:
        worse = [{name: value for name, value in row.items() if name != column} for row in case.rows]
        with pytest.raises(ValueError, match=rf"^rows: expected columns .*; add {column}$"):
            case.figure.draw(worse)


@every_figure
def test_empty_table_is_refused(case: Case):
    for make in (case.figure.draw, case.figure.explain):
        with pytest.raises(
            ValueError, match=r"^rows: expected columns .*, got an empty table; measure first$"
        ):
            make([])


@every_figure
def test_explanation_is_one_paragraph(case: Case):
    explanation = case.figure.explain(case.rows)
    assert "\n" not in explanation
    assert "  " not in explanation
    assert explanation.endswith(".")


@every_figure
def test_number_that_is_none_is_refused(case: Case):
    """A run that diverged must not become a hole in a line that nobody sees."""
    first, *others = case.rows
    with pytest.raises(
        ValueError, match=rf"^rows: expected a finite number in column {case.number}, got 'nan'$"
    ):
        case.figure.draw([first | {case.number: "nan"}, *others])


def test_matplotlib_is_imported_late_and_pyplot_never():
    """`import trisparse` must work without matplotlib, and a figure must not touch a user's open figures."""
    program = """
import sys
from trisparse.report import decode, gates, latency, loss, needle, page, position, selection, speedup
assert "matplotlib" not in sys.modules
gates.draw([{"layer": "0", "head": "0", "branch": "window", "mean": "0.5"}])
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
