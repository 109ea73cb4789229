"""Figure: how many times as fast as full attention each backend is, against context length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.measurement import (
    Measurement,
    by_direction,
    by_series,
    direction_title,
    explain_conditions,
    place_of,
    read_measurements,
    speedups,
    timed,
    unpaired,
)
from trisparse.report.palette import BACKENDS, identity
from trisparse.report.prose import listed, plain
from trisparse.report.rows import Rows
from trisparse.report.series import draw_series, mark_failed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

READING = (
    "The time of full attention (PyTorch's scaled_dot_product_attention) divided by the time of each backend "
    "at the same length and setting, from medians; above the dashed line a backend is faster. Bands set the "
    "slowest sample of one against the fastest of the other."
)


def draw(rows: Rows) -> "Figure":
    """One panel per direction, one line per backend with its last value written out, a dashed line at 1×.

    Raises:
        ValueError: as `read_measurements`, or no case has full attention of the same setting beside it.
    """
    cases = read_measurements(rows)
    directions = by_direction(_require_speedups(rows))
    figure, panels = look.new_figure(len(directions), 3.2)
    for panel, (direction, some) in zip(panels, directions.items(), strict=True):
        _draw_direction(panel, some)
        look.label_axes(panel, x="Context length (tokens)", title=direction_title(direction))
    _scale_ratio(panels[0], speedups(cases))
    # of all cases: full attention may be the one that failed
    mark_failed(panels, [by_direction(cases)[direction] for direction in directions])
    look.legend(figure, panels)
    for panel, some in zip(panels, directions.values(), strict=True):
        look.label_ends(panel, [_end_label(line) for line in by_series(timed(some)).values()])
    return figure


def _require_speedups(rows: Rows) -> list[Measurement]:
    cases = speedups(read_measurements(rows))
    if not cases:
        raise ValueError(
            "rows: expected backend sdpa and another of the same direction, tokens and setting, got no such "
            "pair; measure full attention too"
        )
    return cases


def _draw_direction(axes: "Axes", cases: Sequence[Measurement]) -> None:
    draw_series(axes, cases)
    baseline = BACKENDS["sdpa"]
    axes.axhline(
        1, color=baseline.colour, linewidth=1, linestyle=look.DASHED, label=f"{baseline.name} = 1×", zorder=1
    )
    look.context_axis(axes, [case.tokens for case in cases])


def _scale_ratio(axes: "Axes", cases: Sequence[Measurement]) -> None:
    ratios = [case.time for case in cases if case.time]
    low = min([ratio.minimum for ratio in ratios] + [0.8])
    high = max([ratio.maximum for ratio in ratios] + [1.25])
    look.plain_log_axis(axes, low / 1.15, high * 1.15, suffix="×")
    axes.set_ylabel("Speed relative to full attention", fontsize=look.BODY, color=look.INK)


def _end_label(line: Sequence[Measurement]) -> look.EndLabel:
    last = line[-1]
    colour = identity(BACKENDS, last.backend).colour
    return look.EndLabel(x=last.tokens, y=_median(last), text=f"{plain(_median(last))}×", colour=colour)


def _median(case: Measurement) -> float:
    assert case.time is not None
    return case.time.median


def explain(rows: Rows) -> str:
    """How to read the figure, the last speedup of each line, and from where on it is ahead."""
    directions = by_direction(timed(_require_speedups(rows)))
    verdicts = [_verdict(direction, cases) for direction, cases in directions.items()]
    return " ".join([READING, *verdicts, *_explain_unpaired(rows), explain_conditions(rows)])


def _verdict(direction: str, cases: Sequence[Measurement]) -> str:
    lines = by_series(cases)
    values = [f"{name} is at {plain(_median(line[-1]))}× ({_ahead(line)})" for name, line in lines.items()]
    lengths = sorted({line[-1].tokens for line in lines.values()})
    if len(lengths) == 1:
        return f"{direction_title(direction)}, at {lengths[0]} tokens: {listed(values)}."
    ends = [
        f"{value}, at {line[-1].tokens} tokens" for value, line in zip(values, lines.values(), strict=True)
    ]
    return f"{direction_title(direction)}: {'; '.join(ends)}."


def _ahead(line: Sequence[Measurement]) -> str:
    behind = [case.tokens for case in line if _median(case) <= 1]
    if not behind:
        return "ahead at every length measured"
    if len(behind) == len(line):
        return "behind at every length measured"
    ahead = [case.tokens for case in line if case.tokens > behind[-1]]
    return f"ahead from {ahead[0]} tokens on" if ahead else "behind at the longest"


def _explain_unpaired(rows: Rows) -> list[str]:
    alone = [place_of(case) for case in unpaired(read_measurements(rows))]
    return [f"Not drawn, for want of full attention beside it: {'; '.join(alone)}."] if alone else []
