"""Figure: held-out loss against position; a line that falls shows that the context is used."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trisparse.report import look
from trisparse.report.palette import ATTENTIONS, identity, rank
from trisparse.report.prose import plain, short_count, titled
from trisparse.report.rows import Rows, integer, number, require_columns, require_unique

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = ["attention", "position_start", "position_end", "bits_per_byte", "bytes"]
READING = (
    "Held-out loss by how far into its context a token stands; lower is better. A line that falls to the "
    "right shows that earlier text helps; where it turns flat, more context stops helping."
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Tokens `start` up to, not with, `end` of every context, and their loss over `size` bytes."""

    start: int
    end: int
    bits: float
    size: int


def draw(rows: Rows) -> "Figure":
    """One line of steps per attention: each step spans the positions that it averages."""
    profiles = _read_profiles(rows)
    figure, (axes,) = look.new_figure(1, 3.0)
    for place, (attention, steps) in enumerate(profiles.items()):
        # the first attention on top
        _draw_profile(axes, attention, steps, layer=3 - place / 100)
    _scale_positions(axes, [step for steps in profiles.values() for step in steps])
    axes.margins(y=0.1)
    look.label_axes(axes, x="Position in the context (tokens)", y="Held-out loss (bits per byte)")
    look.legend(figure, [axes])
    look.label_ends(axes, [_end_label(attention, steps[-1]) for attention, steps in profiles.items()])
    return figure


def _read_profiles(rows: Rows) -> dict[str, list[Step]]:
    require_columns(rows, COLUMNS)
    require_unique(rows, ["attention", "position_start"])
    profiles = {}
    for attention in sorted(
        {row["attention"] for row in rows}, key=lambda name: (rank(ATTENTIONS, name), name)
    ):
        steps = [_read_step(row) for row in rows if row["attention"] == attention]
        profiles[attention] = sorted(steps, key=lambda step: step.start)
    return profiles


def _read_step(row: dict[str, str]) -> Step:
    start, end = integer(row, "position_start"), integer(row, "position_end")
    if not 0 <= start < end:
        raise ValueError(f"rows: expected 0 <= position_start < position_end, got {start} and {end}")
    return Step(start=start, end=end, bits=number(row, "bits_per_byte"), size=integer(row, "bytes"))


def _draw_profile(axes: "Axes", attention: str, steps: Sequence[Step], layer: float) -> None:
    known = identity(ATTENTIONS, attention)
    for left, right in zip(steps, steps[1:], strict=False):
        # a thin riser joins neighbours; positions that were not measured stay a gap
        if left.end == right.start:
            rise = [left.bits, right.bits]
            axes.plot([left.end] * 2, rise, color=known.colour, linewidth=0.7, alpha=0.6, zorder=layer)
    starts, ends, bits = zip(*((step.start, step.end, step.bits) for step in steps), strict=True)
    axes.hlines(bits, starts, ends, color=known.colour, linewidth=1.8, label=known.name, zorder=layer)


def _scale_positions(axes: "Axes", steps: Sequence[Step]) -> None:
    widths = [step.end - step.start for step in steps]
    first, last = min(step.start for step in steps), max(step.end for step in steps)
    if max(widths) < 4 * min(widths):
        ticks = list(range(0, last + 1, 2 ** max(0, (last // 4).bit_length() - 1)))
        axes.set_xticks(ticks, [short_count(tick) for tick in ticks])
        axes.set_xlim(first, last)
        return
    # a logarithmic axis has no 0: a first step from 0 is drawn as wide as one doubling, and its edge named 0
    edge = first or min(step.end for step in steps) // 2 or 0.5
    look.context_axis(axes, [step.end for step in steps])
    lengths = list(axes.get_xticks())
    axes.set_xticks([edge, *lengths], [short_count(length) for length in [first, *lengths]])
    axes.set_xlim(edge, last)


def _end_label(attention: str, last: Step) -> look.EndLabel:
    colour = identity(ATTENTIONS, attention).colour
    return look.EndLabel(x=last.end, y=last.bits, text=plain(last.bits), colour=colour)


def explain(rows: Rows) -> str:
    """How to read the figure, and what each attention gains from the start of the context to its end."""
    profiles = _read_profiles(rows)
    sizes = [step.size for steps in profiles.values() for step in steps]
    changes = [_change(titled(identity(ATTENTIONS, name).name), steps) for name, steps in profiles.items()]
    return " ".join([READING, *changes, f"Every step rests on at least {min(sizes)} bytes."])


def _change(name: str, steps: Sequence[Step]) -> str:
    first, last = steps[0], steps[-1]
    if len(steps) == 1:
        return f"{name} needs {_place(first)}."
    verb = "falls" if last.bits < first.bits else "does not fall"
    return f"{name} {verb}: {_place(first)}, {_place(last)}."


def _place(step: Step) -> str:
    return f"{plain(step.bits)} bits per byte at tokens {step.start} to {step.end}"
