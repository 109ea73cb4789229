"""Figure: time of one attention call against context length, both logarithmic."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.measurement import (
    Measurement,
    by_direction,
    by_series,
    direction_title,
    explain_conditions,
    read_measurements,
    timed,
)
from trisparse.report.prose import listed, plain
from trisparse.report.rows import Rows
from trisparse.report.series import draw_series, mark_failed, scale_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

READING = (
    "The time of one attention call against the length of the context; both axes are logarithmic and lower "
    "is better. Points are medians, bands reach from the fastest to the slowest sample."
)


def draw(rows: Rows) -> "Figure":
    """One panel per direction, one line per backend, a red cross for each case that failed its check."""
    cases = read_measurements(rows)
    directions = by_direction(cases)
    figure, panels = look.new_figure(len(directions), 3.2)
    for panel, (direction, some) in zip(panels, directions.items(), strict=True):
        draw_series(panel, some)
        look.context_axis(panel, [case.tokens for case in some])
        look.label_axes(panel, x="Context length (tokens)", title=direction_title(direction))
    scale_time(panels[0], cases, "Time per call (ms)")
    mark_failed(panels, list(directions.values()))
    look.legend(figure, panels)
    return figure


def tabulate(rows: Rows) -> Rows:
    """The medians as a small table: a row per direction and length, a column per backend, or `failed`."""
    cases = read_measurements(rows)
    table = []
    for direction, some in by_direction(cases).items():
        for tokens in sorted({case.tokens for case in some}):
            cells = {case.series: _time(case) for case in some if case.tokens == tokens}
            times = {name: cells.get(name, "not measured") for name in by_series(cases)}
            table.append({"direction": direction, "tokens": str(tokens), **times})
    return table


def _time(case: Measurement) -> str:
    return f"{plain(case.time.median)} ms" if case.time else "failed"


def explain(rows: Rows) -> str:
    """How to read the figure, and its times at the longest context."""
    directions = by_direction(timed(read_measurements(rows)))
    longest = [_at_longest(direction, cases) for direction, cases in directions.items()]
    return " ".join([READING, *longest, explain_conditions(rows)])


def _at_longest(direction: str, cases: Sequence[Measurement]) -> str:
    tokens = max(case.tokens for case in cases)
    times = [f"{_time(case)} with {case.series}" for case in cases if case.tokens == tokens]
    return f"At {tokens} tokens, {direction} takes {listed(times)}."
