"""Figure: time of one decode step against context length, both logarithmic, with the speed-ups reached."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from trisparse.report import look, measurement
from trisparse.report.measurement import (
    BASELINE,
    Measurement,
    by_series,
    explain_conditions,
    read_measurements,
    speedups,
    timed,
)
from trisparse.report.palette import BACKENDS, identity
from trisparse.report.prose import listed, plain
from trisparse.report.rows import Rows, integer, require_columns
from trisparse.report.series import draw_series, mark_failed, scale_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = [
    *measurement.COLUMNS,
    "form",
    "new_tokens",
    "caches",
    "tokens_read",
    "megabytes_read",
    "gigabytes_per_second",
    "copy_gigabytes_per_second",
    "read_gigabytes_per_second",
]
# full attention by our own kernels: what is left of a speed-up over it is due to reading less
DENSE = "dense"
EQUAL, RAGGED = "decode", "ragged decode"

READING = (
    "The time of one decode step, in which every row of a batch attends to its own cache, against the length "
    "of the context; both axes are logarithmic and lower is better. Points are medians, bands reach from the "
    "fastest to the slowest sample; at the end of each line stands how many times as fast it is as full "
    "attention (SDPA)."
)


def draw(rows: Rows) -> "Figure":
    """One panel per batch size, one line per backend with its last speed-up, a red cross for each failure.

    Rows of different length (ragged decode) are not drawn.

    Raises:
        ValueError: as `read_measurements`, or no row of equal lengths.
    """
    batches = list(_by_batch(rows, EQUAL).items())
    if not batches:
        raise ValueError(f"rows: expected direction {EQUAL}, got none of it; measure equal rows too")
    figure, panels = look.new_figure(len(batches), 3.4)
    for panel, (batch, cases) in zip(panels, batches, strict=True):
        draw_series(panel, cases)
        look.context_axis(panel, [case.tokens for case in cases])
        look.label_axes(panel, x="Context length (tokens)", title=f"Batch {batch}")
    scale_time(panels[0], [case for _, cases in batches for case in cases], "Time per step (ms)")
    mark_failed(panels, [cases for _, cases in batches])
    look.legend(figure, panels)
    for panel, (_, cases) in zip(panels, batches, strict=True):
        look.label_ends(panel, _end_labels(cases))
    return figure


def _by_batch(rows: Rows, direction: str) -> dict[int, list[Measurement]]:
    """The cases of each batch size, smallest first; read apart, so that no series has a batch in its name."""
    require_columns(rows, COLUMNS)
    some = [row for row in rows if row["direction"] == direction]
    batches = sorted({integer(row, "batch") for row in some})
    return {batch: read_measurements([r for r in some if integer(r, "batch") == batch]) for batch in batches}


def _end_labels(cases: Sequence[Measurement]) -> list[look.EndLabel]:
    """The speed-up at the last length of each line that has one, beside the line's last time."""
    ratios = {(case.series, case.tokens): case.time for case in speedups(cases)}
    labels = []
    for name, line in by_series(timed(cases)).items():
        last = line[-1]
        ratio = ratios.get((name, last.tokens))
        if last.time is not None and ratio is not None:
            colour = identity(BACKENDS, last.backend).colour
            text = f"{plain(ratio.median)}×"
            labels.append(look.EndLabel(x=last.tokens, y=last.time.median, text=text, colour=colour))
    return labels


def explain(rows: Rows) -> str:
    """How to read the figure, and the times at the longest context of each batch size."""
    require_columns(rows, COLUMNS)
    ends = [
        _at_longest(f"{start} {batch}", timed(cases))
        for direction, start in ((EQUAL, "Batch"), (RAGGED, "Rows of different length, batch"))
        for batch, cases in _by_batch(rows, direction).items()
    ]
    return " ".join([READING, *filter(None, ends), explain_conditions(rows)])


def _at_longest(start: str, cases: Sequence[Measurement]) -> str:
    if not cases:
        return ""
    tokens = max(case.tokens for case in cases)
    last = [case for case in cases if case.tokens == tokens]
    return f"{start}, {tokens} tokens: {listed([_words(case, last) for case in last])}."


def _words(case: Measurement, others: Sequence[Measurement]) -> str:
    """`0.45 ms with NSA (cpu) (66.0× as fast as sdpa and 12.0× as fast as dense)`"""
    assert case.time is not None
    words = f"{plain(case.time.median)} ms with {case.series}"
    full = [o for o in others if o.backend in (BASELINE, DENSE) and o.setting == case.setting]
    if case.backend in (BASELINE, DENSE) or not full:
        return words
    ratios = [f"{plain(o.time.median / case.time.median)}× as fast as {o.backend}" for o in full if o.time]
    return f"{words} ({listed(ratios)})"
